"""The database as it is at one moment. Of a dead server it says exactly what its death met."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.support.invariants import ShardRow
from tests.support.stored import reading

_UNFINISHED: Final = """
    SELECT id, status, stopping, expires_at, total - completed - failed FROM batch
        WHERE status IN ('validating', 'in_progress', 'finalizing', 'cancelling')
"""
_SHARDS: Final = """
    SELECT b.id, s.number, s.epoch, s.settled, s.completed, s.failed FROM shard s
        JOIN batch b ON b.sequence = s.batch_sequence WHERE b.sequence > ?
"""
_PLANS: Final = "SELECT count(*) FROM blob WHERE kind = 'plan'"
_UNREFERENCED: Final = """
    SELECT count(*) FROM blob
        WHERE NOT EXISTS (SELECT 1 FROM blob_reference WHERE blob_name = blob.name)
"""
# A batch cannot be done any more once its window is nearly over.
_TOO_LATE_S: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """`phases` of the unfinished batches; `has_work`: some have lines that could be sent."""

    phases: frozenset[str]
    has_work: bool
    shards: Mapping[tuple[str, int], ShardRow]


def look(data: Path, *, after_sequence: int = 0) -> Rows:
    """Read it; shards only of batches behind that sequence number."""
    if not (data / "batchline.sqlite3").exists():
        return Rows(phases=frozenset(), has_work=False, shards={})
    on_disk = sum(1 for _ in (data / "blobs" / "plan").glob("plan-*"))
    with reading(data) as database:
        unfinished = database.execute(_UNFINISHED).fetchall()
        shards = database.execute(_SHARDS, (after_sequence,)).fetchall()
        ((plans,),) = database.execute(_PLANS)
        ((unreferenced,),) = database.execute(_UNREFERENCED)
    phases = {_phase(status, stopping) for _, status, stopping, _, _ in unfinished}
    if on_disk > plans:
        phases.add("planning")
    if unreferenced:
        phases.add("deleting")
    latest = time.time() + _TOO_LATE_S
    return Rows(
        phases=frozenset(phases),
        has_work=any(
            status == "in_progress" and left > 0 and expires_at > latest
            for _, status, _, expires_at, left in unfinished
        ),
        shards={
            (batch, number): ShardRow(
                epoch=epoch, settled=settled, completed=completed, failed=failed
            )
            for batch, number, epoch, settled, completed, failed in shards
        },
    )


def last_sequence(data: Path) -> int:
    """The number of the newest batch."""
    with reading(data) as database:
        ((sequence,),) = database.execute("SELECT coalesce(max(sequence), 0) FROM batch")
    return int(sequence)


def _phase(status: str, stopping: str | None) -> str:
    match status:
        case "in_progress":
            return "running"
        case "finalizing" if stopping == "window":
            return "expiring"
        case _:
            return status
