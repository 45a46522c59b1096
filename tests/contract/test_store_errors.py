"""What may go wrong below the store, and what its callers hear of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text

from batchline import telemetry
from batchline.domain.errors import StorageFull, StoreUnavailable
from batchline.domain.ids import DEFAULT_PROJECT
from batchline.domain.lifecycle import BatchEvent, BatchStatus
from batchline.domain.model import Batch, BlobKind, File, Shard
from batchline.store import engine as engine_module
from batchline.store import files
from batchline.store.contract import NewBatch, Store
from batchline.store.database import Database
from batchline.store.engine import sqlite_url
from tests.contract.store_rows import (
    NOW,
    asked_for,
    brought_to,
    claimed,
    commits,
    finalized,
    fresh_blob,
    fresh_file,
    moved,
    planned,
    settling,
    started,
    uploaded,
)


@pytest.fixture
def armed() -> Iterator[None]:
    yield
    telemetry.arm("")


async def test_what_was_written_is_there_after_a_reopen(store: Database, store_url: str) -> None:
    batch = await started(store)
    commit = settling(await claimed(store, batch), finished=[0])
    assert await commits(store, commit) == [True]
    before = await store.load_batch(batch.id)
    await store.close()
    again = await Database.open(store_url)
    try:
        assert await again.unfinished_batches() == [before]
        assert await again.shard_bitmaps(batch.id) == [(0, 10, commit.settled)]
    finally:
        await again.close()


async def created_in_turn(store: Store, wanted: Sequence[NewBatch]) -> None:
    for new in wanted:
        await store.create_batch(new)


async def test_a_full_disk_under_sqlite_is_storage_full_and_half_does_nothing(
    small_disk: Path,
) -> None:
    store = await Database.open(sqlite_url(small_disk / "batchline.db"))
    try:
        batch = await started(store)
        held = await claimed(store, batch)
        filler = small_disk / "filler"
        with pytest.raises(OSError, match="No space left"):
            filler.write_bytes(b"z" * 4 * 1024 * 1024)
        wanted = [asked_for(batch.input_file_id) for _ in range(1_000)]
        with pytest.raises(StorageFull):
            await created_in_turn(store, wanted)
        created = (await store.unfinished_batches())[1:]
        assert [one.id for one in created] == [one.id for one in wanted[: len(created)]]
        last = wanted[len(created)]
        assert await store.get_batch(DEFAULT_PROJECT, last.id) is None
        filler.unlink()
        assert await commits(store, settling(held, finished=[0])) == [True]
        assert (await store.create_batch(last)).status is BatchStatus.VALIDATING
    finally:
        await store.close()


@pytest.mark.parametrize("store_url", ["postgres"], indirect=True)
@pytest.mark.postgres
async def test_a_full_disk_under_postgres_is_storage_full(store: Database, engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(
            text(
                "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS"
                " $$ BEGIN RAISE EXCEPTION 'disk' USING ERRCODE = '53100'; END $$"
            )
        )
        connection.execute(
            text(
                "CREATE TRIGGER full_disk BEFORE INSERT ON file_range"
                " FOR EACH ROW EXECUTE FUNCTION full_disk()"
            )
        )
    file, blob = fresh_file(), fresh_blob()
    with pytest.raises(StorageFull):
        await store.create_file(file, blob)
    assert await store.get_file(DEFAULT_PROJECT, file.id, now=NOW) is None
    assert await store.known_blobs([blob.name]) == set()


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
async def test_a_database_that_stays_locked_is_unavailable_until_it_is_free(
    store: Database, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store._read(lambda c: c.exec_driver_sql("PRAGMA busy_timeout = 1").close())
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE project SET name = 'held'")
        with pytest.raises(StoreUnavailable):
            await uploaded(store)
        page = await store.list_batches(DEFAULT_PROJECT, after=None, limit=1)
        assert page.items == []  # readers do not wait for writers
    await uploaded(store)


@pytest.mark.parametrize("store_url", ["postgres"], indirect=True)
@pytest.mark.postgres
async def test_connections_that_the_server_closed_are_replaced(
    store: Database, engine: Engine
) -> None:
    file, _ = await uploaded(store)
    with engine.begin() as connection:
        connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )
    assert await store.get_file(DEFAULT_PROJECT, file.id, now=NOW) == file


@pytest.mark.parametrize("store_url", ["postgres"], indirect=True)
@pytest.mark.postgres
async def test_a_connection_that_breaks_in_a_transaction_is_unavailable_and_wrote_nothing(
    store: Database,
) -> None:
    file, blob = fresh_file(), fresh_blob()

    def break_it(connection: Connection) -> None:
        files.create(connection, file, blob)
        connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    with pytest.raises(StoreUnavailable):
        await store._write(break_it, step="test")
    assert await store.get_file(DEFAULT_PROJECT, file.id, now=NOW) is None


@pytest.mark.parametrize("store_url", ["postgres"], indirect=True)
@pytest.mark.postgres
@pytest.mark.parametrize(("failures", "succeeds"), [(1, True), (2, False)])
async def test_a_deadlock_is_tried_again_once(
    store: Database, failures: int, succeeds: bool
) -> None:
    tries = 0

    def deadlock(connection: Connection) -> str:
        nonlocal tries
        tries += 1
        if tries <= failures:
            connection.execute(
                text("DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '40P01'; END $$")
            )
        return "done"

    if succeeds:
        assert await store._write(deadlock, step="test") == "done"
    else:
        with pytest.raises(StoreUnavailable):
            await store._write(deadlock, step="test")
    assert tries == 2


async def test_a_caller_that_is_cancelled_leaves_a_whole_transaction(
    store: Database, store_url: str
) -> None:
    file, blob = fresh_file(), fresh_blob()
    inside, go_on = threading.Event(), threading.Event()

    def slow(connection: Connection) -> None:
        files.create(connection, file, blob)
        inside.set()
        assert go_on.wait(10)

    writing = asyncio.create_task(store._write(slow, step="test"))
    await asyncio.to_thread(inside.wait, 10)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    go_on.set()
    await store.close()  # waits for what runs
    again = await Database.open(store_url)
    assert await again.get_file(DEFAULT_PROJECT, file.id, now=NOW) == file
    await again.close()


async def test_close_gives_back_every_connection(store: Database, engine: Engine) -> None:
    await asyncio.gather(*(store.unfinished_batches() for _ in range(20)))
    await store.close()
    for one in (store._engine, store._reader):
        assert one.pool.status().find("Connections in pool: 0") >= 0


def steps(
    store: Store, batch: Batch, held: Shard, file: File, new: NewBatch
) -> dict[str, Callable[[], Coroutine[Any, Any, object]]]:
    plan = fresh_blob(BlobKind.PLAN)
    return {
        "file.create": lambda: store.create_file(file, fresh_blob()),
        "batch.create": lambda: store.create_batch(new),
        "batch.start": lambda: store.start_batch(
            batch.id, plan=plan, shards=planned(1, 1), lines=1, model=None, now=NOW
        ),
        "refuse": lambda: store.refuse_batch(batch.id, problems=[], now=NOW),
        "cancel": lambda: moved(store, batch, BatchEvent.CANCEL_REQUESTED),
        "commit": lambda: commits(store, settling(held, finished=[0])),
        "finalize": lambda: finalized(store, batch),
    }


@pytest.mark.parametrize(
    ("step", "status"),
    [
        ("file.create", BatchStatus.IN_PROGRESS),
        ("batch.create", BatchStatus.IN_PROGRESS),
        ("batch.start", BatchStatus.VALIDATING),
        ("refuse", BatchStatus.VALIDATING),
        ("cancel", BatchStatus.IN_PROGRESS),
        ("commit", BatchStatus.IN_PROGRESS),
        ("finalize", BatchStatus.CANCELLING),
    ],
)
async def test_a_durable_step_that_fails_has_written_nothing_unless_it_had_committed(
    store: Database, armed: None, step: str, status: BatchStatus
) -> None:
    held = await claimed(store, await started(store))
    for moment in ("before", "inside", "after"):
        telemetry.arm("")
        batch = await store.load_batch(held.key.batch_id)
        if step != "commit":
            batch = await brought_to(store, status)
        file, new = fresh_file(), asked_for(batch.input_file_id)
        telemetry.arm(f"{step}.{moment}=enospc")
        with pytest.raises(StorageFull):
            await steps(store, batch, held, file, new)[step]()
        written = (
            await store.get_file(DEFAULT_PROJECT, file.id, now=NOW) is not None,
            await store.get_batch(DEFAULT_PROJECT, new.id) is not None,
            await store.load_batch(batch.id) != batch,
        )
        assert any(written) == (moment == "after")


def test_only_faults_of_the_database_are_translated() -> None:
    assert engine_module.translated(ValueError()) is None
    assert isinstance(engine_module.translated(OSError(28, "full")), StorageFull)
    assert isinstance(engine_module.translated(OSError(5, "I/O")), StoreUnavailable)
