"""Commits: what counts as done, and who may say so."""

from __future__ import annotations

import dataclasses

import anyio
import pytest

from batchline.domain import lifecycle
from batchline.domain.ids import BatchId
from batchline.domain.lifecycle import BatchEvent, BatchStatus
from batchline.domain.model import Counts, PendingShard, ShardCommit, ShardKey, Usage
from batchline.store.contract import Store
from tests.contract.store_rows import (
    MODEL,
    Segment,
    claimed,
    commits,
    finalized,
    moved,
    settling,
    started,
    validating,
)


async def test_an_accepted_commit_replaces_the_shard_and_adds_to_the_batch(store: Store) -> None:
    batch = await started(store, shards=2)
    shard = await claimed(store, batch, 0)
    other = await claimed(store, batch, 1)
    first = settling(shard, finished=[0, 2], failed=[1])
    assert await commits(store, first, settling(other, finished=[9])) == [True, True]
    now_claimed = await claimed(store, batch, 0)
    assert now_claimed == dataclasses.replace(
        shard,
        epoch=shard.epoch + 1,
        settled=first.settled,
        completed=2,
        failed=1,
        usage=Usage(input_tokens=14, total_tokens=14),
    )
    second = settling(now_claimed, finished=[3])
    assert await commits(store, second) == [True]
    after = await store.load_batch(batch.id)
    assert after.counts == Counts(total=20, completed=4, failed=1)
    assert after.usage == Usage(input_tokens=28, total_tokens=28)
    assert await store.shard_bitmaps(batch.id) == [
        (0, 10, bytes([0b1111, 0])),
        (10, 10, bytes([0, 0b10])),
    ]


async def test_a_former_holder_can_no_longer_commit(store: Store) -> None:
    batch = await started(store)
    former = await claimed(store, batch)
    holder = await claimed(store, batch)
    assert await commits(store, settling(former, finished=[0])) == [False]
    assert (await store.load_batch(batch.id)).counts == Counts(total=10)
    assert await commits(store, settling(holder, finished=[0])) == [True]


async def test_an_epoch_that_was_never_given_out_cannot_commit(store: Store) -> None:
    batch = await started(store)
    shard = await claimed(store, batch)
    future = dataclasses.replace(shard, epoch=shard.epoch + 1)
    assert await commits(store, settling(future, finished=[0])) == [False]


@pytest.mark.parametrize("died", [False, True])
async def test_a_fenced_shard_is_nobodys_and_remembers_who_died_on_it(
    store: Store, died: bool
) -> None:
    batch = await started(store, shards=3)
    held = [await claimed(store, batch, number) for number in range(3)]
    await store.fence_shards([held[0].key, held[2].key], died=died)
    answers = await commits(store, *(settling(shard, finished=[0]) for shard in held))
    assert answers == [False, True, False]
    again = [await claimed(store, batch, number) for number in range(3)]
    assert [shard.deaths for shard in again] == [int(died), 0, int(died)]
    assert [shard.epoch for shard in again] == [3, 2, 3]


async def test_fencing_what_does_not_exist_is_harmless(store: Store) -> None:
    batch = await started(store)
    missing = [
        ShardKey(batch_id=batch.id, number=7),
        ShardKey(batch_id=BatchId("batch_none"), number=0),
    ]
    await store.fence_shards(missing, died=True)
    await store.fence_shards([], died=True)
    assert (await claimed(store, batch)).epoch == 1


async def test_a_refused_commit_leaves_nothing_and_the_others_of_its_group_stay(
    store: Store,
) -> None:
    batch, segment, lost = await started(store, shards=2), Segment(), Segment()
    stale = await claimed(store, batch, 0)
    await store.fence_shards([stale.key], died=False)
    held = await claimed(store, batch, 1)
    refused = settling(stale, finished=[0, 1], failed=[2], segment=lost)
    accepted = settling(held, finished=[0], segment=segment)
    assert await commits(store, refused, accepted) == [False, True]
    assert (await store.load_batch(batch.id)).counts == Counts(total=20, completed=1)
    assert await store.known_blobs([segment.name, lost.name]) == {segment.name}
    ended = await finalized(store, await moved(store, batch, BatchEvent.CANCEL_REQUESTED))
    assert ended.output_file_id is not None
    assert ended.error_file_id is None
    assert await store.file_ranges(ended.output_file_id) == [accepted.output]


@pytest.mark.parametrize(
    "event",
    [
        BatchEvent.CANCEL_REQUESTED,
        BatchEvent.WINDOW_CLOSED,
        BatchEvent.INPUT_LOST,
        BatchEvent.ALL_LINES_FINISHED,
    ],
)
async def test_a_line_that_settles_while_its_batch_is_stopping_still_counts(
    store: Store, event: BatchEvent
) -> None:
    batch = await started(store)
    shard = await claimed(store, batch)
    await moved(store, batch, event)
    assert await commits(store, settling(shard, finished=[0])) == [True]
    assert (await store.load_batch(batch.id)).counts == Counts(total=10, completed=1)


