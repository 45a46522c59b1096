"""Two workers against one: what a line costs when the same load is shared.

Both have the same core, since what is asked is the cost and not the speed: whether two scale is
shown only by a machine with a core for each. The backend takes its time, so that neither is busy.
"""

from __future__ import annotations

from statistics import median
from typing import Final

from bench.dispatch import Shape, our_run
from bench.report import Floor, Measurement, Row, Table, spread
from bench.rig import IN_FLIGHT, Rig

_SHAPE: Final = Shape(in_flight=IN_FLIGHT, delay_s=0.02, lines=100_000)
_MOST: Final = 1.10  # times one worker's CPU


def measure(rig: Rig) -> Measurement:
    """In turn, a batch on a server with one worker and one on a server with two."""
    lines = rig.size.lines(_SHAPE.lines)
    ran: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    with (
        rig.with_fresh_server("one-worker", settings={"workers": 1}) as one,
        rig.with_fresh_server("two-workers", settings={"workers": 2}) as two,
    ):
        files = {1: one.uploaded(lines), 2: two.uploaded(lines)}
        for run in range(rig.size.times(_SHAPE.runs)):
            for workers, on in ((1, one), (2, two)):
                ran[workers].append(our_run(on, _SHAPE, files[workers], lines))
            rig.say(
                f"run {run + 1}: "
                + ", ".join(f"{n}: {runs[-1]['cpu_us']:.1f} us" for n, runs in ran.items())
            )
    ratio = median(
        b["cpu_us"] / max(a["cpu_us"], 1e-9) for a, b in zip(ran[1], ran[2], strict=True)
    )
    rows: list[Row] = [
        {
            "workers": workers,
            "CPU us a line": spread([one["cpu_us"] for one in runs]),
            "CPU s": spread([one["cpu_us"] for one in runs], lines / 1e6),
            "control process, CPU us a line": spread([one["control_cpu_us"] for one in runs]),
            "lines/s": spread([one["lines_per_s"] for one in runs]),
            "backend busy": spread([one["backend_busy"] for one in runs]),
        }
        for workers, runs in ran.items()
    ]
    return Measurement(
        tables=[Table(f"One worker and two: {lines:,} lines, {_SHAPE.name}", rows)],
        floors=[
            Floor(
                "two workers' CPU a line / one worker's (median)",
                ratio,
                at_most=_MOST,
            )
        ],
        raw={"lines": lines, "one": ran[1], "two": ran[2]},
    )
