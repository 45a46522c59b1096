"""Batches: created, listed, and moved by compare-and-set through the one table."""

from __future__ import annotations

import itertools

import anyio
import pytest
from sqlalchemy import Engine, update
from sqlalchemy.exc import IntegrityError

from batchline.domain import lifecycle
from batchline.domain.errors import NotFound
from batchline.domain.ids import DEFAULT_PROJECT, BatchId, FileId, ProjectId
from batchline.domain.lifecycle import BatchEvent, BatchStatus, Stopping
from batchline.domain.model import (
    DAY_S,
    Batch,
    BlobKind,
    Counts,
    LineProblem,
    PendingShard,
    PlannedShard,
    Purpose,
    ShardKey,
    Usage,
)
from batchline.store.contract import Store
from batchline.store.tables import batch as batch_table
from tests.contract.store_rows import (
    MODEL,
    NOW,
    OTHER_PROJECT,
    asked_for,
    both,
    brought_to,
    claimed,
    finalized,
    fresh_blob,
    let_go,
    moved,
    planned,
    settling,
    started,
    uploaded,
    validating,
)

MOVES = [
    event
    for event in BatchEvent
    if event not in {BatchEvent.VALIDATED, BatchEvent.REFUSED, BatchEvent.FILES_WRITTEN}
]


async def unreferenced(store: Store) -> set[str]:
    """What may go once a sweep has let go of what is hidden."""
    await let_go(store)
    return {blob.name for blob in await store.unreferenced_blobs(limit=100)}


# -- creating and reading --------------------------------------------------------------------------


async def test_a_created_batch_is_validating_with_every_field_as_asked(store: Store) -> None:
    file, blob = await uploaded(store)
    new = asked_for(file.id)
    batch = await store.create_batch(new)
    assert batch == Batch(
        sequence=batch.sequence,
        id=new.id,
        project_id=DEFAULT_PROJECT,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        input_file_id=file.id,
        status=BatchStatus.VALIDATING,
        stopping=None,
        created_at=NOW,
        expires_at=NOW + DAY_S,
        metadata={"b": "2", "a": "ä"},
        input_blob=blob.name,
        input_bytes=blob.bytes,
    )
    assert list(batch.metadata or {}) == ["b", "a"]
    assert await store.get_batch(DEFAULT_PROJECT, new.id) == batch
    assert await store.load_batch(new.id) == batch


async def test_a_batch_can_be_created_on_a_file_that_does_not_exist(store: Store) -> None:
    batch = await store.create_batch(asked_for(FileId("file-none")))
    assert (batch.input_blob, batch.input_bytes) == (None, 0)


async def test_a_batch_takes_no_bytes_from_a_deleted_expired_or_foreign_file(
    store: Store, other_project: ProjectId
) -> None:
    deleted, _ = await uploaded(store)
    await store.delete_file(DEFAULT_PROJECT, deleted.id, now=NOW)
    expired, _ = await uploaded(store, expires_at=NOW)
    foreign, _ = await uploaded(store, project_id=other_project)
    for file in (deleted, expired, foreign):
        assert (await store.create_batch(asked_for(file.id))).input_blob is None


async def test_the_inputs_purpose_does_not_matter_to_the_store(store: Store) -> None:
    file, blob = await uploaded(store, purpose=Purpose.EVALS)
    assert (await store.create_batch(asked_for(file.id))).input_blob == blob.name


async def test_another_projects_batch_looks_like_one_that_never_existed(
    store: Store, other_project: ProjectId
) -> None:
    batch = await validating(store)
    assert await store.get_batch(other_project, batch.id) is None
    assert (await store.list_batches(other_project, after=None, limit=10)).items == []
    with pytest.raises(NotFound):
        await store.list_batches(other_project, after=batch.id, limit=10)


