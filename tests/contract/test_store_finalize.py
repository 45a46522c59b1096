"""Finalize: commits become files and the batch ends, all of it or nothing."""

from __future__ import annotations

import time

import anyio
import pytest
from sqlalchemy import Engine, func, insert, select

from batchline.domain.ids import DEFAULT_PROJECT
from batchline.domain.lifecycle import BatchEvent, BatchStatus, Stopping
from batchline.domain.model import Batch, BlobKind, BlobRange, File, Purpose
from batchline.store.contract import Store
from batchline.store.tables import batch as batch_table
from batchline.store.tables import blob, blob_reference, segment_commit
from tests.contract.store_rows import (
    NOW,
    Segment,
    both,
    brought_to,
    claimed,
    commits,
    final_files,
    finalized,
    fresh_blob,
    let_go,
    moved,
    settling,
    started,
    validating,
)


async def unreferenced(store: Store) -> set[str]:
    """What may go once a sweep has let go of what is hidden."""
    await let_go(store)
    return {one.name for one in await store.unreferenced_blobs(limit=1_000)}


async def test_the_files_are_the_committed_ranges_in_order_and_then_the_lines_never_run(
    store: Store, engine: Engine
) -> None:
    batch = await started(store, shards=2)
    one = settling(await claimed(store, batch, 0), finished=[0, 1], failed=[2])
    two = settling(await claimed(store, batch, 1), finished=[4], failed=[5])
    assert await commits(store, one, worker="w1") == [True]
    assert await commits(store, two, worker="w2") == [True]
    never_run = fresh_blob(BlobKind.NEVER_RUN, size=333)
    files = final_files(never_run=never_run, expires_at=NOW + 777)
    ended = await finalized(store, await moved(store, batch, BatchEvent.CANCEL_REQUESTED), files)

    assert (ended.status, ended.cancelled_at) == (BatchStatus.CANCELLED, NOW + 3)
    assert (ended.output_file_id, ended.error_file_id) == (files.output_id, files.error_id)
    assert await store.file_ranges(files.output_id) == [one.output, two.output]
    assert await store.file_ranges(files.error_id) == [
        one.errors,
        two.errors,
        BlobRange(blob=never_run.name, start=0, stop=333),
    ]
    assert await store.get_file(DEFAULT_PROJECT, files.output_id, now=NOW) == File(
        id=files.output_id,
        project_id=DEFAULT_PROJECT,
        purpose=Purpose.BATCH_OUTPUT,
        filename="output.jsonl",
        bytes=150,
        created_at=NOW + 3,
        expires_at=NOW + 777,
    )
    errors = await store.get_file(DEFAULT_PROJECT, files.error_id, now=NOW)
    assert errors is not None
    assert (errors.bytes, errors.filename, errors.purpose) == (
        20 + 20 + 333,
        "errors.jsonl",
        Purpose.BATCH_OUTPUT,
    )
    with engine.begin() as connection:
        assert connection.scalar(select(func.count()).select_from(segment_commit)) == 0


@pytest.mark.parametrize(
    ("event", "status"),
    [
        (BatchEvent.ALL_LINES_FINISHED, BatchStatus.COMPLETED),
        (BatchEvent.WINDOW_CLOSED, BatchStatus.EXPIRED),
        (BatchEvent.INPUT_LOST, BatchStatus.FAILED),
        (BatchEvent.CANCEL_REQUESTED, BatchStatus.CANCELLED),
    ],
)
async def test_a_batch_ends_by_what_stopped_it(
    store: Store, event: BatchEvent, status: BatchStatus
) -> None:
    ended = await finalized(store, await moved(store, await started(store), event))
    assert ended.status is status
    assert getattr(ended, f"{status.value}_at") == NOW + 3


async def test_no_file_is_created_for_which_there_is_no_byte(store: Store) -> None:
    batch = await started(store)
    only_good = settling(await claimed(store, batch), finished=range(10))
    assert await commits(store, only_good) == [True]
    files = final_files(never_run=fresh_blob(BlobKind.NEVER_RUN, size=0))
    ended = await finalized(store, await moved(store, batch, BatchEvent.ALL_LINES_FINISHED), files)
    assert (ended.output_file_id, ended.error_file_id) == (files.output_id, None)
    assert await store.get_file(DEFAULT_PROJECT, files.error_id, now=NOW) is None


async def test_a_batch_cancelled_while_validating_ends_without_files(store: Store) -> None:
    batch = await moved(store, await validating(store), BatchEvent.CANCEL_REQUESTED)
    await store.delete_file(DEFAULT_PROJECT, batch.input_file_id, now=NOW)
    ended = await finalized(store, batch)
    assert ended.status is BatchStatus.CANCELLED
    assert (ended.output_file_id, ended.error_file_id) == (None, None)
    assert await unreferenced(store) == {batch.input_blob}


async def test_input_and_plan_go_with_the_batch_and_segments_with_the_files(
    store: Store,
) -> None:
    batch, segment = await started(store), Segment()
    commit = settling(await claimed(store, batch), finished=[0], failed=[1], segment=segment)
    assert await commits(store, commit) == [True]
    await store.delete_file(DEFAULT_PROJECT, batch.input_file_id, now=NOW)
    assert await unreferenced(store) == set()

    never_run = fresh_blob(BlobKind.NEVER_RUN)
    files = final_files(never_run=never_run)
    await finalized(store, await moved(store, batch, BatchEvent.CANCEL_REQUESTED), files)
    await store.release_worker_references(None)
    assert await unreferenced(store) == {batch.input_blob, batch.plan_blob}
    await store.delete_file(DEFAULT_PROJECT, files.output_id, now=NOW)
    assert segment.name not in await unreferenced(store)  # the error file has some of it
    await store.delete_file(DEFAULT_PROJECT, files.error_id, now=NOW)
    assert await unreferenced(store) >= {segment.name, never_run.name}


