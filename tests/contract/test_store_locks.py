"""Whoever changes a row first is waited for, and what it leaves is what the second one decides on.

The first one is a connection beside the store that has changed a row and not yet committed.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest
from sqlalchemy import Connection, Engine, Update, select, update

from batchline.domain.lifecycle import BatchStatus
from batchline.store.contract import Store
from batchline.store.database import Database
from batchline.store.tables import batch as batch_table
from batchline.store.tables import file as file_table
from batchline.store.tables import project as project_table
from tests.contract.store_rows import (
    NOW,
    asked_for,
    claimed,
    commits,
    final_files,
    finalized,
    settling,
    started,
    uploaded,
    validating,
)

T = TypeVar("T")

# How long a store that does not wait is given to show it. The right ones are never done by then.
SHOW_S = 0.1


async def beside(engine: Engine, change: Update, call: Coroutine[Any, Any, T]) -> T:
    """What `call` gives when `change` was made before it and commits while it waits."""
    with engine.begin() as first:
        first.execute(change)
        second = asyncio.create_task(call)
        await asyncio.wait([second], timeout=SHOW_S)
        assert not second.done(), "it did not wait for the row"
    return await second


def cancelling(batch_id: str) -> Update:
    return (
        update(batch_table)
        .where(batch_table.c.id == batch_id)
        .values(status="cancelling", stopping="cancel")
    )


def cancelled(batch_id: str) -> Update:
    return cancelling(batch_id).values(status="cancelled")


async def test_who_reads_does_not_wait_behind_a_write_that_somebody_holds_up(
    store: Store, engine: Engine
) -> None:
    batch = await started(store)
    with engine.begin() as first:
        first.execute(cancelling(batch.id))
        write = asyncio.create_task(store.put_receipt(batch.id, {"quiet": True}))
        await asyncio.wait([write], timeout=SHOW_S)
        found = await asyncio.wait_for(store.load_batch(batch.id), timeout=5)
        assert not write.done()
        assert (found.status, found.receipt) == (BatchStatus.IN_PROGRESS, None)
    await write
    ended = await store.load_batch(batch.id)
    assert (ended.status, ended.receipt) == (BatchStatus.CANCELLING, {"quiet": True})


async def test_a_claim_that_waited_for_a_cancel_gets_nothing(store: Store, engine: Engine) -> None:
    batch = await started(store)
    shard = await claimed(store, batch)
    again = store.claim_shard(shard.key)
    assert await beside(engine, cancelling(batch.id), again) is None
    assert await commits(store, settling(shard, finished=[0])) == [True]  # its epoch still holds


async def test_a_commit_that_waited_for_the_end_of_its_batch_is_refused(
    store: Store, engine: Engine
) -> None:
    batch = await started(store)
    commit = settling(await claimed(store, batch), finished=[0])
    assert await beside(engine, cancelled(batch.id), commits(store, commit)) == [False]
    assert (await store.load_batch(batch.id)).counts.completed == 0


async def test_a_finalize_that_waited_for_a_cancel_writes_nothing(
    store: Store, engine: Engine
) -> None:
    batch = await started(store)
    with engine.begin() as connection:
        finalizing = update(batch_table).where(batch_table.c.id == batch.id)
        connection.execute(finalizing.values(status="finalizing"))
    batch = await store.load_batch(batch.id)
    ending = store.finalize(
        batch.id, from_status=batch.status, stopping=None, files=final_files(), now=NOW
    )
    assert await beside(engine, cancelling(batch.id), ending) is None
    await finalized(store, await store.load_batch(batch.id))


async def test_a_batch_that_waited_for_the_deletion_of_its_input_takes_no_bytes(
    store: Store, engine: Engine
) -> None:
    file, _ = await uploaded(store)
    deleted = update(file_table).where(file_table.c.id == file.id).values(deleted_at=NOW)
    batch = await beside(engine, deleted, store.create_batch(asked_for(file.id)))
    assert batch.input_blob is None


async def test_a_receipt_that_waited_for_another_keeps_its_keys(
    store: Store, engine: Engine
) -> None:
    batch = await validating(store)
    first = update(batch_table).where(batch_table.c.id == batch.id).values(receipt='{"a": 1}')
    await beside(engine, first, store.put_receipt(batch.id, {"b": 2}))
    assert (await store.load_batch(batch.id)).receipt == {"a": 1, "b": 2}


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
async def test_a_transaction_that_reads_before_it_writes_cannot_be_overtaken(
    store: Database, engine: Engine
) -> None:
    """SQLite would refuse its write at once, and waiting would not help."""
    database = engine.url.database
    assert database is not None

    def read_then_write(connection: Connection) -> None:
        connection.execute(select(project_table)).all()
        with (
            contextlib.closing(sqlite3.connect(database, timeout=0)) as other,
            pytest.raises(sqlite3.OperationalError, match="locked"),
        ):
            other.execute("UPDATE project SET name = 'overtaken'")
        connection.execute(update(project_table).values(name="first"))

    await store._write(read_then_write, step="test")