async def test_batches_of_one_second_are_listed_in_pages_newest_first(
    store: Store, other_project: ProjectId
) -> None:
    created = [(await validating(store)).id for _ in range(4)]
    foreign, _ = await uploaded(store, project_id=OTHER_PROJECT)
    await store.create_batch(asked_for(foreign.id, project_id=OTHER_PROJECT))
    order = created[::-1]
    first = await store.list_batches(DEFAULT_PROJECT, after=None, limit=3)
    assert ([batch.id for batch in first.items], first.has_more) == (order[:3], True)
    second = await store.list_batches(DEFAULT_PROJECT, after=order[2], limit=1)
    assert ([batch.id for batch in second.items], second.has_more) == (order[3:], False)
    beyond = await store.list_batches(DEFAULT_PROJECT, after=order[3], limit=3)
    assert (beyond.items, beyond.has_more) == ([], False)


async def test_a_batch_cursor_that_never_existed_is_not_found(store: Store) -> None:
    with pytest.raises(NotFound):
        await store.list_batches(DEFAULT_PROJECT, after=BatchId("batch_none"), limit=1)


async def test_unfinished_batches_are_all_that_are_not_terminal_oldest_first(
    store: Store, other_project: ProjectId
) -> None:
    made = [await brought_to(store, status) for status in BatchStatus]
    foreign = await store.create_batch(asked_for(FileId("none"), project_id=other_project))
    unfinished = await store.unfinished_batches()
    expected = [batch.id for batch in made if batch.status not in lifecycle.TERMINAL]
    assert [batch.id for batch in unfinished] == [*expected, foreign.id]


# -- moving ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", list(BatchStatus))
async def test_an_event_moves_a_batch_exactly_as_the_table_says(
    store: Store, status: BatchStatus
) -> None:
    for event in MOVES:
        before = await brought_to(store, status)
        target = lifecycle.advance(status, event)
        after = await store.advance_batch(before.id, from_status=status, event=event, now=NOW + 99)
        if target is None:
            assert after is None
            assert await store.load_batch(before.id) == before
            continue
        assert after is not None
        assert after == await store.load_batch(before.id)
        assert after.status is target
        assert after.stopping is lifecycle.STOPS.get(event, before.stopping)
        reached = f"{target.value}_at"
        assert getattr(after, reached) == (getattr(before, reached) or NOW + 99)


async def test_a_batch_is_not_moved_from_a_status_that_it_is_not_in(store: Store) -> None:
    for status in BatchStatus:
        batch = await brought_to(store, status)
        for other in lifecycle.sources(BatchEvent.CANCEL_REQUESTED) - {status}:
            moved_batch = await store.advance_batch(
                batch.id, from_status=other, event=BatchEvent.CANCEL_REQUESTED, now=NOW + 99
            )
            assert moved_batch is None
        assert await store.load_batch(batch.id) == batch


async def test_a_repeated_cancel_changes_nothing(store: Store) -> None:
    batch = await brought_to(store, BatchStatus.CANCELLING)
    assert await moved(store, batch, BatchEvent.CANCEL_REQUESTED) == batch
    ended = await finalized(store, batch)
    again = await store.advance_batch(
        ended.id,
        from_status=BatchStatus.CANCELLED,
        event=BatchEvent.CANCEL_REQUESTED,
        now=NOW + 500,
    )
    assert again == ended


async def test_a_cancel_replaces_a_closed_window_and_a_closing_window_never_a_cancel(
    store: Store,
) -> None:
    batch = await moved(store, await started(store), BatchEvent.WINDOW_CLOSED)
    assert (batch.status, batch.stopping) == (BatchStatus.FINALIZING, Stopping.WINDOW)
    batch = await moved(store, batch, BatchEvent.CANCEL_REQUESTED)
    assert (batch.status, batch.stopping) == (BatchStatus.CANCELLING, Stopping.CANCEL)
    closed = await store.advance_batch(
        batch.id, from_status=batch.status, event=BatchEvent.WINDOW_CLOSED, now=NOW
    )
    assert closed is None
    assert (await store.load_batch(batch.id)).stopping is Stopping.CANCEL


async def test_events_that_bring_more_than_a_move_have_their_own_methods(store: Store) -> None:
    batch = await brought_to(store, BatchStatus.FINALIZING)
    for event in set(BatchEvent) - set(MOVES):
        with pytest.raises(ValueError, match="method of its own"):
            await store.advance_batch(batch.id, from_status=batch.status, event=event, now=NOW)
    assert await store.load_batch(batch.id) == batch


