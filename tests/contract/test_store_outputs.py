"""The output of a batch by byte offsets: the same while it runs and when it has ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from batchline.domain.ids import DEFAULT_PROJECT
from batchline.domain.lifecycle import BatchEvent
from batchline.domain.model import Batch, BlobRange
from batchline.store.contract import Store
from tests.contract.store_rows import (
    NOW,
    Segment,
    claimed,
    commits,
    final_files,
    finalized,
    let_go,
    moved,
    settling,
    started,
)

ALL = 10**18


async def committed(
    store: Store, batch: Batch, after: int, limit: int = ALL, *, now: int = NOW + 5
) -> Sequence[BlobRange] | None:
    end = await store.output_end(batch.id, after=after, limit=limit, repairs=0, now=now)
    if end is None:
        return None
    return await store.committed_output(
        batch.id, start=after, stop=end, most=10, repairs=0, now=now
    )


async def three_commits(store: Store) -> tuple[Batch, list[BlobRange]]:
    """A batch with commits of 100, 50 and 150 bytes of output, and others beside it."""
    batch, other = await started(store, shards=3), await started(store)
    segment, second = Segment(), Segment()
    ranges = []
    for number, lines, where in [(0, [0, 1], segment), (2, [0], second), (1, [4, 5, 6], segment)]:
        shard = await claimed(store, batch, number)
        beside = settling(await claimed(store, other), finished=[number], segment=segment)
        one = settling(shard, finished=lines, failed=[9], segment=where)
        assert await commits(store, beside, worker="w2") == [True]
        assert await commits(store, one) == [True]
        assert one.output is not None
        ranges.append(one.output)
    return batch, ranges


async def test_offsets_mean_the_same_before_and_after_the_end(store: Store) -> None:
    batch, (first, second, third) = await three_commits(store)
    tail = replace(third, start=third.start + 30, lead=30)
    middle = replace(second, start=second.start + 1, lead=1)
    expected = {
        (0, ALL): [first, second, third],
        (0, 1): [first],
        (0, 100): [first],
        (0, 101): [first, second],
        (1, 1): [replace(first, start=first.start + 1, lead=1)],
        (100, ALL): [second, third],
        (100, 1): [second],
        (101, ALL): [middle, third],
        (101, 49): [middle],
        (150, 1): [third],
        (180, ALL): [tail],
        (300, ALL): [],
        (301, ALL): None,
        (ALL, ALL): None,
    }
    for (after, limit), ranges in expected.items():
        assert await committed(store, batch, after, limit) == ranges, (after, limit)
    ended = await finalized(store, await moved(store, batch, BatchEvent.CANCEL_REQUESTED))
    assert ended.output_file_id is not None
    assert await store.file_ranges(ended.output_file_id) == [first, second, third]
    for (after, limit), ranges in expected.items():
        assert await committed(store, batch, after, limit) == ranges, (after, limit)


async def test_a_batch_without_a_result_has_no_output_and_no_offset_but_0(store: Store) -> None:
    batch = await started(store)
    assert await committed(store, batch, 0) == []
    assert await committed(store, batch, 1) is None
    await finalized(store, await moved(store, batch, BatchEvent.CANCEL_REQUESTED))
    assert await committed(store, batch, 0) == []
    assert await committed(store, batch, 1) is None


async def test_the_output_goes_with_its_file(store: Store) -> None:
    batch, _ = await three_commits(store)
    files = final_files(expires_at=NOW + 50)
    await finalized(store, await moved(store, batch, BatchEvent.CANCEL_REQUESTED), files)
    assert await committed(store, batch, 100, now=NOW + 49)
    assert await committed(store, batch, 100, now=NOW + 50) is None
    assert await store.delete_file(DEFAULT_PROJECT, files.output_id, now=NOW + 10)
    assert await committed(store, batch, 0, now=NOW + 11) == []


async def test_the_output_of_a_hidden_file_is_there_for_its_readers_until_it_is_let_go_of(
    store: Store,
) -> None:
    async def at_any_time() -> Sequence[BlobRange]:
        return await store.committed_output(
            batch.id, start=0, stop=300, most=10, repairs=0, now=None
        )

    batch, ranges = await three_commits(store)
    files = final_files()
    assert await at_any_time() == ranges
    await finalized(store, await moved(store, batch, BatchEvent.CANCEL_REQUESTED), files)
    assert await store.delete_file(DEFAULT_PROJECT, files.output_id, now=NOW + 10)
    assert await at_any_time() == ranges
    await let_go(store)
    assert await at_any_time() == []