@pytest.mark.parametrize("status", sorted(lifecycle.TERMINAL - {BatchStatus.FAILED}))
async def test_nothing_is_committed_to_a_terminal_batch(store: Store, status: BatchStatus) -> None:
    way = {
        BatchStatus.COMPLETED: BatchEvent.ALL_LINES_FINISHED,
        BatchStatus.EXPIRED: BatchEvent.WINDOW_CLOSED,
        BatchStatus.CANCELLED: BatchEvent.CANCEL_REQUESTED,
    }
    batch = await started(store)
    shard = await claimed(store, batch)
    ended = await finalized(store, await moved(store, batch, way[status]))
    assert ended.status is status
    assert await commits(store, settling(shard, finished=[0])) == [False]
    assert await store.load_batch(batch.id) == ended


async def test_a_commit_can_never_unsettle_a_line(store: Store) -> None:
    batch = await started(store)
    shard = await claimed(store, batch)
    assert await commits(store, settling(shard, finished=[0, 1])) == [True]
    assert await commits(store, settling(shard, finished=[2, 3, 4])) == [False]
    assert await store.shard_bitmaps(batch.id) == [(0, 10, bytes([0b11, 0]))]
    assert (await store.load_batch(batch.id)).counts == Counts(total=10, completed=2)


async def test_a_commit_that_is_sent_again_is_accepted_and_counted_once(store: Store) -> None:
    """The worker whose answer was lost sends the same again; its lines must not come twice."""
    batch = await started(store)
    commit = settling(await claimed(store, batch), finished=[0, 1], failed=[5])
    for _ in range(3):
        assert await commits(store, commit) == [True]
    assert await commits(store, commit, commit) == [True, True]
    assert (await store.load_batch(batch.id)).counts == Counts(total=10, completed=2, failed=1)
    ended = await finalized(store, await moved(store, batch, BatchEvent.CANCEL_REQUESTED))
    assert ended.output_file_id is not None
    assert ended.error_file_id is not None
    assert await store.file_ranges(ended.output_file_id) == [commit.output]
    assert await store.file_ranges(ended.error_file_id) == [commit.errors]


@pytest.mark.rule("X11")
async def test_calls_that_were_saved_are_counted_with_the_lines_and_once(store: Store) -> None:
    batch = await started(store)
    assert (await store.load_batch(batch.id)).calls_saved == 0
    shard = await claimed(store, batch)
    first = settling(shard, finished=[0, 1, 2], failed=[5, 6], saved=[1, 2, 6])
    assert await commits(store, first, first) == [True, True]
    assert (await store.load_batch(batch.id)).calls_saved == 3
    stale = settling(await claimed(store, batch), finished=[7, 8], saved=[8])
    again = settling(await claimed(store, batch), finished=[7, 8], saved=[8])
    assert await commits(store, stale, again) == [False, True]
    after = await store.load_batch(batch.id)
    assert (after.calls_saved, after.counts.completed) == (4, 5)


async def test_saved_lines_of_another_size_are_a_defect_of_the_worker(store: Store) -> None:
    batch = await started(store)
    commit = settling(await claimed(store, batch), finished=[0, 1], saved=[1])
    with pytest.raises(ValueError, match="counts and bits differ"):
        await commits(store, dataclasses.replace(commit, saved_lines=b"\2"))


async def test_a_shard_may_be_committed_to_twice_in_one_group(store: Store) -> None:
    batch, segment = await started(store), Segment()
    shard = await claimed(store, batch)
    first = settling(shard, finished=[0], segment=segment)
    second = settling(shard, finished=[0, 1], segment=segment)
    assert await commits(store, first, second) == [True, True]
    assert (await store.load_batch(batch.id)).counts == Counts(total=10, completed=2)


async def test_counts_that_do_not_fit_the_bits_are_a_defect_and_write_nothing(
    store: Store,
) -> None:
    batch = await started(store, shards=2)
    good = settling(await claimed(store, batch, 0), finished=[0])
    bad = settling(await claimed(store, batch, 1), finished=[0])
    for wrong in (
        dataclasses.replace(bad, completed=2),
        dataclasses.replace(bad, settled=b"\x01"),
        dataclasses.replace(bad, settled=b"\x01\x00\x00"),
    ):
        with pytest.raises(ValueError, match="counts and bits differ"):
            await commits(store, good, wrong)
    assert (await store.load_batch(batch.id)).counts == Counts(total=20)


