"""Blobs as local files: durable before they are named, whole or not at all."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import google_crc32c
import pytest

from batchline import telemetry
from batchline.domain.errors import BlobUnreadable, StorageFull, StoreUnavailable
from batchline.domain.ids import BlobName
from batchline.domain.model import Blob, BlobKind, BlobRange
from batchline.store import blobs as blobs_module
from batchline.store import reading
from batchline.store.blob_contract import BlobWriter
from batchline.store.blobs import SEGMENT_PREFIX, LocalBlobs

MIB = 1024 * 1024


@pytest.fixture
def armed() -> Iterator[None]:
    yield
    telemetry.arm("")


async def written_to(writer: BlobWriter, *chunks: bytes) -> None:
    for chunk in chunks:
        await writer.write(chunk)


async def written(blobs: LocalBlobs, *chunks: bytes, kind: BlobKind = BlobKind.INPUT) -> Blob:
    writer = blobs.writer(kind)
    await written_to(writer, *chunks)
    assert writer.bytes_written == sum(map(len, chunks))
    return await writer.finish()


def whole(blob: Blob) -> BlobRange:
    return BlobRange(blob=blob.name, start=0, stop=blob.bytes)


async def content(blobs: LocalBlobs, *ranges: BlobRange, chunk_bytes: int = 1_000) -> list[bytes]:
    return [chunk async for chunk in blobs.read(ranges, chunk_bytes=chunk_bytes)]


def open_files() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


async def names(blobs: LocalBlobs) -> list[BlobName]:
    return [name async for group in blobs.stored() for name in group]


def files_below(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


# -- writing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(BlobKind))
async def test_a_finished_blob_has_the_bytes_that_were_written(
    blobs: LocalBlobs, kind: BlobKind
) -> None:
    chunks = [b"", b"a" * 10, b"b" * (3 * MIB), b"c"]
    blob = await written(blobs, *chunks, kind=kind)
    assert (blob.kind, blob.bytes) == (kind, 3 * MIB + 11)
    assert blobs.path(blob.name).read_bytes() == b"".join(chunks)
    assert await names(blobs) == [blob.name]


async def test_an_empty_blob_is_a_blob(blobs: LocalBlobs) -> None:
    blob = await written(blobs)
    assert blob.bytes == 0
    assert await content(blobs, whole(blob)) == []
    assert await names(blobs) == [blob.name]


async def test_nothing_is_visible_before_finish(blobs: LocalBlobs) -> None:
    writer = blobs.writer(BlobKind.INPUT)
    await writer.write(b"x" * (2 * MIB))
    assert await names(blobs) == []
    blob = await writer.finish()
    assert await names(blobs) == [blob.name]


async def test_discarded_bytes_leave_nothing_behind(blobs: LocalBlobs, tmp_path: Path) -> None:
    writer = blobs.writer(BlobKind.INPUT)
    await writer.write(b"x" * (2 * MIB))
    assert files_below(tmp_path)
    await writer.discard()
    await writer.discard()
    assert files_below(tmp_path) == []
    with pytest.raises(ValueError, match="discarded already"):
        await writer.finish()


async def test_discard_after_finish_keeps_the_blob(blobs: LocalBlobs) -> None:
    writer = blobs.writer(BlobKind.INPUT)
    await writer.write(b"kept")
    blob = await writer.finish()
    await writer.discard()
    assert await content(blobs, whole(blob)) == [b"kept"]


async def test_writers_at_the_same_time_do_not_meet(blobs: LocalBlobs) -> None:
    payloads = [bytes([number]) * (MIB + number) for number in range(8)]
    made = await asyncio.gather(*(written(blobs, payload) for payload in payloads))
    assert len({blob.name for blob in made}) == 8
    for blob, payload in zip(made, payloads, strict=True):
        assert blobs.path(blob.name).read_bytes() == payload


async def test_bytes_are_written_off_the_event_loop(
    blobs: LocalBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = set()

    def spied(name: str) -> None:
        threads.add(threading.current_thread())

    monkeypatch.setattr(blobs_module, "probe", spied)
    await written(blobs, b"x" * (2 * MIB))
    assert threads
    assert threading.main_thread() not in threads


async def test_data_is_synced_then_named_and_then_the_folder_is_synced(
    blobs: LocalBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []

    def fsync(fd: int, real: object = os.fsync) -> None:
        kind = "folder" if os.path.isdir(f"/proc/self/fd/{fd}") else "file"  # noqa: PTH112  # a Path does not follow this link
        steps.append(f"fsync {kind}")

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "fdatasync", lambda _: steps.append("fdatasync"))
    monkeypatch.setattr(blobs_module, "probe", steps.append)
    await written(blobs, *[b"x" * MIB] * 17)
    assert steps == [
        "fdatasync",  # at 8 MiB
        "fdatasync",  # at 16 MiB
        "blob.written",
        "fsync file",
        "blob.synced",
        "blob.renamed",
        "fsync folder",
        "blob.durable",
    ]


@pytest.mark.parametrize("step", ["blob.written", "blob.synced", "blob.renamed", "blob.durable"])
@pytest.mark.parametrize(("fault", "error"), [("enospc", StorageFull), ("eio", StoreUnavailable)])
async def test_a_fault_at_any_step_leaves_no_blob_and_no_bytes(
    blobs: LocalBlobs,
    tmp_path: Path,
    armed: None,
    step: str,
    fault: str,
    error: type[Exception],
) -> None:
    telemetry.arm(f"{step}={fault}")
    writer = blobs.writer(BlobKind.INPUT)
    await writer.write(b"x" * (2 * MIB))
    with pytest.raises(error):
        await writer.finish()
    await writer.discard()
    assert files_below(tmp_path) == []


async def test_a_full_disk_is_storage_full_and_gives_its_bytes_back(small_disk: Path) -> None:
    blobs = LocalBlobs(small_disk / "blobs")
    writer = blobs.writer(BlobKind.INPUT)
    with pytest.raises(StorageFull):
        await written_to(writer, *[b"x" * MIB] * 4)
    await writer.discard()
    assert files_below(small_disk) == []
    blob = await written(blobs, b"y" * MIB)
    assert await content(blobs, whole(blob), chunk_bytes=MIB) == [b"y" * MIB]


async def test_a_disk_that_is_full_at_finish_leaves_no_blob(small_disk: Path) -> None:
    blobs = LocalBlobs(small_disk / "blobs")
    writer = blobs.writer(BlobKind.INPUT)
    await writer.write(b"x" * (MIB - 1))  # buffered: nothing is on disk yet
    (small_disk / "filler").write_bytes(b"z" * (MIB + MIB // 2))
    with pytest.raises(StorageFull):
        await writer.finish()
    assert files_below(small_disk) == [small_disk / "filler"]


class Stalled:
    """Holds every thread that reaches a probe until it is let go."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.let_go = threading.Event()

    def __call__(self, _: str) -> None:
        self.reached.set()
        assert self.let_go.wait(10)


