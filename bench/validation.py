"""Validation: lines a second from the create call to `in_progress`, against json.loads alone.

With everything on that there is: every limit of a file is set, just above what the file has; one
model a file, which has to be one of the backend's catalogue or an alias; repeated custom_ids looked
for; a create with as much metadata as is allowed; and, for the second file, the inputs of
embeddings requests counted. Nothing is off but what a bad line alone would need.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Final

from batchline.service.batches import (
    MAX_METADATA_KEY_CHARS,
    MAX_METADATA_PAIRS,
    MAX_METADATA_VALUE_CHARS,
)
from bench.fast_backend import MODEL
from bench.inputs import CHAT, EMBEDDING_INPUTS, EMBEDDINGS, LINE_BYTES
from bench.processes import CpuMeter
from bench.report import Floor, Measurement, Row, Table, spread
from bench.rig import DELAY_S, Rig

LINES: Final = 200_000
RUNS: Final = 5
LEAST_LINES_PER_S: Final = 250_000
_POLL_S: Final = 0.002
_METADATA: Final = {
    f"{number:0{MAX_METADATA_KEY_CHARS}}": "x" * MAX_METADATA_VALUE_CHARS
    for number in range(MAX_METADATA_PAIRS)
}


def measure(rig: Rig) -> Measurement:
    """Each batch is cancelled once its plan is there; the kinds of lines in turn."""
    lines = rig.size.lines(LINES)
    rig.backend.reset(DELAY_S)
    walls: dict[str, list[float]] = {CHAT: [], EMBEDDINGS: []}
    cpus: dict[str, list[float]] = {CHAT: [], EMBEDDINGS: []}
    bare: list[float] = []
    with rig.with_fresh_server("validation", settings=_everything_on(lines)) as strict:
        files = {CHAT: strict.uploaded(lines), EMBEDDINGS: strict.uploaded(lines, EMBEDDINGS)}
        for _ in range(rig.size.times(RUNS)):
            bare.append(_parse_s(rig.input(lines)))
            for endpoint in (CHAT, EMBEDDINGS):
                with CpuMeter(strict.server) as meter:
                    began = time.perf_counter()
                    batch = strict.create(files[endpoint], endpoint, metadata=_METADATA)
                    strict.wait(batch.id, "in_progress", "completed", lines=lines, poll_s=_POLL_S)
                    walls[endpoint].append(time.perf_counter() - began)
                cpus[endpoint].append(meter.spent["job"])
                _end(strict, batch.id, lines)
    rows = [
        _row("json.loads of each line, nothing else", lines, bare, bare),
        _row("chat completions, create call to `in_progress`", lines, walls[CHAT], cpus[CHAT]),
        _row("embeddings, the same", lines, walls[EMBEDDINGS], cpus[EMBEDDINGS]),
    ]
    return Measurement(
        tables=[Table(f"Validation of {lines:,} lines of {LINE_BYTES} bytes, plan included", rows)],
        floors=[
            Floor(
                f"validation of {kind}, lines/s (median)",
                lines / sorted(walls[endpoint])[len(walls[endpoint]) // 2],
                at_least=LEAST_LINES_PER_S,
            )
            for kind, endpoint in (("chat completions", CHAT), ("embeddings", EMBEDDINGS))
        ],
        raw={"lines": lines, "wall_s": walls, "job_cpu_s": cpus, "json_loads_s": bare},
    )


def _everything_on(lines: int) -> dict[str, object]:
    return {
        "limits": {
            "max_file_bytes": lines * LINE_BYTES,
            "max_batch_file_bytes": lines * LINE_BYTES,
            "max_lines": lines,
            "max_embedding_inputs": lines * EMBEDDING_INPUTS,
        },
        "allow_mixed_models": False,
        "aliases": {f"alias-{number}": MODEL for number in range(10)},
    }


def _row(what: str, lines: int, walls: list[float], cpus: list[float]) -> Row:
    speeds = [lines / wall_s for wall_s in walls]
    return {"what": what, "lines/s": spread(speeds), "wall s": spread(walls), "CPU s": spread(cpus)}


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
