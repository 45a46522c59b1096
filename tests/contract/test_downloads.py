"""Downloads that run while their file is deleted, expires and is swept, on the real store."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Sequence
from typing import Any, cast

import anyio
import pytest

from batchline.domain.errors import BlobUnreadable, InvalidRequest, NotFound
from batchline.domain.ids import DEFAULT_PROJECT, FileId
from batchline.domain.lifecycle import BatchEvent
from batchline.domain.model import Batch, BlobKind, File
from batchline.service import manifest
from batchline.service.alarms import Alarms
from batchline.service.batches import Batches, BatchRunner
from batchline.service.downloads import Downloads
from batchline.service.files import FileLimits, Files
from batchline.service.maintenance import Maintenance
from batchline.service.results import Results
from batchline.store.blobs import LocalBlobs
from batchline.store.database import Database
from tests.contract.store_rows import (
    NOW,
    Segment,
    claimed,
    commits,
    finalized,
    fresh_file,
    moved,
    settling,
    started,
)

CHUNK = 10
CONTENT = os.urandom(3 * CHUNK)
RESULTS = (b"o" * 50) * 3


class Served:
    """The services of one server, and what it holds."""

    def __init__(self, store: Database, blobs: LocalBlobs) -> None:
        self.now = float(NOW)
        self.elapsed_s = 0.0
        self.has_room = True
        self.store = store
        self.blobs = blobs
        self.alarms = Alarms()
        self.downloads = Downloads(
            longest_s=60, has_room=lambda: self.has_room, clock=lambda: self.elapsed_s
        )
        self.files = Files(
            store,
            blobs,
            clock=self._clock,
            limits=FileLimits(download_chunk_bytes=CHUNK),
            alarms=self.alarms,
            downloads=self.downloads,
        )
        self.results = Results(
            store=store,
            blobs=blobs,
            batches=Batches(store, cast("BatchRunner", None), clock=self._clock),
            clock=self._clock,
            downloads=self.downloads,
        )
        self.maintenance = Maintenance(
            store=store, blobs=blobs, clock=self._clock, downloads=self.downloads
        )

    def _clock(self) -> float:
        return self.now

    async def uploaded(self, *, expires_at: int | None = None) -> File:
        writer = self.blobs.writer(BlobKind.INPUT)
        await writer.write(CONTENT)
        blob = await writer.finish()
        file = fresh_file(size=len(CONTENT), expires_at=expires_at)
        await self.store.create_file(file, blob)
        return file

    async def batch(self) -> Batch:
        """A batch with three committed ranges of 50 bytes, which are in its segment."""
        batch, segment = await started(self.store, shards=3), Segment()
        for number in range(3):
            shard = await claimed(self.store, batch, number)
            one = settling(shard, finished=[0], segment=segment)
            assert await commits(self.store, one) == [True]
        self.blobs.path(segment.name).write_bytes(RESULTS)
        return batch

    async def end(self, batch: Batch) -> FileId:
        """End it; its output file."""
        cancelled = await moved(self.store, batch, BatchEvent.CANCEL_REQUESTED)
        ended = await finalized(self.store, cancelled)
        await self.store.release_worker_references(None)
        assert ended.output_file_id is not None
        return ended.output_file_id

    async def read(self, batch: Batch) -> AsyncGenerator[bytes, None]:
        """The results, from the beginning as far as there are any."""
        found = await self.results.read(DEFAULT_PROJECT, batch.id, after=0, limit=10**9)
        assert found.size == len(RESULTS)
        return found.chunks

    async def is_free(self) -> bool:
        """Whether, after a sweep, nothing is held for any file."""
        await self.maintenance.sweep()
        return not await self.store.hidden_files(after=None, limit=1)


@pytest.fixture
def served(store: Database, blobs: LocalBlobs) -> Served:
    return Served(store, blobs)


async def rest_of(chunks: AsyncGenerator[bytes, None]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


# -- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["deleted", "expired"])
async def test_a_download_goes_on_to_its_end_when_its_file_goes(served: Served, how: str) -> None:
    file = await served.uploaded(expires_at=NOW + 50)
    chunks = await served.files.content(file)
    taken = await anext(chunks)
    if how == "deleted":
        await served.files.delete(DEFAULT_PROJECT, file.id)
    else:
        served.now = NOW + 50.0
    assert not await served.is_free()

    with pytest.raises(NotFound):
        await served.files.downloadable(DEFAULT_PROJECT, file.id)
    with pytest.raises(NotFound):  # it came between the look at the file and the one at its bytes
        await served.files.content(file)
    assert taken + await rest_of(chunks) == CONTENT

    assert await served.is_free()
    assert [names async for names in served.blobs.stored()] == []


async def test_the_bytes_go_with_the_last_of_several_downloads(served: Served) -> None:
    file = await served.uploaded()
    downloads = [await served.files.content(file, start=start) for start in (0, CHUNK, 0)]
    await served.files.delete(DEFAULT_PROJECT, file.id)
    assert await rest_of(downloads[0]) == CONTENT
    assert not await served.is_free()
    assert await rest_of(downloads[1]) == CONTENT[CHUNK:]
    assert not await served.is_free()
    await downloads[2].aclose()  # its client went away
    assert await served.is_free()


@pytest.mark.parametrize("bound", ["time", "room"])
async def test_a_download_that_takes_too_long_for_a_file_that_went_is_cut_off(
    served: Served, bound: str
) -> None:
    file = await served.uploaded()
    chunks = await served.files.content(file)
    assert await anext(chunks)
    await served.files.delete(DEFAULT_PROJECT, file.id)
    assert not await served.is_free()
    served.elapsed_s = 59.0
    assert not await served.is_free()
    if bound == "time":
        served.elapsed_s = 60.0
    else:
        served.has_room = False
    assert await served.is_free()
    with pytest.raises(BlobUnreadable):
        await rest_of(chunks)
    assert not served.downloads.files
    assert not served.alarms.damaged


async def test_time_alone_cuts_no_download_of_a_file_that_stays(served: Served) -> None:
    file = await served.uploaded()
    chunks = await served.files.content(file)
    taken = await anext(chunks)
    served.elapsed_s, served.has_room = 1e6, False
    assert await served.is_free()
    assert taken + await rest_of(chunks) == CONTENT


async def test_a_file_that_was_hidden_when_the_sweep_looked_is_held_by_nobody_who_comes_later(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a download that began before is kept, although the sweep had begun."""
    begun, late = await served.uploaded(), await served.uploaded()
    look = served.store.hidden_files
    chunks = list[AsyncGenerator[bytes, None]]()

    async def looking(**which: Any) -> Sequence[FileId]:
        if not chunks:
            chunks.append(await served.files.content(begun))
            await served.files.delete(DEFAULT_PROJECT, begun.id)
            await served.files.delete(DEFAULT_PROJECT, late.id)
        found = await look(**which)
        with pytest.raises(NotFound):
            await served.files.content(late)
        return found

    monkeypatch.setattr(served.store, "hidden_files", looking)
    await served.maintenance.sweep()
    monkeypatch.undo()
    assert await served.store.hidden_files(after=None, limit=9) == [begun.id]
    assert await rest_of(chunks[0]) == CONTENT


