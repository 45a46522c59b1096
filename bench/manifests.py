"""Files of very many ranges: what a download and a page of results cost, beside what they once did.

The batch of a slow backend has a range for every few lines. The whole list of them, and a sum over
all of them for each page, is what was; it is measured in the same run, on the same database.
SQLite counts its own steps, Python its own memory: both are the same on every machine.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
import tracemalloc
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, cast

import google_crc32c
from sqlalchemy import Connection, Engine, event, insert, text

from batchline.domain.ids import DEFAULT_PROJECT, BatchId, BlobName, FileId
from batchline.domain.model import BlobRange
from batchline.service.batches import Batches, BatchRunner
from batchline.service.files import Files
from batchline.service.results import CHUNK_BYTES, Results
from batchline.store import outputs
from batchline.store.blobs import LocalBlobs
from batchline.store.database import Database
from batchline.store.engine import open_engine, sqlite_url
from batchline.store.tables import batch, file, file_range, segment_commit
from bench.report import Floor, Measurement, Row, Table
from bench.rig import Rig

RANGES: Final = 500_000
SIZE: Final = 40  # bytes of each
NOW: Final = 1_000
PAGE_BYTES: Final = 20 * SIZE
MOST_KIB: Final = 2_048.0  # of a download: 256 KiB are a chunk, of which three may be there at once
_STEPS: Final = 10  # of SQLite, at a time

_RUNNING, _ENDED = BatchId("batch_running"), BatchId("batch_ended")
_FILE: Final = FileId("file-output")

# What was: offsets are sums over all ranges.
_OLD_PAGE: Final = """
SELECT * FROM (
    SELECT *, SUM(stop - start) OVER (ORDER BY place) AS "end" FROM (
        SELECT c.sequence AS place, c.blob_name, c.start, c.stop, c.crc FROM segment_commit c
            JOIN batch b ON b.sequence = c.batch_sequence
            WHERE b.id = :batch AND c.kind = 'output'
        UNION ALL SELECT r.position, r.blob_name, r.start, r.stop, r.crc FROM file_range r
            JOIN file f ON f.sequence = r.file_sequence JOIN batch b ON b.output_file_id = f.id
            WHERE b.id = :batch AND f.deleted_at IS NULL
    )
) WHERE "end" > :after AND "end" - (stop - start) < :after + :size ORDER BY "end"
"""
_OLD_MANIFEST: Final = """
SELECT r.blob_name, r.start, r.stop, r.crc FROM file_range r
    JOIN file f ON f.sequence = r.file_sequence WHERE f.id = :file ORDER BY r.position
