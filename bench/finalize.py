"""The end of a batch: from the backend's last answer to `completed`, and to `cancelled`."""

from __future__ import annotations

import time
from typing import Final

from bench.report import Floor, Measurement, Table, spread
from bench.rig import Rig

LINES: Final = 200_000
RUNS: Final = 3
MOST_S: Final = 1.0
_POLL_S: Final = 0.01


def measure(rig: Rig) -> Measurement:
    """Batches that run to their end, and batches that are cancelled as soon as they run."""
    lines = rig.size.lines(LINES)
    file_id = rig.uploaded(lines)
    completed = [_completed_s(rig, file_id, lines) for _ in range(rig.size.times(RUNS))]
    cancelled = [_cancelled_s(rig, file_id, lines) for _ in range(rig.size.times(RUNS))]
    rows = [
        {"end": "last answer to `completed`", "wall s": spread(completed)},
        {"end": "cancel call to `cancelled`, hardly a line run", "wall s": spread(cancelled)},
    ]
    return Measurement(
        tables=[Table(f"The end of {lines:,} lines, seen every {_POLL_S * 1e3:g} ms", rows)],
        floors=[Floor("finalize, seconds (slowest)", max(completed), at_most=MOST_S)],
        raw={"lines": lines, "completed_s": completed, "cancelled_s": cancelled},
    )


def _completed_s(rig: Rig, file_id: str, lines: int) -> float:
    rig.backend.reset(0.0)
    batch = rig.create(file_id)
    while rig.backend.stats().answered < lines * 0.98:
        time.sleep(_POLL_S)
    rig.completed(batch.id, lines, poll_s=_POLL_S)
    seen_ns = time.time_ns()
    return (seen_ns - rig.backend.stats().last_answer_ns) / 1e9


def _cancelled_s(rig: Rig, file_id: str, lines: int) -> float:
    rig.backend.reset(0.05)
    batch = rig.create(file_id)
    rig.wait(batch.id, "in_progress", lines=lines, poll_s=_POLL_S)
    began = time.perf_counter()
    with rig.api() as api:
        api.call("POST", f"/v1/batches/{batch.id}/cancel")
    rig.wait(batch.id, "cancelled", lines=lines, poll_s=_POLL_S)
    return time.perf_counter() - began
