"""Dispatch: what a line costs each process, against a bare aiohttp loop in the same minutes."""

from __future__ import annotations

import time
from typing import Final

from bench.processes import CpuMeter
from bench.report import Floor, Measurement, Table, spread
from bench.rig import DELAY_S, IN_FLIGHT, Rig

LINES: Final = 200_000
RUNS: Final = 5
MOST_OF_BARE: Final = 1.7
SATURATED: Final = 0.85  # of its core: above this the backend is what is measured

_ROLES: Final = {
    "worker": "worker",
    "control": "control process",
    "job": "job child (validation)",
}


def measure(rig: Rig) -> Measurement:
    """Runs of Batchline and of the bare loop in turn."""
    lines = rig.size.lines(LINES)
    file_id = rig.uploaded(lines)
    ours, bare = [], []
    for run in range(rig.size.times(RUNS)):
        bare.append(_bare_run(rig, lines))
        ours.append(_our_run(rig, file_id, lines))
        rig.say(
            f"run {run + 1}: worker {ours[-1]['worker_cpu_us']:.0f} us and "
            f"{ours[-1]['lines_per_s']:,.0f} lines/s, bare loop {bare[-1]['cpu_us']:.0f} us and "
            f"{bare[-1]['lines_per_s']:,.0f} lines/s"
        )
    ratios = [one["worker_cpu_us"] / other["cpu_us"] for one, other in zip(ours, bare, strict=True)]
    ratio = sorted(ratios)[len(ratios) // 2]
    busiest = max(one["backend_busy"] for one in [*ours, *bare])
    if busiest > SATURATED:
        rig.say(f"WARNING: the backend was busy for {busiest:.0%} of a run")
    rows = [
        {
            "process": "bare aiohttp loop",
            "CPU us a line": spread([one["cpu_us"] for one in bare]),
            "CPU s": spread([one["cpu_us"] for one in bare], lines / 1e6),
        }
    ]
    for role, name in _ROLES.items():
        costs = [one[f"{role}_cpu_us"] for one in ours]
        rows.append(
            {"process": name, "CPU us a line": spread(costs), "CPU s": spread(costs, lines / 1e6)}
        )
    speeds = [
        {
            "client": name,
            "lines/s": spread([one["lines_per_s"] for one in runs]),
            "wall s": spread([one["wall_s"] for one in runs]),
            "backend busy": spread([one["backend_busy"] for one in runs]),
        }
        for name, runs in (("bare aiohttp loop", bare), ("Batchline", ours))
    ]
    title = f"{lines:,} lines, {IN_FLIGHT} in flight, backend of {DELAY_S * 1e3:g} ms"
    return Measurement(
        tables=[
            Table(f"CPU of each process: {title}", rows),
            Table(f"Speed, from the first request to the last answer: {title}", speeds),
        ],
        floors=[
            Floor("worker CPU a line / bare loop CPU a line (median)", ratio, at_most=MOST_OF_BARE)
        ],
        raw={"lines": lines, "batchline": ours, "bare": bare, "ratios": ratios},
    )


def _bare_run(rig: Rig, lines: int) -> dict[str, float]:
    rig.backend.reset(DELAY_S)
    before = rig.backend.stats()
    ran = rig.bare_loop(lines)
    after = rig.backend.stats()
    return {
        "cpu_us": ran.cpu_s / lines * 1e6,
        "lines_per_s": lines / ran.wall_s,
        "wall_s": ran.wall_s,
        "backend_busy": (after.cpu_s - before.cpu_s) / ran.wall_s,
    }


def _our_run(rig: Rig, file_id: str, lines: int) -> dict[str, float]:
    rig.backend.reset(DELAY_S)
    before = rig.backend.stats()
    with CpuMeter(rig.server) as meter:
        created = time.perf_counter()
        batch = rig.create(file_id)
        # Seldom: an answer costs the control process half a millisecond.
        rig.completed(batch.id, lines, poll_s=0.25 if lines > 20_000 else 0.02)
        whole_s = time.perf_counter() - created
    after = rig.backend.stats()
    wall_s = (after.last_answer_ns - after.first_arrival_ns) / 1e9
    found = {
        "lines_per_s": lines / wall_s,
        "wall_s": wall_s,
        "create_to_completed_s": whole_s,
        "backend_busy": (after.cpu_s - before.cpu_s) / wall_s,
        "max_in_flight": float(after.max_in_flight),
    }
    for role, spent_s in meter.spent.items():
        found[f"{role}_cpu_us"] = spent_s / lines * 1e6
    return found