"""


@dataclass(frozen=True, slots=True)
class _Stored:
    """A running and an ended batch, each with an output of so many ranges."""

    store: Database
    blobs: LocalBlobs
    engine: Engine
    ranges: int


def measure(rig: Rig) -> Measurement:
    """All of it; a smaller size takes fewer ranges."""
    folder = rig.work / "manifests"
    folder.mkdir()
    return asyncio.run(_measure(folder, rig.size.lines(RANGES)))


async def _measure(folder: Path, ranges: int) -> Measurement:
    blobs = LocalBlobs(folder / "blobs")
    url = sqlite_url(folder / "database")
    store = await Database.open(url)
    engine = open_engine(url)
    stored = _Stored(store, blobs, engine, ranges)
    try:
        _fill(stored)
        pages = _pages(stored)
        downloads = await _downloads(stored)
    finally:
        await store.close()
        engine.dispose()
    steps = [int(row["steps, by places"]) for row in pages.rows]
    most_kib = max(float(row["KiB at most"]) for row in downloads.rows if row["way"] == "by pages")
    return Measurement(
        tables=[pages, downloads],
        floors=[
            Floor("page of results, most steps / least", max(steps) / min(steps), at_most=2.0),
            Floor("download, KiB of Python objects at most", most_kib, at_most=MOST_KIB),
        ],
        raw={"pages": pages.rows, "downloads": downloads.rows},
    )


def _fill(stored: _Stored) -> None:
    segment = BlobName("segment-bench")
    content = b"o" * (SIZE - 1) + b"\n"
    crc = google_crc32c.value(content)
    path = stored.blobs.path(segment)
    with path.open("wb") as output:
        for first in range(0, stored.ranges, 1_000):
            output.write(content * min(1_000, stored.ranges - first))
    size = stored.ranges * SIZE
    usage = dict.fromkeys(
        ("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens", "total_tokens"), 0
    )
    of_batch = {
        "project_id": DEFAULT_PROJECT,
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
        "input_file_id": "file-input",
        "created_at": NOW,
        "expires_at": NOW + 86_400,
        "input_bytes": 1,
        **dict.fromkeys(("total", "completed", "failed"), 0),
        **usage,
    }
    with stored.engine.begin() as connection:
        connection.execute(
            insert(file).values(
                sequence=1,
                id=_FILE,
                project_id=DEFAULT_PROJECT,
                purpose="batch_output",
                filename="f",
                bytes=size,
                created_at=NOW,
            )
        )
        connection.execute(
            insert(batch).values(
                sequence=1, id=_RUNNING, status="in_progress", output_bytes=size, **of_batch
            )
        )
        connection.execute(
            insert(batch).values(
                sequence=2, id=_ENDED, status="completed", output_file_id=_FILE, **of_batch
            )
        )
        for first in range(0, stored.ranges, 10_000):
            places = range(first, min(first + 10_000, stored.ranges))
            rows = [
                {
                    "blob_name": segment,
                    "start": at * SIZE,
                    "stop": (at + 1) * SIZE,
                    "begin": at * SIZE,
                    "crc": crc,
                }
                for at in places
            ]
            connection.execute(
                insert(segment_commit),
                [{**row, "batch_sequence": 1, "kind": "output"} for row in rows],
            )
            connection.execute(
                insert(file_range),
                [
                    {**row, "file_sequence": 1, "position": at}
                    for at, row in zip(places, rows, strict=True)
                ],
            )


# -- pages of results ------------------------------------------------------------------------------


def _pages(stored: _Stored) -> Table:
    steps = 0

    @event.listens_for(stored.engine, "connect")
    def count(connection: sqlite3.Connection, _: object) -> None:
        def step() -> None:
            nonlocal steps
            steps += _STEPS

        connection.set_progress_handler(step, _STEPS)

    def counted(work: Callable[[Connection], int]) -> tuple[int, float]:
        nonlocal steps
        with stored.engine.begin() as connection:
            work(connection)  # compiles the statement
            steps, began = 0, time.process_time()
            if work(connection) != PAGE_BYTES // SIZE:
                raise RuntimeError("the page has not the ranges that were asked for")
            return steps, (time.process_time() - began) * 1e3

    stored.engine.dispose()
    table: list[Row] = []
    for name, batch_id in (("running", _RUNNING), ("ended", _ENDED)):
        for part in (0.0, 0.5, 1.0):
            after = int((stored.ranges - PAGE_BYTES // SIZE) * part) * SIZE
            old_steps, old_ms = counted(partial(_old_page, batch_id=batch_id, after=after))
            new_steps, new_ms = counted(partial(_page, batch_id=batch_id, after=after))
            table.append(
                {
                    "batch": name,
                    "page at": f"{part:.0%}",
                    "steps, sums": old_steps,
                    "steps, by places": new_steps,
                    "CPU ms, sums": old_ms,
                    "CPU ms, by places": new_ms,
                }
            )
    title = f"A page of 20 of {stored.ranges:,} ranges: steps of SQLite, CPU"
    return Table(title, table)


def _old_page(connection: Connection, *, batch_id: BatchId, after: int) -> int:
    values = {"batch": batch_id, "after": after, "size": PAGE_BYTES}
    return len(connection.execute(text(_OLD_PAGE), values).all())


def _page(connection: Connection, *, batch_id: BatchId, after: int) -> int:
    end = outputs.end(connection, batch_id, after=after, limit=PAGE_BYTES, repairs=0, now=NOW)
    if end is None:
        return 0
    found = outputs.committed(
        connection, batch_id, start=after, stop=end, most=256, repairs=0, now=NOW
    )
    return len(found)


# -- downloads -------------------------------------------------------------------------------------

_Chunks = AsyncGenerator[bytes, None]


async def _downloads(stored: _Stored) -> Table:
    async def whole_list() -> _Chunks:
        with stored.engine.begin() as connection:
            ranges = [
                BlobRange(blob=BlobName(row.blob_name), start=row.start, stop=row.stop, crc=row.crc)
                for row in connection.execute(text(_OLD_MANIFEST), {"file": _FILE})
            ]
        return stored.blobs.read(ranges, chunk_bytes=CHUNK_BYTES)

    files = Files(stored.store, stored.blobs, clock=lambda: NOW)
    batches = Batches(stored.store, cast("BatchRunner", None), clock=lambda: NOW)
    results = Results(store=stored.store, blobs=stored.blobs, batches=batches, clock=lambda: NOW)

    async def by_pages() -> _Chunks:
        return await files.content(await files.downloadable(DEFAULT_PROJECT, _FILE))

    async def of_results() -> _Chunks:
        found = await results.read(DEFAULT_PROJECT, _RUNNING, after=0, limit=10**17)
        return found.chunks

    async def last_bytes() -> _Chunks:
        size = stored.ranges * SIZE
        wanted = await files.downloadable(DEFAULT_PROJECT, _FILE)
        return await files.content(wanted, start=size - PAGE_BYTES, stop=size)

    table: list[Row] = []
    for what, way, opened in (
        ("file", "whole list", whole_list),
        ("file", "by pages", by_pages),
        ("results of a running batch", "by pages", of_results),
        ("the last 800 bytes of the file", "by pages", last_bytes),
    ):
        await _first(opened)
        table.append(
            {
                "what": what,
                "way": way,
                "KiB at most": await _peak_kib(opened),
                "first chunk, CPU ms": await _first(opened),
                "whole, CPU s": await _whole(opened),
            }
        )
    title = (
        f"Downloads of {stored.ranges:,} ranges of {SIZE} bytes: Python objects at most (of the"
        " first fifty chunks), CPU"
    )
    return Table(title, table)


async def _peak_kib(opened: Callable[[], Awaitable[_Chunks]]) -> float:
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        async with aclosing(await opened()) as chunks:
            for _ in range(50):
                await anext(chunks, b"")
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return (most - before) / 1024


async def _first(opened: Callable[[], Awaitable[_Chunks]]) -> float:
    began = time.process_time()
    async with aclosing(await opened()) as chunks:
        await anext(chunks)
    return (time.process_time() - began) * 1e3


async def _whole(opened: Callable[[], Awaitable[_Chunks]]) -> float:
    began = time.process_time()
    async with aclosing(await opened()) as chunks:
        async for _ in chunks:
            pass
    return time.process_time() - began
