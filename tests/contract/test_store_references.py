"""Blobs in the database: known, referenced, unreferenced, forgotten."""

from __future__ import annotations

from batchline.domain.ids import DEFAULT_PROJECT, BlobName, FileId
from batchline.domain.lifecycle import BatchEvent
from batchline.domain.model import Blob, BlobKind
from batchline.store.contract import Store
from tests.contract.store_rows import (
    NOW,
    Segment,
    asked_for,
    both,
    claimed,
    commits,
    finalized,
    fresh_blob,
    let_go,
    moved,
    settling,
    started,
    uploaded,
)


async def unreferenced(store: Store, *, limit: int = 100) -> list[Blob]:
    """What may go once a sweep has let go of what is hidden."""
    await let_go(store)
    return list(await store.unreferenced_blobs(limit=limit))


async def test_unreferenced_blobs_come_as_they_were_registered_up_to_the_limit(
    store: Store,
) -> None:
    freed = []
    for _ in range(3):
        file, blob = await uploaded(store)
        await store.delete_file(DEFAULT_PROJECT, file.id, now=NOW)
        freed.append(blob)
    by_name = sorted(freed, key=lambda blob: blob.name)
    assert await unreferenced(store) == by_name
    assert await unreferenced(store, limit=2) == by_name[:2]


async def test_only_unreferenced_blobs_can_be_forgotten(store: Store) -> None:
    file, freed = await uploaded(store)
    await store.delete_file(DEFAULT_PROJECT, file.id, now=NOW)
    await let_go(store)
    _, held = await uploaded(store)
    await store.forget_blobs([freed.name, held.name, BlobName("input-none")])
    assert await store.known_blobs([freed.name, held.name]) == {held.name}
    assert await unreferenced(store) == []


async def test_blobs_without_a_row_are_told_from_the_known_in_any_number(store: Store) -> None:
    _, blob = await uploaded(store)
    strangers = [fresh_blob().name for _ in range(2_500)]
    assert await store.known_blobs([*strangers, blob.name]) == {blob.name}
    assert await store.known_blobs([]) == set()
    await store.forget_blobs(strangers)


async def test_a_worker_keeps_its_open_segment_when_the_last_file_on_it_goes(
    store: Store,
) -> None:
    batch, segment = await started(store), Segment()
    shard = await claimed(store, batch)
    assert await commits(store, settling(shard, finished=range(10), segment=segment)) == [True]
    batch = await finalized(store, await moved(store, batch, BatchEvent.ALL_LINES_FINISHED))
    assert batch.output_file_id is not None
    await store.delete_file(DEFAULT_PROJECT, batch.output_file_id, now=NOW)

    assert segment.name not in {blob.name for blob in await unreferenced(store)}
    await store.release_worker_references("another worker")
    assert segment.name not in {blob.name for blob in await unreferenced(store)}
    await store.release_worker_references("w1")
    (freed,) = [blob for blob in await unreferenced(store) if blob.name == segment.name]
    assert freed == Blob(name=segment.name, kind=BlobKind.SEGMENT, bytes=500)


async def test_a_start_releases_the_segments_of_all_workers_and_nothing_else(
    store: Store,
) -> None:
    segments = {name: Segment() for name in ("w1", "w2")}
    batch = await started(store, shards=2)
    for number, (worker, segment) in enumerate(segments.items()):
        shard = await claimed(store, batch, number)
        commit = settling(shard, finished=range(10), segment=segment)
        assert await commits(store, commit, worker=worker) == [True]
    batch = await finalized(store, await moved(store, batch, BatchEvent.ALL_LINES_FINISHED))
    assert batch.output_file_id is not None
    await store.release_worker_references(None)
    free = {blob.name for blob in await unreferenced(store)}
    assert free.isdisjoint(segment.name for segment in segments.values())
    await store.delete_file(DEFAULT_PROJECT, batch.output_file_id, now=NOW)
    free = {blob.name for blob in await unreferenced(store)}
    assert free >= {segment.name for segment in segments.values()}


async def test_a_new_segment_lets_go_of_the_workers_former_one(store: Store) -> None:
    batch, first, second = await started(store), Segment(), Segment()
    shard = await claimed(store, batch)
    early = settling(shard, finished=[0], segment=first)
    late = settling(shard, finished=[0, 1], segment=second)
    assert await commits(store, early) == [True]
    assert await commits(store, late) == [True]
    ended = await finalized(store, await moved(store, batch, BatchEvent.CANCEL_REQUESTED))
    assert ended.output_file_id is not None
    await store.delete_file(DEFAULT_PROJECT, ended.output_file_id, now=NOW)
    free = {blob.name for blob in await unreferenced(store)}
    assert first.name in free
    assert second.name not in free


async def test_a_blob_that_is_free_stays_free_while_batches_are_created_on_its_file(
    store: Store,
) -> None:
    """The race of a create with a delete: whoever wins, no reference appears on a free blob."""

    async def delete_and_look(file_id: FileId, name: BlobName) -> bool:
        await store.delete_file(DEFAULT_PROJECT, file_id, now=NOW)
        return name in {one.name for one in await unreferenced(store)}

    for _ in range(20):
        file, blob = await uploaded(store)
        batch, seen_free = await both(
            store.create_batch(asked_for(file.id)), delete_and_look(file.id, blob.name)
        )
        assert (batch.input_blob is None) == seen_free
        await store.refuse_batch(batch.id, problems=[], now=NOW)
        await store.forget_blobs([blob.name])
