"""What a start and a sweep do to bytes: those that nobody needs go, all others stay."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import pytest

from batchline.domain.ids import DEFAULT_PROJECT
from batchline.domain.lifecycle import BatchEvent
from batchline.domain.model import Blob, BlobKind
from batchline.service.maintenance import Maintenance
from batchline.store.blobs import LocalBlobs
from batchline.store.database import Database
from tests.contract.store_rows import (
    NOW,
    asked_for,
    claimed,
    commits,
    final_files,
    finalized,
    let_go,
    moved,
    settling,
    started,
    uploaded,
)


def with_bytes(blobs: LocalBlobs, blob: Blob) -> Blob:
    """Put something where a row says that bytes are."""
    blobs.path(blob.name).write_bytes(b"x")
    return blob


async def test_a_start_removes_blobs_without_a_row_and_keeps_the_others(
    store: Database, blobs: LocalBlobs
) -> None:
    writer = blobs.writer(BlobKind.INPUT)
    await writer.write(b"a crash came before the row")
    orphan = await writer.finish()
    _, known = await uploaded(store)
    with_bytes(blobs, known)
    maintenance = Maintenance(store=store, blobs=blobs)
    assert await maintenance.recover() == 1
    assert not blobs.path(orphan.name).exists()
    assert blobs.path(known.name).exists()
    assert await maintenance.recover() == 0


async def test_a_start_removes_unfinished_bytes(store: Database, blobs: LocalBlobs) -> None:
    blobs.scratch().write_bytes(b"an upload that was never finished")
    assert await Maintenance(store=store, blobs=blobs).recover() == 0
    assert list(blobs.scratch().parent.iterdir()) == []


async def test_a_start_lets_go_of_what_the_workers_of_an_earlier_server_had_open(
    store: Database, blobs: LocalBlobs
) -> None:
    batch = await started(store)
    commit = settling(await claimed(store, batch), finished=range(10))
    assert commit.output is not None
    assert await commits(store, commit) == [True]
    segment = blobs.path(commit.output.blob)
    segment.write_bytes(b"x" * commit.output.stop)
    files = final_files()
    await finalized(store, await moved(store, batch, BatchEvent.ALL_LINES_FINISHED), files)
    assert await store.delete_file(DEFAULT_PROJECT, files.output_id, now=NOW)
    maintenance = Maintenance(store=store, blobs=blobs, clock=lambda: NOW)
    await maintenance.sweep()
    assert segment.exists()  # its worker may be about to append to it
    assert await maintenance.recover() == 0
    await maintenance.sweep()
    assert not segment.exists()


async def test_a_sweep_removes_the_bytes_of_a_deleted_file_and_no_others(
    store: Database, blobs: LocalBlobs
) -> None:
    deleted, free = await uploaded(store)
    running_on, needed = await uploaded(store)
    _, used = await uploaded(store)
    for blob in (free, needed, used):
        with_bytes(blobs, blob)
    await store.create_batch(asked_for(running_on.id))
    for file in (deleted, running_on):
        assert await store.delete_file(DEFAULT_PROJECT, file.id, now=NOW)
    await Maintenance(store=store, blobs=blobs, clock=lambda: NOW).sweep()
    assert not blobs.path(free.name).exists()
    assert blobs.path(needed.name).exists()
    assert blobs.path(used.name).exists()
    assert await store.known_blobs([free.name, needed.name, used.name]) == {needed.name, used.name}


async def test_a_sweep_removes_the_bytes_of_an_expired_file(
    store: Database, blobs: LocalBlobs
) -> None:
    file, blob = await uploaded(store, expires_at=NOW + 10)
    with_bytes(blobs, blob)
    await Maintenance(store=store, blobs=blobs, clock=lambda: NOW + 9).sweep()
    assert blobs.path(blob.name).exists()
    await Maintenance(store=store, blobs=blobs, clock=lambda: NOW + 10).sweep()
    assert not blobs.path(blob.name).exists()
    assert await store.get_file(DEFAULT_PROJECT, file.id, now=NOW) is None


async def test_bytes_stay_while_somebody_holds_them_and_go_afterwards(
    store: Database, blobs: LocalBlobs
) -> None:
    file, blob = await uploaded(store)
    with_bytes(blobs, blob)
    maintenance = Maintenance(store=store, blobs=blobs, clock=lambda: NOW)
    with maintenance.deletion.held():
        with maintenance.deletion.held():
            assert await store.delete_file(DEFAULT_PROJECT, file.id, now=NOW)
        await maintenance.sweep()  # the first hold is there still
        assert blobs.path(blob.name).exists()
        assert await store.known_blobs([blob.name]) == {blob.name}
    await maintenance.sweep()
    assert not blobs.path(blob.name).exists()
    assert await store.known_blobs([blob.name]) == set()


async def test_a_hold_that_begins_while_a_sweep_looks_is_kept(
    store: Database, blobs: LocalBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the sweep then finds may have been let go of after the hold began."""
    file, blob = await uploaded(store)
    with_bytes(blobs, blob)
    maintenance = Maintenance(store=store, blobs=blobs, clock=lambda: NOW)
    look = store.unreferenced_blobs
    with ExitStack() as holding:

        async def looking(*, limit: int) -> Sequence[Blob]:
            holding.enter_context(maintenance.deletion.held())
            assert await store.delete_file(DEFAULT_PROJECT, file.id, now=NOW)
            await let_go(store)
            return await look(limit=limit)

        monkeypatch.setattr(store, "unreferenced_blobs", looking)
        await maintenance.sweep()
        assert blobs.path(blob.name).exists()