async def test_a_refused_download_leaves_no_hold(served: Served) -> None:
    file = await served.uploaded()
    await served.files.delete(DEFAULT_PROJECT, file.id)
    with pytest.raises(NotFound):
        await served.files.content(file)
    assert not served.downloads.files


async def test_a_server_that_starts_lets_go_of_what_the_one_before_it_held(
    served: Served, store: Database, blobs: LocalBlobs
) -> None:
    """The hold was in the memory of a server that died."""
    file = await served.uploaded()
    chunks = await served.files.content(file)
    assert await anext(chunks)
    await served.files.delete(DEFAULT_PROJECT, file.id)
    assert not await served.is_free()
    after = Served(store, blobs)
    assert await after.maintenance.recover() == 0
    assert await after.is_free()
    await chunks.aclose()


async def test_a_download_that_nobody_ever_took_up_leaves_no_hold(served: Served) -> None:
    """Its task may end between the answer's first chunk and its head."""
    file = await served.uploaded()
    for taken in (False, True):
        chunks = await served.files.content(file)
        if taken:
            await anext(chunks)
        assert file.id in served.downloads.files
        del chunks
        await anyio.wait_all_tasks_blocked()  # the event loop closes what was dropped
        assert not served.downloads.files


async def test_what_many_files_had_goes_in_one_sweep_but_for_what_is_held(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchline.service.maintenance._AT_ONCE", 2)
    files = [await served.uploaded() for _ in range(7)]
    held = sorted(file.id for file in files)[1::2]
    chunks = [await served.files.content(file) for file in files if file.id in held]
    for file in files:
        await served.files.delete(DEFAULT_PROJECT, file.id)
    await served.maintenance.sweep()
    assert await served.store.hidden_files(after=None, limit=9) == held
    for one in chunks:
        assert await rest_of(one) == CONTENT
    assert await served.is_free()


# -- results of a batch ----------------------------------------------------------------------------


@pytest.mark.parametrize("ends", ["before", "meanwhile"])
async def test_results_are_read_to_their_end_when_the_output_file_goes(
    served: Served, ends: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the batch, and with it the file, ends after the reader began."""
    monkeypatch.setattr(manifest, "PAGE", 1)
    batch = await served.batch()
    output = await served.end(batch) if ends == "before" else None
    chunks = await served.read(batch)
    taken = await anext(chunks)
    if output is None:
        output = await served.end(batch)
    await served.files.delete(DEFAULT_PROJECT, output)
    assert not await served.is_free()

    with pytest.raises(NotFound):
        await served.results.read(DEFAULT_PROJECT, batch.id, after=0, limit=10**9)
    assert taken + await rest_of(chunks) == RESULTS
    assert not served.downloads.files
    assert not served.downloads.batches
    assert await served.is_free()


@pytest.mark.parametrize("ends", ["before", "meanwhile"])
async def test_results_that_are_read_for_too_long_are_cut_off(
    served: Served, ends: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "PAGE", 1)
    batch = await served.batch()
    output = await served.end(batch) if ends == "before" else None
    chunks = await served.read(batch)
    assert await anext(chunks)
    await served.files.delete(DEFAULT_PROJECT, output or await served.end(batch))
    assert not await served.is_free()
    served.elapsed_s = 60.0
    assert await served.is_free()
    with pytest.raises(BlobUnreadable):
        await rest_of(chunks)


async def test_refused_results_leave_no_hold(served: Served) -> None:
    batch = await served.batch()
    for ended in (False, True):
        if ended:
            await served.files.delete(DEFAULT_PROJECT, await served.end(batch))
        with pytest.raises((InvalidRequest, NotFound)):
            await served.results.read(DEFAULT_PROJECT, batch.id, after=7, limit=10**9)
        assert not served.downloads.files
        assert not served.downloads.batches