async def test_failed_lines_that_do_not_fit_the_counts_are_a_defect_and_write_nothing(
    store: Store,
) -> None:
    """They are what would be taken back if the range were damaged."""
    batch = await started(store)
    bad = settling(await claimed(store, batch), finished=[0], failed=[1])
    for failed_lines in (b"\x00\x00", b"\x03\x00", b"\x04\x00"):
        with pytest.raises(ValueError, match="not the lines that failed"):
            await commits(store, dataclasses.replace(bad, failed_lines=failed_lines))
    assert (await store.load_batch(batch.id)).counts == Counts(total=10)


async def test_a_commit_to_an_unknown_shard_or_batch_is_refused(store: Store) -> None:
    batch = await started(store)
    shard = await claimed(store, batch)
    for key in (
        ShardKey(batch_id=batch.id, number=5),
        ShardKey(batch_id=BatchId("batch_none"), number=0),
        ShardKey(batch_id=(await validating(store)).id, number=0),
    ):
        stray = settling(dataclasses.replace(shard, key=key), finished=[0])
        assert await commits(store, stray) == [False]
    assert await commits(store) == []


async def test_of_fifty_commits_under_fifty_claims_at_once_only_the_last_claim_writes(
    store: Store,
) -> None:
    batch = await started(store)
    claims = [await claimed(store, batch) for _ in range(50)]
    answers: dict[int, bool] = {}

    async def commit(one: ShardCommit) -> None:
        (answers[one.epoch],) = await commits(store, one, worker=f"w{one.epoch}")

    async with anyio.create_task_group() as workers:
        for shard in claims:
            workers.start_soon(commit, settling(shard, finished=[shard.epoch % 10]))
    assert [epoch for epoch, accepted in answers.items() if accepted] == [claims[-1].epoch]
    assert (await store.load_batch(batch.id)).counts == Counts(total=10, completed=1)


async def test_workers_that_commit_to_the_same_batches_at_once_lose_nothing(
    store: Store,
) -> None:
    """Groups name the batches in opposite orders, which is how transactions wait in a circle."""
    batches = [await started(store, shards=8) for _ in range(3)]

    async def work(number: int) -> None:
        segment = Segment()
        held = [await claimed(store, batch, number) for batch in batches]
        if number % 2:
            held.reverse()
        for count in range(1, 6):
            group = [settling(shard, finished=range(count), segment=segment) for shard in held]
            answers = await commits(store, *group, worker=f"w{number}")
            assert answers == [True] * 3

    async with anyio.create_task_group() as workers:
        for number in range(8):
            workers.start_soon(work, number)
    for batch in batches:
        after = await store.load_batch(batch.id)
        assert after.counts == Counts(total=80, completed=40)
        assert after.usage == Usage(input_tokens=280, total_tokens=280)


async def test_commits_beside_a_cancel_and_its_finalize_are_either_in_the_file_or_refused(
    store: Store,
) -> None:
    batch = await started(store, shards=20)
    held = [await claimed(store, batch, number) for number in range(20)]
    outcomes: list[tuple[ShardCommit, bool]] = []

    async def commit(one: ShardCommit) -> None:
        (accepted,) = await commits(store, one, worker=f"w{one.key.number}")
        outcomes.append((one, accepted))

    async def cancel() -> None:
        await finalized(store, await moved(store, batch, BatchEvent.CANCEL_REQUESTED))

    async with anyio.create_task_group() as tasks:
        for shard in held[:10]:
            tasks.start_soon(commit, settling(shard, finished=[0]))
        tasks.start_soon(cancel)
        for shard in held[10:]:
            tasks.start_soon(commit, settling(shard, finished=[0]))
    after = await store.load_batch(batch.id)
    accepted = [one for one, was_accepted in outcomes if was_accepted]
    assert after.counts == Counts(total=200, completed=len(accepted))
    ranges = [] if after.output_file_id is None else await store.file_ranges(after.output_file_id)
    assert sorted(part.blob for part in ranges) == sorted(
        one.output.blob for one in accepted if one.output is not None
    )


async def test_pending_shards_are_those_with_an_unsettled_line(store: Store) -> None:
    batch = await started(store, shards=3)
    assert list(await store.pending_shards(batch.id)) == [
        PendingShard(number, MODEL, 0) for number in (0, 1, 2)
    ]
    whole = settling(await claimed(store, batch, 1), finished=range(5), failed=range(5, 10))
    part = settling(await claimed(store, batch, 2), finished=range(9))
    assert await commits(store, whole, part) == [True, True]
    assert list(await store.pending_shards(batch.id)) == [
        PendingShard(number, MODEL, 0) for number in (0, 2)
    ]
    assert [entry for entry, _, _ in await store.shard_bitmaps(batch.id)] == [0, 20]
    assert list(await store.pending_shards(BatchId("batch_none"))) == []
