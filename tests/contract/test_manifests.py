"""Files and results cost what is asked of them, in bounded memory, whatever happens meanwhile.

A file of a slow backend's batch of ten million lines has half a million ranges.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, aclosing
from typing import Any, cast

import google_crc32c
import pytest
from sqlalchemy import Engine, insert, text

from batchline.domain.errors import BlobUnreadable, InvalidRequest, NotFound, StoreUnavailable
from batchline.domain.ids import DEFAULT_PROJECT, FileId
from batchline.domain.lifecycle import BatchEvent
from batchline.domain.model import Batch
from batchline.service import manifest
from batchline.service.alarms import Alarms
from batchline.service.batches import Batches, BatchRunner
from batchline.service.files import FileLimits, Files
from batchline.service.results import Results
from batchline.store import files as file_rows
from batchline.store import outputs
from batchline.store.blobs import LocalBlobs
from batchline.store.database import Database
from batchline.store.tables import batch as batch_table
from batchline.store.tables import segment_commit
from tests.contract.store_rows import (
    NOW,
    Segment,
    claimed,
    commits,
    finalized,
    let_go,
    moved,
    settling,
    started,
)
from tests.support.allocated import allocated
from tests.support.sqlite_steps import Steps

FEW, MANY = 1_000, 4_000
CHUNK = 1_000


# -- cost ------------------------------------------------------------------------------------------


async def with_ranges(
    store: Database, engine: Engine, blobs: LocalBlobs, ranges: int
) -> tuple[Batch, bytes]:
    """A batch with so many committed ranges of two bytes, which are in its segment."""
    batch, segment = await started(store), Segment()
    shard = await claimed(store, batch)
    one = settling(shard, finished=[0], segment=segment)
    assert await commits(store, one) == [True]  # so that the segment is known and held
    content = os.urandom(ranges) + b"\n" * ranges
    content = b"".join(bytes([content[at] % 9 + 48, 10]) for at in range(ranges))
    blobs.path(segment.name).write_bytes(content)
    row = {"batch_sequence": batch.sequence, "kind": "output", "blob_name": segment.name}
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM segment_commit"))
        connection.execute(
            insert(segment_commit),
            [
                {
                    **row,
                    "start": at,
                    "stop": at + 2,
                    "begin": at,
                    "crc": google_crc32c.value(content[at : at + 2]),
                }
                for at in range(0, 2 * ranges, 2)
            ],
        )
        connection.execute(batch_table.update().values(output_bytes=2 * ranges))
    return batch, content


async def test_a_page_costs_what_it_gives_wherever_it_is_and_however_many_there_are(
    store: Database, engine: Engine, blobs: LocalBlobs
) -> None:
    """SQLite counts its own steps."""
    steps = Steps(engine)

    def of_a_page(batch: Batch, file_id: FileId | None, start: int) -> int:
        steps.count = 0
        with engine.begin() as connection:
            end = outputs.end(connection, batch.id, after=start, limit=40, repairs=0, now=NOW)
            assert end == start + 40
            page = outputs.committed(
                connection, batch.id, start=start, stop=end, most=256, repairs=0, now=NOW
            )
            assert len(page) == 20
            if file_id is not None:
                page = file_rows.ranges(connection, file_id, start=start, stop=None, most=20)
                assert len(page) == 20
        return steps.count

    for ends in (False, True):
        costs = []
        for ranges in (50, 4_000):
            batch, _ = await with_ranges(store, engine, blobs, ranges)
            file_id = None
            if ends:
                ended = await finalized(
                    store, await moved(store, batch, BatchEvent.CANCEL_REQUESTED)
                )
                file_id = ended.output_file_id
                assert file_id is not None
            costs += [of_a_page(batch, file_id, start) for start in (0, ranges, 2 * ranges - 40)]
        assert costs[0] > 10
        assert max(costs) < 2 * min(costs)


def files_on(store: Database, blobs: LocalBlobs, **more: Any) -> Files:
    limits = FileLimits(download_chunk_bytes=CHUNK)
    return Files(store, blobs, clock=lambda: NOW + 4, limits=limits, **more)


def results_on(store: Database, blobs: LocalBlobs) -> Results:
    batches = Batches(store, cast("BatchRunner", None), clock=lambda: NOW + 4)
    return Results(store=store, blobs=blobs, batches=batches, clock=lambda: NOW + 4)


Opened = tuple[int, AsyncGenerator[bytes, None]]


async def download(store: Database, blobs: LocalBlobs, batch: Batch) -> Opened:
    loaded = await store.load_batch(batch.id)
    if loaded.output_file_id is None:
        loaded = await finalized(store, await moved(store, batch, BatchEvent.CANCEL_REQUESTED))
    assert loaded.output_file_id is not None
    files = files_on(store, blobs)
    file = await files.downloadable(DEFAULT_PROJECT, loaded.output_file_id)
    return file.bytes, await files.content(file)


async def results(store: Database, blobs: LocalBlobs, batch: Batch) -> Opened:
    found = await results_on(store, blobs).read(DEFAULT_PROJECT, batch.id, after=0, limit=10**15)
    return found.size, found.chunks


ways = pytest.mark.parametrize("way", [download, results])


@ways
async def test_a_range_costs_no_memory_while_it_is_read(
    store: Database,
    engine: Engine,
    blobs: LocalBlobs,
    way: Callable[[Database, LocalBlobs, Batch], Any],
) -> None:
    async def peak(ranges: int) -> int:
        batch, content = await with_ranges(store, engine, blobs, ranges)
        with allocated() as found:
            size, chunks = await way(store, blobs, batch)
            assert size == len(content)
            crc = 0
            async for chunk in chunks:
                assert len(chunk) <= CHUNK
                crc = google_crc32c.extend(crc, chunk)
        assert crc == google_crc32c.value(content)
        return found.peak

    await peak(FEW)  # what the first of all costs
    # The lesser of two tries: a table of the interpreter's own may happen to grow.
    more = min([await peak(MANY) - await peak(FEW) for _ in range(2)])
    assert more / (MANY - FEW) < 60  # as a list of ranges it was 250 bytes each


@ways
async def test_a_reader_that_takes_its_time_holds_a_page_and_a_chunk(
    store: Database,
    engine: Engine,
    blobs: LocalBlobs,
    way: Callable[[Database, LocalBlobs, Batch], Any],
) -> None:
    batch, _ = await with_ranges(store, engine, blobs, MANY)
    async with AsyncExitStack() as stack:

        async def begin() -> None:
            _, chunks = await way(store, blobs, batch)
            await stack.enter_async_context(aclosing(chunks))
            await anext(chunks)

        await begin()  # what the first of all costs
        with allocated() as found:
            for _ in range(20):
                await begin()
    # As a list of all ranges it was a megabyte each.
    assert found.kept / 20 < 300_000


# -- what happens meanwhile ------------------------------------------------------------------------


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "PAGE", 10)
    monkeypatch.setattr(manifest, "RETRY_S", 0.001)


@pytest.mark.usefixtures("small_pages")
@ways
async def test_a_batch_may_end_while_its_results_are_read_and_the_store_be_away_for_a_while(
    store: Database,
    engine: Engine,
    blobs: LocalBlobs,
    monkeypatch: pytest.MonkeyPatch,
    way: Callable[[Database, LocalBlobs, Batch], Any],
) -> None:
    batch, content = await with_ranges(store, engine, blobs, 40)
    _, chunks = await way(store, blobs, batch)
    async with aclosing(chunks):
        found = await anext(chunks)
        if way is results:
            await finalized(store, await moved(store, batch, BatchEvent.CANCEL_REQUESTED))
        away = 0

        def is_away(query: Any) -> Any:
            nonlocal away
            away += 1
            if away % 3:
                raise StoreUnavailable("not now")
            return read(query)

        read = store._read
        monkeypatch.setattr(store, "_read", is_away)
        async for chunk in chunks:
            found += chunk
    assert found == content
    assert away > 3


@pytest.mark.usefixtures("small_pages")
async def test_a_file_that_is_let_go_of_while_it_is_read_breaks_off_and_is_no_alarm(
    store: Database, engine: Engine, blobs: LocalBlobs
) -> None:
    batch, _ = await with_ranges(store, engine, blobs, 40)
    ended = await finalized(store, await moved(store, batch, BatchEvent.CANCEL_REQUESTED))
    assert ended.output_file_id is not None
    alarms = Alarms()
    files = files_on(store, blobs, alarms=alarms)
    file = await files.downloadable(DEFAULT_PROJECT, ended.output_file_id)
    chunks = await files.content(file)
    await anext(chunks)
    await files.delete(DEFAULT_PROJECT, ended.output_file_id)
    await let_go(store)
    with pytest.raises(BlobUnreadable):
        async for _ in chunks:
            pass
    assert alarms.damaged == 0
    with pytest.raises(NotFound):
        await files.content(file)


async def _add_all(chunks: AsyncGenerator[bytes, None], given: bytearray) -> None:
    async for chunk in chunks:
        given += chunk


async def _take_all(store: Database, blobs: LocalBlobs, file_id: FileId, given: bytearray) -> None:
    files = files_on(store, blobs)
    await _add_all(await files.content(await files.downloadable(DEFAULT_PROJECT, file_id)), given)


@pytest.mark.parametrize("position", [0, 20, 39])
@pytest.mark.usefixtures("small_pages")
async def test_no_byte_after_a_gap_in_a_manifest_is_given_out(
    store: Database, engine: Engine, blobs: LocalBlobs, position: int
) -> None:
    batch, content = await with_ranges(store, engine, blobs, 40)
    ended = await finalized(store, await moved(store, batch, BatchEvent.CANCEL_REQUESTED))
    assert ended.output_file_id is not None
    with engine.begin() as connection:
        connection.execute(
            text("DELETE FROM file_range WHERE position = :position"), {"position": position}
        )
    given = bytearray()
    with pytest.raises(BlobUnreadable):
        await _take_all(store, blobs, ended.output_file_id, given)
    assert content[: 2 * position].startswith(given)


@pytest.mark.usefixtures("small_pages")
async def test_results_that_are_repaired_while_they_are_read_break_off(
    store: Database, engine: Engine, blobs: LocalBlobs
) -> None:
    batch, content = await with_ranges(store, engine, blobs, 40)
    _, chunks = await results(store, blobs, batch)
    given = bytearray(await anext(chunks))
    stopped = await moved(store, batch, BatchEvent.CANCEL_REQUESTED)
    repaired = await store.unsettle_ranges(
        batch.id, [], from_status=stopped.status, stopping=stopped.stopping, now=NOW
    )
    assert repaired is not None
    with pytest.raises(BlobUnreadable):
        await _add_all(chunks, given)
    assert content.startswith(given)
    assert len(given) < len(content)
    with pytest.raises(InvalidRequest, match="begin again"):
        await results_on(store, blobs).read(DEFAULT_PROJECT, batch.id, after=2, limit=10)