async def refused_finalize(
    store: Store, batch: Batch, from_status: BatchStatus, stopping: Stopping | None
) -> None:
    before = await store.load_batch(batch.id)
    never_run = fresh_blob(BlobKind.NEVER_RUN)
    files = final_files(never_run=never_run)
    ended = await store.finalize(
        batch.id, from_status=from_status, stopping=stopping, files=files, now=NOW + 9
    )
    assert ended is None
    assert await store.load_batch(batch.id) == before
    assert await store.get_file(DEFAULT_PROJECT, files.output_id, now=NOW) is None
    assert await store.get_file(DEFAULT_PROJECT, files.error_id, now=NOW) is None
    assert await store.known_blobs([never_run.name]) == set()


async def test_a_cancel_that_came_first_makes_finalize_write_nothing(store: Store) -> None:
    batch = await started(store)
    assert await commits(store, settling(await claimed(store, batch), finished=[0])) == [True]
    finalizing = await moved(store, batch, BatchEvent.ALL_LINES_FINISHED)
    cancelling = await moved(store, finalizing, BatchEvent.CANCEL_REQUESTED)
    await refused_finalize(store, batch, finalizing.status, finalizing.stopping)
    ended = await finalized(store, cancelling)
    assert ended.status is BatchStatus.CANCELLED
    assert ended.output_file_id is not None


@pytest.mark.parametrize(
    "event",
    [BatchEvent.ALL_LINES_FINISHED, BatchEvent.WINDOW_CLOSED, BatchEvent.INPUT_LOST],
)
async def test_finalize_needs_to_know_what_stopped_the_batch(
    store: Store, event: BatchEvent
) -> None:
    batch = await moved(store, await started(store), event)
    for believed in {None, *Stopping} - {batch.stopping}:
        await refused_finalize(store, batch, batch.status, believed)
    await finalized(store, batch)


async def test_only_a_batch_that_is_finalizing_or_cancelling_is_finalized(store: Store) -> None:
    ends = {BatchStatus.FINALIZING, BatchStatus.CANCELLING}
    for status in BatchStatus:
        batch = await brought_to(store, status)
        for believed in set(BatchStatus) - ({status} & ends):
            await refused_finalize(store, batch, believed, batch.stopping)


async def test_of_twenty_finalizes_at_once_one_writes_the_files(store: Store) -> None:
    batch = await started(store)
    assert await commits(store, settling(await claimed(store, batch), finished=[0])) == [True]
    batch = await moved(store, batch, BatchEvent.ALL_LINES_FINISHED)
    answers: list[Batch | None] = []

    async def finalize() -> None:
        answers.append(
            await store.finalize(
                batch.id,
                from_status=batch.status,
                stopping=batch.stopping,
                files=final_files(),
                now=NOW + 3,
            )
        )

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(finalize)
    (ended,) = [answer for answer in answers if answer is not None]
    page = await store.list_files(
        DEFAULT_PROJECT, purpose="batch_output", after=None, limit=50, ascending=False, now=NOW
    )
    assert [file.id for file in page.items] == [ended.output_file_id]


async def test_a_finalize_beside_a_cancel_ends_in_one_of_the_two_ways(store: Store) -> None:
    for _ in range(10):
        batch = await moved(store, await started(store), BatchEvent.ALL_LINES_FINISHED)
        ended, cancelled = await both(
            store.finalize(
                batch.id,
                from_status=batch.status,
                stopping=None,
                files=final_files(),
                now=NOW + 3,
            ),
            store.advance_batch(
                batch.id,
                from_status=batch.status,
                event=BatchEvent.CANCEL_REQUESTED,
                now=NOW + 3,
            ),
        )
        after = await store.load_batch(batch.id)
        assert (ended is None) != (cancelled is None)
        assert after == (ended or cancelled)
        assert after.status is (BatchStatus.CANCELLING if cancelled else BatchStatus.COMPLETED)


async def test_twenty_thousand_commits_are_finalized_in_under_a_second(
    store: Store, engine: Engine
) -> None:
    batch = await started(store)
    segments = [Segment() for _ in range(50)]
    with engine.begin() as connection:
        sequence = connection.scalar(
            select(batch_table.c.sequence).where(batch_table.c.id == batch.id)
        )
        connection.execute(
            insert(blob),
            [
                {"name": one.name, "kind": "segment", "bytes": 9, "created_at": NOW}
                for one in segments
            ],
        )
        connection.execute(
            insert(blob_reference),
            [{"blob_name": one.name, "holder": batch.id} for one in segments],
        )
        connection.execute(
            insert(segment_commit),
            [
                {
                    "batch_sequence": sequence,
                    "kind": "output",
                    "blob_name": segments[number % 50].name,
                    "start": number,
                    "stop": number + 1,
                    "crc": 1,
                    "begin": number,
                }
                for number in range(20_000)
            ],
        )
    batch = await moved(store, batch, BatchEvent.ALL_LINES_FINISHED)
    began = time.process_time()  # of CPU: the machine may be busy with other things
    ended = await finalized(store, batch)
    assert time.process_time() - began < 1.0
    assert ended.output_file_id is not None
    assert len(await store.file_ranges(ended.output_file_id)) == 20_000
