"""Validation: lines a second from the create call to `in_progress`, against json.loads alone."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Final

from bench.processes import CpuMeter
from bench.report import Floor, Measurement, Table, spread
from bench.rig import DELAY_S, Rig

LINES: Final = 200_000
RUNS: Final = 5
LEAST_LINES_PER_S: Final = 250_000
_POLL_S: Final = 0.002


def measure(rig: Rig) -> Measurement:
    """Each batch is cancelled once its plan is there."""
    lines = rig.size.lines(LINES)
    file_id = rig.uploaded(lines)
    rig.backend.reset(DELAY_S)
    walls, cpus, bare = [], [], []
    for _ in range(rig.size.times(RUNS)):
        bare.append(_parse_s(rig.input(lines)))
        with CpuMeter(rig.server) as meter:
            began = time.perf_counter()
            batch = rig.create(file_id)
            rig.wait(batch.id, "in_progress", "completed", lines=lines, poll_s=_POLL_S)
            walls.append(time.perf_counter() - began)
        cpus.append(meter.spent["job"])
        _end(rig, batch.id, lines)
    speeds = [lines / wall_s for wall_s in walls]
    rows = [
        {
            "what": "json.loads of each line, nothing else",
            "lines/s": spread([lines / wall_s for wall_s in bare]),
            "wall s": spread(bare),
            "CPU s": spread(bare),
        },
        {
            "what": "validation and plan, create call to `in_progress`",
            "lines/s": spread(speeds),
            "wall s": spread(walls),
            "CPU s": spread(cpus),
        },
    ]
    return Measurement(
        tables=[Table(f"Validation of {lines:,} lines", rows)],
        floors=[
            Floor(
                "validation, lines/s (median)",
                sorted(speeds)[len(speeds) // 2],
                at_least=LEAST_LINES_PER_S,
            )
        ],
        raw={"lines": lines, "wall_s": walls, "job_cpu_s": cpus, "json_loads_s": bare},
    )


def _parse_s(path: Path) -> float:
    began = time.perf_counter()
    with path.open("rb") as file:
        for line in file:
            json.loads(line)
    return time.perf_counter() - began


def _end(rig: Rig, batch_id: str, lines: int) -> None:
    """Cancel, unless a small batch has completed already, and wait for the end."""
    with rig.api() as api:
        if api.get(f"/v1/batches/{batch_id}")["status"] == "in_progress":
            api.call("POST", f"/v1/batches/{batch_id}/cancel")
    rig.wait(batch_id, "cancelled", "completed", lines=lines)
