"""A server that ends in the middle of a transaction: the transaction goes on, and so may its bytes.

The store's thread outlives the task that asked (`store/database.py`). Whoever cleans up behind a
cancelled task would delete what the transaction is about to refer to.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest
from sqlalchemy import Connection, Engine

from batchline.domain.ids import DEFAULT_PROJECT, BatchId, BlobName
from batchline.domain.lifecycle import BatchEvent, BatchStatus
from batchline.domain.model import Batch, BlobRange, Purpose
from batchline.service.files import Files
from batchline.service.finalizer import Finalizer
from batchline.service.jobs import Jobs
from batchline.service.planning import InputLimits, Planner
from batchline.store.blobs import LocalBlobs
from batchline.store.database import Database
from batchline.store.engine import open_engine, sqlite_url
from tests.contract.store_rows import NOW, asked_for
from tests.support.inputs import make_lines

T = TypeVar("T")

LINES = 20


class AnyModel:
    """A catalogue of which nothing is known."""

    def known(self) -> bool:
        return False

    def models(self) -> list[str]:
        return []


class Watched(Database):
    """Says when a write, once watched for, has begun on the store's thread."""

    begun: asyncio.Event | None = None

    async def _write(self, change: Callable[[Connection], T], *, step: str) -> T:
        if step not in ("finalize", "batch.start") or self.begun is None:
            return await super()._write(change, step=step)
        loop, begun = asyncio.get_running_loop(), self.begun

        def work() -> T:
            loop.call_soon_threadsafe(begun.set)
            with self._engine.begin() as connection:
                return change(connection)

        return await self._call(work, writes=True)


class Parts:
    """What the two tests need of a server."""

    def __init__(self, directory: Path, store: Watched) -> None:
        (directory / "children").mkdir()
        self.store = store
        self.blobs = LocalBlobs(directory / "blobs")
        self.jobs = Jobs(directory / "children")
        self.planner = Planner(
            store=store,
            blobs=self.blobs,
            jobs=self.jobs,
            models=AnyModel(),
            limits=InputLimits(),
            clock=lambda: NOW,
        )
        self.finalizer = Finalizer(store=store, blobs=self.blobs, jobs=self.jobs, clock=lambda: NOW)

    async def validating(self) -> Batch:
        files = Files(self.store, self.blobs, clock=lambda: NOW)
        async with files.begin(DEFAULT_PROJECT) as upload:
            await upload.write(make_lines(LINES))
            file = await upload.finish(filename="in.jsonl", purpose=Purpose.BATCH)
        return await self.store.create_batch(asked_for(file.id))

    async def cancelled_while_it_commits(
        self, engine: Engine, work: Coroutine[Any, Any, object], batch_id: BatchId
    ) -> Batch:
        """Cancel `work` while its transaction waits for a lock; the batch after the commit."""
        self.store.begun = asyncio.Event()
        task = asyncio.ensure_future(work)
        with engine.begin() as lock:  # BEGIN IMMEDIATE; readers are not kept out
            lock.exec_driver_sql("SELECT 1")
            await self.store.begun.wait()
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        assert task.cancelled()
        await self.store.put_receipt(batch_id, {})  # behind it: one write after the other
        return await self.store.load_batch(batch_id)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return sqlite_url(tmp_path / "batchline.sqlite3")


@pytest.fixture
async def parts(tmp_path: Path, url: str) -> AsyncIterator[Parts]:
    store = await Watched.open(url)
    made = Parts(tmp_path, store)
    yield made
    await made.jobs.close()
    await store.close()


async def test_the_never_run_lines_stay_when_a_cancelled_finalize_commits(
    parts: Parts, url: str
) -> None:
    batch = await parts.validating()
    assert await parts.planner.plan(batch)
    await parts.store.advance_batch(
        batch.id, from_status=BatchStatus.IN_PROGRESS, event=BatchEvent.CANCEL_REQUESTED, now=NOW
    )
    engine = open_engine(url)
    ended = await parts.cancelled_while_it_commits(
        engine, parts.finalizer.finalize(batch.id), batch.id
    )
    engine.dispose()
    assert ended.status is BatchStatus.CANCELLED
    assert ended.error_file_id is not None
    ranges = await parts.store.file_ranges(ended.error_file_id)
    chunks = [chunk async for chunk in parts.blobs.read(ranges, chunk_bytes=1 << 20)]
    assert b"".join(chunks).count(b'"batch_cancelled"') == LINES


async def test_the_plan_stays_when_a_cancelled_start_commits(parts: Parts, url: str) -> None:
    batch = await parts.validating()
    engine = open_engine(url)
    begun = await parts.cancelled_while_it_commits(engine, parts.planner.plan(batch), batch.id)
    engine.dispose()
    assert begun.status is BatchStatus.IN_PROGRESS
    plan = BlobName(begun.plan_blob or "")
    whole = BlobRange(blob=plan, start=0, stop=parts.blobs.path(plan).stat().st_size)
    assert [chunk async for chunk in parts.blobs.read([whole], chunk_bytes=1 << 20)]
