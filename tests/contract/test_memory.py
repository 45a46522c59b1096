"""Memory by the shard and by the range: what the control process makes of a batch of many lines.

A million lines are a thousand shards, and at a slow backend fifty thousand ranges. Figures are
differences of a larger and a smaller batch, so that what every batch costs is not in them, and the
lesser of two tries: a table of the interpreter's own that happens to grow is megabytes at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import google_crc32c
import msgspec
import pytest
from sqlalchemy import Engine, event, insert

from batchline.domain.lifecycle import BatchEvent
from batchline.domain.model import Batch, BlobKind, PlannedShards
from batchline.service.jobs import Jobs
from batchline.service.pace_meter import PaceMeter
from batchline.service.range_check import Damage, RangeCheck
from batchline.service.running import Running
from batchline.store import finalizing, references, repairing
from batchline.store.blobs import LocalBlobs
from batchline.store.database import Database
from batchline.store.tables import segment_commit
from tests.contract.store_rows import (
    MODEL,
    NOW,
    Segment,
    finalized,
    fresh_blob,
    moved,
    started,
    validating,
)
from tests.support.allocated import Allocated, allocated
from tests.support.sqlite_steps import Steps

FEW, MANY = 1_000, 4_000


@pytest.fixture(scope="module")
async def jobs(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Jobs]:
    jobs = Jobs(tmp_path_factory.mktemp("children"))
    yield jobs
    await jobs.close()


async def by_each(make: Callable[[int], Awaitable[Allocated]]) -> tuple[float, float]:
    """(peak, kept) bytes that one more of FEW to MANY costs."""
    await make(100)  # what the first of all costs: statements that are compiled, and the like
    found = [(await make(FEW), await make(MANY)) for _ in range(2)]
    return (
        min(many.peak - few.peak for few, many in found) / (MANY - FEW),
        min(many.kept - few.kept for few, many in found) / (MANY - FEW),
    )


def shards_of(count: int) -> PlannedShards:
    sizes = b"".join((1_000).to_bytes(4, "little") for _ in range(count))
    return PlannedShards(models=[MODEL], counts=[count], sizes=sizes)


async def test_a_shard_takes_a_few_bytes_from_the_answer_of_the_child_to_its_row(
    store: Database,
) -> None:
    async def start(shards: int) -> Allocated:
        batch = await validating(store)
        answer = msgspec.msgpack.encode(shards_of(shards))
        with allocated() as found:
            planned = msgspec.msgpack.decode(answer, type=PlannedShards)
            assert await store.start_batch(
                batch.id,
                plan=fresh_blob(BlobKind.PLAN),
                shards=planned,
                lines=shards * 1_000,
                model=MODEL,
                now=NOW + 1,
            )
            del planned
        pending = await store.pending_shards(batch.id)
        assert [shard.number for shard in pending] == list(range(shards))
        return found

    peak, kept = await by_each(start)
    assert peak < 16  # 4 of them the size; a list of PlannedShards takes 190
    assert kept < 8


async def test_a_running_batch_keeps_the_number_of_each_shard_and_no_more(store: Database) -> None:
    async def activate(shards: int) -> Allocated:
        batch = await started(store, shards=shards)
        with allocated() as found:
            pending = await store.pending_shards(batch.id)
            running = Running(batch=batch, unsettled=len(pending), meter=PaceMeter(batch.counts))
            for shard in reversed(pending):
                running.put_back(shard.number, shard.model, quarantine=False)
            del pending
            await asyncio.sleep(0)  # until then the task keeps what it waited for
        assert len(running.pending[MODEL]) == shards
        return found

    peak, kept = await by_each(activate)
    assert peak < 24  # packed 10; as objects it was 150
    assert kept < 8


def committed(engine: Engine, batch: Batch, segment: Path, ranges: int) -> None:
    """Ranges of one byte each, which is all that there is of `segment`."""
    segment.write_bytes(b"x" * ranges)
    row = {
        "batch_sequence": batch.sequence,
        "kind": "output",
        "blob_name": segment.name,
        "crc": google_crc32c.value(b"x"),
        "shard_number": 0,
        "lines": bytes([0, 0, 1]),
        "input_tokens": 1,
    }
    with engine.begin() as connection:
        connection.execute(
            insert(segment_commit),
            [{**row, "start": at, "stop": at + 1, "begin": at} for at in range(ranges)],
        )


async def test_a_committed_range_is_checked_in_a_few_bytes(
    store: Database, engine: Engine, blobs: LocalBlobs, jobs: Jobs
) -> None:
    check = RangeCheck(store=store, blobs=blobs, jobs=jobs)

    async def damaged(ranges: int) -> Allocated:
        batch = await started(store)
        segment = blobs.path(Segment().name)
        committed(engine, batch, segment, ranges)
        with allocated() as found:
            assert await check.damaged(batch) == []
        # It is a check: the last byte is another one.
        segment.write_bytes(b"x" * (ranges - 1) + b"y")
        (one,) = await check.damaged(batch)
        assert (one.committed.part.start, one.damage) == (ranges - 1, Damage.CHANGED)
        return found

    peak, kept = await by_each(damaged)
    # Packed 24 bytes, a few times over on its way into the child; as objects it was 860.
    assert peak < 150
    assert kept < 8


async def test_a_page_of_ranges_costs_what_it_gives_however_many_there_are(
    store: Database, engine: Engine, blobs: LocalBlobs
) -> None:
    """SQLite counts its own steps."""
    steps = Steps(engine)

    def of_a_page(batch: Batch, after: int) -> int:
        steps.count = 0
        with engine.begin() as connection:
            page = repairing.committed(connection, batch.id, after=after, limit=20)
        assert len(page) == 20
        return steps.count

    few, many = await started(store), await started(store)
    committed(engine, few, blobs.path(Segment().name), 40)
    committed(engine, many, blobs.path(Segment().name), 2_000)
    of_few = of_a_page(few, 0)
    first = first_of(engine, many)
    assert of_few > 10
    assert of_a_page(many, 0) < 2 * of_few
    assert of_a_page(many, first + 1_000) < 2 * of_few


async def test_the_ranges_of_a_batch_that_ended_go_some_at_a_time(
    store: Database, engine: Engine, blobs: LocalBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite keeps 24 bytes for each row that one statement deletes."""
    monkeypatch.setattr(finalizing, "_DELETED_AT_ONCE", 10)
    deleted: list[int] = []

    def count(_: object, cursor: Any, statement: str, *__: object) -> None:
        if statement.startswith("DELETE FROM segment_commit"):
            deleted.append(cursor.rowcount)

    batch, other = await started(store), await started(store)
    segment = Segment().name
    with engine.begin() as connection:
        references.register_segments(connection, {segment: 35}, now=NOW)
    for one in (batch, other):
        committed(engine, one, blobs.path(segment), 35)
    batch = await moved(store, batch, BatchEvent.ALL_LINES_FINISHED)
    event.listen(Engine, "after_cursor_execute", count)  # the store's is its own
    try:
        ended = await finalized(store, batch)
    finally:
        event.remove(Engine, "after_cursor_execute", count)
    assert ended.output_file_id is not None
    assert len(await store.file_ranges(ended.output_file_id)) == 35
    assert max(deleted) <= 10
    assert sum(deleted) == 35
    assert await store.committed_ranges(batch.id, after=0, limit=100) == []
    assert len(await store.committed_ranges(other.id, after=0, limit=100)) == 35


def first_of(engine: Engine, batch: Batch) -> int:
    with engine.begin() as connection:
        (first,) = repairing.committed(connection, batch.id, after=0, limit=1)
    return first.sequence
