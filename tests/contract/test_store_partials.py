"""Records of lines that were cut off: kept until the batch's end, and settling nothing."""

from __future__ import annotations

import dataclasses

from batchline.domain.lifecycle import BatchEvent
from batchline.domain.model import Counts, Shard, ShardCommit
from batchline.store.contract import Store
from tests.contract.store_rows import (
    Segment,
    claimed,
    commits,
    finalized,
    moved,
    settling,
    started,
)


def cut_off(shard: Shard, segment: Segment, *, finished: tuple[int, ...] = ()) -> ShardCommit:
    """A commit with one range of records beside these results."""
    results = settling(shard, finished=finished, segment=segment)
    return dataclasses.replace(results, partials=segment.append(b"r" * 90))


async def test_records_are_kept_in_order_and_settle_nothing(store: Store) -> None:
    batch, other = await started(store, shards=2), await started(store)
    segment = Segment()
    first = cut_off(await claimed(store, batch, 1), segment, finished=(3,))
    second = cut_off(await claimed(store, batch, 0), segment)
    await moved(store, batch, BatchEvent.CANCEL_REQUESTED)
    assert await store.partials(batch.id) == []
    assert await commits(store, first) == [True]
    assert await commits(store, second) == [True]
    assert await store.partials(batch.id) == [first.partials, second.partials]
    assert await store.partials(other.id) == []
    assert (await store.load_batch(batch.id)).counts == Counts(total=20, completed=1)
    assert await store.shard_bitmaps(batch.id) == [
        (0, 10, b""),
        (10, 10, bytes([0b1000, 0])),
    ]


async def test_a_commit_with_records_that_is_sent_again_doubles_no_result(store: Store) -> None:
    batch = await started(store)
    commit = cut_off(await claimed(store, batch), Segment(), finished=(0,))
    for _ in range(2):
        assert await commits(store, commit) == [True]
    assert set(await store.partials(batch.id)) == {commit.partials}
    assert (await store.load_batch(batch.id)).counts == Counts(total=10, completed=1)
    ended = await finalized(store, await moved(store, batch, BatchEvent.CANCEL_REQUESTED))
    assert ended.output_file_id is not None
    assert await store.file_ranges(ended.output_file_id) == [commit.output]


async def test_a_former_holder_and_an_ended_batch_keep_no_records(store: Store) -> None:
    batch = await started(store)
    former = await claimed(store, batch)
    shard = await claimed(store, batch)
    assert await commits(store, cut_off(former, Segment())) == [False]
    ended = await finalized(store, await moved(store, batch, BatchEvent.CANCEL_REQUESTED))
    assert await commits(store, cut_off(shard, Segment())) == [False]
    assert await store.partials(ended.id) == []


async def test_the_segment_of_records_stays_until_the_batch_has_ended(store: Store) -> None:
    batch = await started(store)
    commit = cut_off(await claimed(store, batch), Segment())
    assert commit.partials is not None
    assert await commits(store, commit, worker="w-7") == [True]
    await store.release_worker_references(None)
    assert await store.unreferenced_blobs(limit=10) == []
    ended = await finalized(store, await moved(store, batch, BatchEvent.CANCEL_REQUESTED))
    assert (ended.output_file_id, ended.error_file_id) == (None, None)
    assert await store.partials(batch.id) == []
    unreferenced = {blob.name for blob in await store.unreferenced_blobs(limit=10)}
    assert commit.partials.blob in unreferenced