async def test_a_finish_that_was_cancelled_and_then_discarded_leaves_nothing(
    blobs: LocalBlobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stalled = Stalled()
    monkeypatch.setattr(blobs_module, "probe", stalled)
    writer = blobs.writer(BlobKind.INPUT)
    await writer.write(b"x")
    finishing = asyncio.create_task(writer.finish())
    await asyncio.to_thread(stalled.reached.wait, 10)
    finishing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await finishing
    discarding = asyncio.create_task(writer.discard())
    stalled.let_go.set()
    await discarding
    assert files_below(tmp_path) == []


async def test_a_blob_that_lost_a_write_to_a_cancel_cannot_be_finished(
    blobs: LocalBlobs, tmp_path: Path
) -> None:
    release = threading.Event()
    loop = asyncio.get_running_loop()
    busy = [loop.run_in_executor(None, release.wait, 10) for _ in range(64)]
    writer = blobs.writer(BlobKind.INPUT)
    writing = asyncio.create_task(writer.write(b"x" * MIB))
    await asyncio.sleep(0)  # it waits for a thread, and all are busy
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    release.set()
    await asyncio.gather(*busy)
    await writer.write(b"y")
    with pytest.raises(ValueError, match="cancelled half way"):
        await writer.finish()
    assert files_below(tmp_path) == []


# -- reading ---------------------------------------------------------------------------------------


async def test_ranges_come_one_after_another_in_chunks_of_the_size_asked_for_at_most(
    blobs: LocalBlobs,
) -> None:
    one = await written(blobs, bytes(range(100)))
    two = await written(blobs, bytes(range(100, 200)))
    ranges = [
        BlobRange(blob=two.name, start=50, stop=100),
        BlobRange(blob=one.name, start=0, stop=0),
        BlobRange(blob=one.name, start=10, stop=95),
        BlobRange(blob=two.name, start=0, stop=1),
    ]
    chunks = await content(blobs, *ranges, chunk_bytes=40)
    expected = bytes(range(150, 200)) + bytes(range(10, 95)) + bytes([100])
    assert b"".join(chunks) == expected
    assert [len(chunk) for chunk in chunks] == [40, 10, 40, 40, 5, 1]


async def test_small_ranges_share_a_chunk_and_none_is_cut(blobs: LocalBlobs) -> None:
    blob = await written(blobs, bytes(range(100)))
    ranges = [BlobRange(blob=blob.name, start=at, stop=at + 15) for at in (0, 15, 30, 45)]
    chunks = await content(blobs, *ranges, chunk_bytes=40)
    assert chunks == [bytes(range(30)), bytes(range(30, 60))]
    assert await content(blobs) == []


@pytest.mark.parametrize(("start", "stop"), [(0, 11), (10, 11), (500, 501)])
async def test_a_blob_shorter_than_its_range_is_unreadable(
    blobs: LocalBlobs, start: int, stop: int
) -> None:
    blob = await written(blobs, b"0123456789")
    with pytest.raises(BlobUnreadable):
        await content(blobs, BlobRange(blob=blob.name, start=start, stop=stop))


async def test_a_missing_blob_is_unreadable(blobs: LocalBlobs) -> None:
    blob = await written(blobs, b"gone soon")
    await blobs.delete([blob.name])
    with pytest.raises(BlobUnreadable):
        await content(blobs, whole(blob))


async def test_a_reader_that_goes_away_leaves_no_file_open(blobs: LocalBlobs) -> None:
    blob = await written(blobs, b"x" * 10_000)
    open_before = open_files()
    reading = blobs.read([whole(blob)], chunk_bytes=10)
    assert await anext(reading) == b"x" * 10
    assert open_files() == open_before


# -- bytes that have changed -----------------------------------------------------------------------


def changed(blobs: LocalBlobs, blob: Blob, at: int) -> None:
    with blobs.path(blob.name).open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def with_crc(blob: Blob, data: bytes, start: int, stop: int) -> BlobRange:
    crc = google_crc32c.value(data[start:stop])
    return BlobRange(blob=blob.name, start=start, stop=stop, crc=crc)


async def until_damaged(blobs: LocalBlobs, *ranges: BlobRange, chunk_bytes: int) -> bytes:
    """What is given out before the reading breaks off, which it has to."""
    given = b""
    try:
        async for chunk in blobs.read(ranges, chunk_bytes=chunk_bytes):
            given += chunk
    except BlobUnreadable:
        return given
    pytest.fail("the damage went unseen")


async def test_a_blob_knows_the_crc_of_its_bytes(blobs: LocalBlobs) -> None:
    chunks = [b"a" * 10, b"b" * (3 * MIB), b"c"]
    assert (await written(blobs, *chunks)).crc == google_crc32c.value(b"".join(chunks))
    assert (await written(blobs)).crc == 0


@pytest.mark.parametrize("chunk_bytes", [7, 100, 1_000])
@pytest.mark.parametrize("at", [100, 101, 199])
async def test_no_byte_of_a_changed_range_is_given_out(
    blobs: LocalBlobs, chunk_bytes: int, at: int
) -> None:
    data = os.urandom(300)
    blob = await written(blobs, data)
    ranges = [with_crc(blob, data, start, start + 100) for start in (0, 100, 200)]
    assert b"".join(await content(blobs, *ranges, chunk_bytes=chunk_bytes)) == data
    changed(blobs, blob, at)
    given = await until_damaged(blobs, *ranges, chunk_bytes=chunk_bytes)
    assert data[:100].startswith(given)
    assert await content(blobs, ranges[2]) == [data[200:]]


@pytest.mark.parametrize("chunk_bytes", [7, 100, 1_000])
async def test_a_part_of_a_range_is_checked_with_all_of_it(
    blobs: LocalBlobs, chunk_bytes: int
) -> None:
    data = os.urandom(100)
    blob = await written(blobs, data)
    part = replace(with_crc(blob, data, 0, 100), start=60, lead=60, stop=90, trail=10)
    assert b"".join(await content(blobs, part, chunk_bytes=chunk_bytes)) == data[60:90]
    for at in (3, 97):
        changed(blobs, blob, at)
        assert await until_damaged(blobs, part, chunk_bytes=chunk_bytes) == b""
        changed(blobs, blob, at)  # as it was


@pytest.mark.parametrize(("lead", "trail"), [(0, 0), (60, 0), (0, 30), (40, 9)])
@pytest.mark.parametrize("at", [3, 45, 98])
async def test_of_a_changed_very_large_range_the_last_piece_is_not_given_out(
    blobs: LocalBlobs, monkeypatch: pytest.MonkeyPatch, lead: int, trail: int, at: int
) -> None:
    monkeypatch.setattr(reading, "CHECKED_AHEAD_BYTES", 50)
    data = os.urandom(100)
    blob = await written(blobs, data)
    part = replace(
        with_crc(blob, data, 0, 100), start=lead, lead=lead, stop=100 - trail, trail=trail
    )
    assert b"".join(await content(blobs, part, chunk_bytes=7)) == data[lead : 100 - trail]
    changed(blobs, blob, at)
    given = await until_damaged(blobs, part, chunk_bytes=7)
    assert len(given) < 100 - lead - trail


# -- names, deleting, adopting, sweeping -----------------------------------------------------------


async def test_a_disk_that_refuses_to_delete_is_an_error_of_ours(blobs: LocalBlobs) -> None:
    """If this fails, such a disk ends the server: the sweeps expect no other error."""
    name = BlobName("input-there")
    blobs.path(name).mkdir()  # what unlink refuses; no file system here can be made to fail
    with pytest.raises(StoreUnavailable):
        await blobs.delete([name])


async def test_deleting_what_is_gone_is_not_an_error(blobs: LocalBlobs) -> None:
    gone, kept = await written(blobs, b"1"), await written(blobs, b"2")
    await blobs.delete([gone.name])
    await blobs.delete([gone.name])
    assert await names(blobs) == [kept.name]


@pytest.mark.parametrize(
    "name", ["", "input", "input-", "other-00", "input-../x", "/input-0", "input-0\n", "scratch-0"]
)
def test_a_name_that_no_blob_can_have_has_no_path(blobs: LocalBlobs, name: str) -> None:
    with pytest.raises(ValueError, match="not the name of a blob"):
        blobs.path(BlobName(name))


async def test_a_segment_that_a_worker_writes_is_stored_under_its_name(
    blobs: LocalBlobs,
) -> None:
    name = BlobName(f"{SEGMENT_PREFIX}w1-0007")
    path = blobs.segment_directory() / name
    path.write_bytes(b"lines\n")
    assert blobs.path(name) == path
    assert await names(blobs) == [name]
    assert await content(blobs, BlobRange(blob=name, start=0, stop=6)) == [b"lines\n"]


async def test_every_blob_is_listed_in_groups(blobs: LocalBlobs) -> None:
    expected = [f"{SEGMENT_PREFIX}{number:05}" for number in range(2_500)]
    for name in expected:
        (blobs.segment_directory() / name).touch()
    groups: list[Sequence[BlobName]] = [group async for group in blobs.stored()]
    assert [name for group in groups for name in group] == expected
    assert len(groups) == 3


async def test_a_childs_file_becomes_a_blob(blobs: LocalBlobs, tmp_path: Path) -> None:
    unfinished = blobs.scratch()
    unfinished.write_bytes(b"a plan")
    blob = await blobs.adopt(unfinished, BlobKind.PLAN)
    assert (blob.kind, blob.bytes) == (BlobKind.PLAN, 6)
    assert await content(blobs, whole(blob)) == [b"a plan"]
    assert files_below(tmp_path) == [blobs.path(blob.name)]


async def test_a_childs_file_whose_name_does_not_last_becomes_no_blob(
    blobs: LocalBlobs, tmp_path: Path, armed: None
) -> None:
    telemetry.arm("blob.renamed=eio")
    unfinished = blobs.scratch()
    unfinished.write_bytes(b"a plan")
    with pytest.raises(StoreUnavailable):
        await blobs.adopt(unfinished, BlobKind.PLAN)
    assert files_below(tmp_path) == []


async def test_a_start_sweeps_unfinished_bytes_and_keeps_blobs(tmp_path: Path) -> None:
    before = LocalBlobs(tmp_path)
    kept = await written(before, b"kept")
    writer = before.writer(BlobKind.INPUT)
    await writer.write(b"x" * (2 * MIB))
    before.scratch().write_bytes(b"a child's")
    after = LocalBlobs(tmp_path)
    await after.sweep_scratch()
    assert files_below(tmp_path) == [after.path(kept.name)]
    await writer.discard()