async def test_a_batch_that_expires_while_validating_lets_go_of_its_input(store: Store) -> None:
    batch = await validating(store)
    await store.delete_file(DEFAULT_PROJECT, batch.input_file_id, now=NOW)
    batch = await moved(store, batch, BatchEvent.WINDOW_CLOSED)
    assert (batch.status, batch.stopping) == (BatchStatus.EXPIRED, Stopping.WINDOW)
    assert await unreferenced(store) == {batch.input_blob}


async def test_of_fifty_cancels_at_once_one_moves_the_batch(store: Store) -> None:
    batch = await started(store)
    answers: list[Batch | None] = []

    async def cancel() -> None:
        answers.append(
            await store.advance_batch(
                batch.id,
                from_status=BatchStatus.IN_PROGRESS,
                event=BatchEvent.CANCEL_REQUESTED,
                now=NOW + 9,
            )
        )

    async with anyio.create_task_group() as clients:
        for _ in range(50):
            clients.start_soon(cancel)
    assert len(answers) == 50
    assert len([answer for answer in answers if answer is not None]) == 1
    assert (await store.load_batch(batch.id)).status is BatchStatus.CANCELLING


def reachable_states() -> set[tuple[BatchStatus, Stopping | None]]:
    states: set[tuple[BatchStatus, Stopping | None]] = {(BatchStatus.VALIDATING, None)}
    for _ in BatchStatus:
        states |= {
            (target, lifecycle.STOPS.get(event, stopped))
            for source, stopped in states
            for event in BatchEvent
            if (target := lifecycle.advance(source, event, stopped)) is not None
        }
    return states


async def test_the_schema_lets_no_status_have_a_stopping_that_the_table_cannot_give(
    store: Store, engine: Engine
) -> None:
    """If this fails, put the new pair into both the tables and a migration; do not loosen it."""
    reachable = reachable_states()
    batch = await validating(store)
    change = update(batch_table).where(batch_table.c.id == batch.id)
    for status, stopping in itertools.product(BatchStatus, [None, *Stopping]):
        values = {"status": status.value, "stopping": stopping and stopping.value}
        if (status, stopping) in reachable:
            with engine.begin() as connection:
                connection.execute(change.values(values))
        else:
            with pytest.raises(IntegrityError), engine.begin() as connection:
                connection.execute(change.values(values))


# -- refusing and starting -------------------------------------------------------------------------


async def test_a_refused_batch_has_its_problems_and_lets_go_of_its_input(store: Store) -> None:
    batch = await validating(store)
    await store.delete_file(DEFAULT_PROJECT, batch.input_file_id, now=NOW)
    problems = [
        LineProblem(code="invalid_json_line", message="“broken”", line_number=17),
        LineProblem(code="empty_file", message="nothing in it", param="input_file_id"),
    ]
    assert await store.refuse_batch(batch.id, problems=problems, now=NOW + 5)
    refused = await store.load_batch(batch.id)
    assert (refused.status, refused.failed_at) == (BatchStatus.FAILED, NOW + 5)
    assert refused.errors == problems
    assert await unreferenced(store) == {batch.input_blob}


async def test_a_batch_that_is_no_longer_validating_is_neither_refused_nor_started(
    store: Store,
) -> None:
    for status in set(BatchStatus) - {BatchStatus.VALIDATING}:
        batch = await brought_to(store, status)
        assert not await store.refuse_batch(batch.id, problems=[], now=NOW + 99)
        plan = fresh_blob(BlobKind.PLAN)
        assert not await store.start_batch(
            batch.id, plan=plan, shards=planned(3, 5), lines=15, model="x", now=NOW + 99
        )
        assert await store.load_batch(batch.id) == batch
        assert await store.known_blobs([plan.name]) == set()


