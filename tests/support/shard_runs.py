"""Shards in a worker's hands whose input nobody reads: what matters of them is the plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from batchline.domain import bitmap, plan
from batchline.domain.ids import BatchId
from batchline.domain.model import Shard, ShardKey, Usage
from batchline.domain.shares import Turn
from batchline.executor.contract import ShardWork
from batchline.executor.shard_run import ShardRun

BATCH: Final = BatchId("batch_" + "0" * 32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Before:
    """What an earlier holder of the shard left."""

    settled: Sequence[int] = ()
    completed: int = 0
    failed: int = 0
    usage: Usage = field(default_factory=Usage)


NOTHING: Final = Before()


def run_over(
    entries: Sequence[tuple[int, int, int, int]],
    *,
    batch: BatchId = BATCH,
    number: int = 0,
    epoch: int = 1,
    first_entry: int = 0,
    backends: Sequence[str] = ("b",),
    before: Before = NOTHING,
    suspects: Sequence[int] = (),
    lost: Sequence[int] = (),
    turn: Turn | None = None,
) -> ShardRun:
    """A run over these entries of a plan: offset, length, line number, hash of the prefix."""
    marks = bitmap.empty(len(entries))
    for index in before.settled:
        bitmap.mark(marks, index)
    shard = Shard(
        key=ShardKey(batch_id=batch, number=number),
        first_entry=first_entry,
        entries=len(entries),
        model="m",
        epoch=epoch,
        settled=bytes(marks),
        completed=before.completed,
        failed=before.failed,
        usage=before.usage,
    )
    work = ShardWork(
        shard=shard,
        endpoint="/v1/chat/completions",
        input_path="unused",
        plan_path="unused",
        backends=list(backends),
        suspects=suspects,
        lost=lost,
        turn=turn or Turn(),
    )
    raw = b"".join(plan.ENTRY.pack(*entry) for entry in entries)
    return ShardRun.open(work, input_fd=-1, entries=raw)
