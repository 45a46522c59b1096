"""Two workers against one: what a line costs when the same load is shared.

All have the same core, since what is asked is the cost and not the speed: whether two scale is
shown only by a machine with a core for each. The backend takes its time, so that neither is busy.

Each of the two has half of the load, and with fewer lines at a time a line costs more, whoever
sends it. So there is one worker with half of the load, too: what two cost beyond that is the
sharing.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import median
from typing import Final

from bench.dispatch import Shape, our_run
from bench.report import Floor, Measurement, Row, Table, spread
from bench.rig import IN_FLIGHT, Rig

_SHAPE: Final = Shape(in_flight=IN_FLIGHT, delay_s=0.02, lines=100_000)
_HALF: Final = replace(_SHAPE, in_flight=IN_FLIGHT // 2)
_MOST: Final = 1.10  # times one worker's CPU

_ONE: Final = "one worker"
_TWO: Final = "two workers"
_ONE_AT_HALF: Final = "one worker, half the load"


def measure(rig: Rig) -> Measurement:
    """In turn, a batch on a server with one worker, with two, and with one and half the load."""
    lines = rig.size.lines(_SHAPE.lines)
    ran: dict[str, list[dict[str, float]]] = {_ONE: [], _TWO: [], _ONE_AT_HALF: []}
    half = {"name": "bench", "base_url": rig.backend.base_url, "max_in_flight": _HALF.in_flight}
    with (
        rig.with_fresh_server("one-worker", settings={"workers": 1}) as one,
        rig.with_fresh_server("two-workers", settings={"workers": 2}) as two,
        rig.with_fresh_server("half", settings={"workers": 1, "backend": [half]}) as at_half,
    ):
        servers = {_ONE: (one, _SHAPE), _TWO: (two, _SHAPE), _ONE_AT_HALF: (at_half, _HALF)}
        files = {name: on.uploaded(lines) for name, (on, _) in servers.items()}
        for run in range(rig.size.times(_SHAPE.runs)):
            for name, (on, shape) in servers.items():
                ran[name].append(our_run(on, shape, files[name], lines))
            rig.say(
                f"run {run + 1}: "
                + ", ".join(f"{name}: {runs[-1]['cpu_us']:.1f} us" for name, runs in ran.items())
            )
    rows: list[Row] = [
        {
            "workers": name,
            "CPU us a line": spread([one["cpu_us"] for one in runs]),
            "CPU s": spread([one["cpu_us"] for one in runs], lines / 1e6),
            "two workers', times this (median)": _times(ran[_TWO], runs),
            "control process, CPU us a line": spread([one["control_cpu_us"] for one in runs]),
            "lines/s": spread([one["lines_per_s"] for one in runs]),
            "backend busy": spread([one["backend_busy"] for one in runs]),
        }
        for name, runs in ran.items()
    ]
    return Measurement(
        tables=[Table(f"One worker and two: {lines:,} lines, {_SHAPE.name}", rows)],
        floors=[
            Floor(
                "two workers' CPU a line / one worker's (median)",
                _times(ran[_TWO], ran[_ONE]),
                at_most=_MOST,
            ),
            Floor(
                "two workers' CPU a line / one worker's with half of the load (median)",
                _times(ran[_TWO], ran[_ONE_AT_HALF]),
                at_most=_MOST,
            ),
        ],
        raw={"lines": lines, **ran},
    )


def _times(these: list[dict[str, float]], those: list[dict[str, float]]) -> float:
    return median(
        one["cpu_us"] / max(other["cpu_us"], 1e-9) for one, other in zip(these, those, strict=True)
    )
