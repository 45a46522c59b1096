"""What a shard and a batch cost the control process: its statements are put together once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import event

from batchline.domain.ids import BatchId
from batchline.domain.lifecycle import BatchEvent
from batchline.domain.model import Batch
from batchline.store.database import Database
from tests.contract.store_rows import (
    Segment,
    claimed,
    commits,
    finalized,
    moved,
    settling,
    started,
)


@contextmanager
def executed(store: Database) -> Iterator[list[object]]:
    """The statements that the store executes within the block."""
    statements: list[object] = []

    def note(_: object, statement: object, *__: object) -> None:
        statements.append(statement)

    for engine in {store._engine, store._reader}:
        event.listen(engine, "before_execute", note)
    try:
        yield statements
    finally:
        for engine in {store._engine, store._reader}:
            event.remove(engine, "before_execute", note)


async def life(store: Database, batch: Batch) -> None:
    """What every batch needs of the store once it has a plan."""
    await store.pending_shards(batch.id)
    shard, segment = await claimed(store, batch), Segment()
    await commits(store, settling(shard, finished=range(5), segment=segment))
    half = settling(shard, finished=range(9), failed=[9], segment=segment)
    await commits(store, half)
    batch = await moved(store, batch, BatchEvent.ALL_LINES_FINISHED)
    await store.committed_ranges(batch.id, after=0, limit=10)
    await finalized(store, batch)


async def test_the_statements_of_one_batch_are_those_of_the_next(store: Database) -> None:
    """If this fails, a statement is put together at each call, which takes ten times as long as to
    execute it: make it once, at the end of its module."""
    with executed(store) as of_one:
        await life(store, await started(store))
    with executed(store) as of_the_next:
        await life(store, await started(store))
    assert len(of_the_next) == len(of_one) > 20
    # Kept in a list, so that no other object can have the address of one that is gone.
    made_anew = {id(one) for one in of_the_next} - {id(one) for one in of_one}
    assert [str(one) for one in of_the_next if id(one) in made_anew] == []


async def test_shards_of_many_batches_in_one_group_are_not_taken_for_one_another(
    store: Database,
) -> None:
    """Those of the same numbers are looked up together, in however many batches they are."""
    numbers = {0: [0, 1], 1: [1], 2: [0, 1], 3: [2], 4: [1]}
    batches = [await started(store, shards=3) for _ in numbers]
    segment = Segment()
    group, expected = [], []
    for at, some in numbers.items():
        for number in some:
            shard = await claimed(store, batches[at], number)
            stale = (at, number) in {(0, 1), (4, 1)}
            if stale:
                await store.fence_shards([shard.key], died=True)
            group.append(settling(shard, finished=range(at + number + 1), segment=segment))
            expected.append(not stale)
    assert await commits(store, *group) == expected
    done: dict[BatchId, int] = {}
    for one, accepted in zip(group, expected, strict=True):
        done[one.key.batch_id] = done.get(one.key.batch_id, 0) + accepted * one.completed
    for batch in batches:
        after = await store.load_batch(batch.id)
        assert after.counts.completed == done[batch.id]
        page = await store.committed_ranges(batch.id, after=0, limit=10)
        assert sum(one.lines or 0 for one in page) == done[batch.id]