async def test_a_started_batch_has_its_plan_total_model_and_untouched_shards(store: Store) -> None:
    batch = await validating(store)
    plan = fresh_blob(BlobKind.PLAN)
    shards = [
        PlannedShard(first_entry=0, entries=1_000, model="a"),
        PlannedShard(first_entry=1_000, entries=3, model="b"),
    ]
    assert await store.start_batch(
        batch.id, plan=plan, shards=shards, lines=1_003, model=None, now=NOW + 4
    )
    after = await store.load_batch(batch.id)
    assert (after.status, after.in_progress_at) == (BatchStatus.IN_PROGRESS, NOW + 4)
    assert (after.plan_blob, after.model) == (plan.name, None)
    assert after.counts == Counts(total=1_003)
    assert list(await store.pending_shards(batch.id)) == [
        PendingShard(0, "a", 0),
        PendingShard(1, "b", 0),
    ]
    assert await store.shard_bitmaps(batch.id) == [
        (0, 1_000, b""),
        (1_000, 3, b""),
    ]
    shard = await claimed(store, batch, 1)
    assert (shard.first_entry, shard.entries, shard.model) == (1_000, 3, "b")
    assert (shard.completed, shard.failed, shard.usage, shard.deaths) == (0, 0, Usage(), 0)
    assert await unreferenced(store) == set()


async def test_of_a_start_and_a_cancel_at_once_exactly_one_leaves_validating(
    store: Store,
) -> None:
    for _ in range(10):
        batch = await validating(store)
        outcomes = await both(
            store.start_batch(
                batch.id,
                plan=fresh_blob(BlobKind.PLAN),
                shards=planned(2, 5),
                lines=10,
                model=MODEL,
                now=NOW,
            ),
            store.advance_batch(
                batch.id,
                from_status=BatchStatus.VALIDATING,
                event=BatchEvent.CANCEL_REQUESTED,
                now=NOW,
            ),
        )
        began, cancelled = outcomes
        assert began == (cancelled is None)
        assert len(await store.pending_shards(batch.id)) == (2 if began else 0)


# -- receipts --------------------------------------------------------------------------------------


async def test_receipts_are_merged_key_by_key(store: Store) -> None:
    batch = await validating(store)
    assert batch.receipt is None
    await store.put_receipt(batch.id, {"requested_at": NOW, "acknowledged_ms": {"w1": 1.5}})
    await store.put_receipt(batch.id, {"acknowledged_ms": {"w2": 2.5}, "quiet": True})
    assert (await store.load_batch(batch.id)).receipt == {
        "requested_at": NOW,
        "acknowledged_ms": {"w2": 2.5},
        "quiet": True,
    }


async def test_no_receipt_is_lost_when_many_are_put_at_once(store: Store) -> None:
    batch = await validating(store)
    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(store.put_receipt, batch.id, {f"w{number}": number})
    receipt = (await store.load_batch(batch.id)).receipt
    assert receipt == {f"w{number}": number for number in range(20)}


# -- claiming --------------------------------------------------------------------------------------


async def test_no_shard_is_claimed_once_the_gate_is_closed(store: Store) -> None:
    for status in set(BatchStatus) - {BatchStatus.IN_PROGRESS}:
        batch = await brought_to(store, status)
        assert await store.claim_shard(ShardKey(batch_id=batch.id, number=0)) is None


async def test_a_shard_that_does_not_exist_or_is_settled_is_not_claimed(store: Store) -> None:
    batch = await started(store, shards=2)
    assert await store.claim_shard(ShardKey(batch_id=batch.id, number=2)) is None
    assert await store.claim_shard(ShardKey(batch_id=BatchId("batch_none"), number=0)) is None
    shard = await claimed(store, batch, 0)
    assert await store.commit("w", [settling(shard, finished=range(10))], now=NOW) == [True]
    assert await store.claim_shard(shard.key) is None
    assert list(await store.pending_shards(batch.id)) == [PendingShard(1, MODEL, 0)]


async def test_fifty_claims_at_once_get_fifty_different_epochs(store: Store) -> None:
    batch = await started(store)
    epochs: list[int] = []

    async def claim() -> None:
        epochs.append((await claimed(store, batch)).epoch)

    async with anyio.create_task_group() as tasks:
        for _ in range(50):
            tasks.start_soon(claim)
    assert sorted(epochs) == list(range(1, 51))
