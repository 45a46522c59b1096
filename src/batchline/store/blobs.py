"""Blobs as local files: `BlobStore` with the bytes on disk before anybody is told of them.

    <root>/input/input-<32 hex>         <root>/plan/plan-<32 hex>
    <root>/never_run/never_run-<32 hex> <root>/segment/segment-…     <root>/scratch/<anything>

A name says its kind, so the path follows from the name alone. Segments are written in place by
workers, who sync them; everything else is written in `scratch` and renamed when it is complete.
obstore's local store was tried and rejected: it never syncs (seen with strace).
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import secrets
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import google_crc32c

from batchline.domain.errors import StorageFull, StoreUnavailable
from batchline.domain.ids import BlobName
from batchline.domain.model import Blob, BlobKind, BlobRange
from batchline.durable import sync_data, sync_file, sync_folder
from batchline.store import reading
from batchline.telemetry import probe

SEGMENT_PREFIX: Final = f"{BlobKind.SEGMENT.value}-"  # every segment's name begins with it

_MIB: Final = 1024 * 1024
_WRITE_BYTES: Final = _MIB  # a hand-over to a thread costs 50 to 100 µs; a MiB takes ten times that
_CRC_BYTES: Final = 64 * 1024  # copied at a time, in the cache; the whole would be a MiB more
_SYNC_BYTES: Final = 8 * _MIB  # else the kernel gathers gigabytes and the last sync takes seconds
_NAMES_AT_ONCE: Final = 1_000
_NAME: Final = re.compile(rf"({'|'.join(kind.value for kind in BlobKind)})-[A-Za-z0-9._-]+")


class LocalBlobs:
    """Implements `blob_contract.BlobStore` in folders below `root`, all on one file system."""

    def __init__(self, root: Path) -> None:
        """Make the folders that are missing, durably: a rename into one needs nothing else."""
        self._root = root
        self._scratch = root / "scratch"
        for folder in (root, self._scratch, *map(self._folder, BlobKind)):
            folder.mkdir(parents=True, exist_ok=True)
        # Also where none was missing: whoever made them may have ended before this.
        for parent in (root.parent, root):
            sync_folder(parent)

    def _folder(self, kind: BlobKind) -> Path:
        return self._root / kind.value

    def segment_directory(self) -> Path:
        """Where workers write segments, under names that begin with `SEGMENT_PREFIX`."""
        return self._folder(BlobKind.SEGMENT)

    def writer(self, kind: BlobKind) -> LocalBlobWriter:
        name = _fresh_name(kind)
        return LocalBlobWriter(name, kind, scratch=self.scratch(), final=self.path(name))

    def path(self, name: BlobName) -> Path:
        """Where the blob is; ValueError for a name that no blob can have."""
        match = _NAME.fullmatch(name)
        if match is None:
            raise ValueError(f"not the name of a blob: {name!r}")
        return self._folder(BlobKind(match[1])) / name

    def read(self, ranges: Sequence[BlobRange], *, chunk_bytes: int) -> AsyncGenerator[bytes, None]:
        return reading.chunks(ranges, self.path, chunk_bytes=chunk_bytes)

    async def delete(self, names: Sequence[BlobName]) -> None:
        # Not synced: a name that comes back with the power is an orphan, swept at the next start.
        with _our_errors():
            await asyncio.to_thread(_unlink_all, [self.path(name) for name in names])

    async def stored(self) -> AsyncIterator[Sequence[BlobName]]:
        for kind in BlobKind:
            names = await asyncio.to_thread(os.listdir, self._folder(kind))
            blobs = [BlobName(name) for name in sorted(names) if _NAME.fullmatch(name)]
            for start in range(0, len(blobs), _NAMES_AT_ONCE):
                yield blobs[start : start + _NAMES_AT_ONCE]

    async def adopt(self, unfinished: Path, kind: BlobKind, *, crc: int | None = None) -> Blob:
        name = _fresh_name(kind)
        return await asyncio.to_thread(_publish, unfinished, self.path(name), name, kind, crc)

    def scratch(self) -> Path:
        return self._scratch / secrets.token_hex(16)

    async def drop_scratch(self, *paths: Path) -> None:
        await asyncio.to_thread(_drop, paths)

    async def sweep_scratch(self) -> None:
        await asyncio.to_thread(lambda: _unlink_all(list(self._scratch.iterdir())))


class LocalBlobWriter:
    """Implements `blob_contract.BlobWriter`; one task uses it.

    The file is touched in threads only, one at a time under `_lock`: a task that was cancelled in
    `write` may call `discard` while the thread is still writing.
    """

    def __init__(self, name: BlobName, kind: BlobKind, *, scratch: Path, final: Path) -> None:
        self._name = name
        self._kind = kind
        self._scratch = scratch
        self._final = final
        self._buffer = bytearray()  # the event loop's alone
        self._bytes_written = 0
        self._returned = False  # `finish` gave the blob to its caller
        self._lock = threading.Lock()  # guards the five below
        self._fd: int | None = None
        self._stored_bytes = 0
        self._crc = 0
        self._unsynced_bytes = 0
        self._closed = False

    @property
    def bytes_written(self) -> int:
        """How many bytes were given to `write` so far."""
        return self._bytes_written

    async def write(self, chunk: bytes) -> None:
        self._buffer += chunk
        self._bytes_written += len(chunk)
        if len(self._buffer) >= _WRITE_BYTES:
            await asyncio.to_thread(self._append, self._take_buffer())

    async def finish(self) -> Blob:
        blob = await asyncio.to_thread(self._finish, self._take_buffer(), self._bytes_written)
        self._returned = True
        return blob

    async def discard(self) -> None:
        if not self._returned:
            await asyncio.to_thread(self._discard)

    def _take_buffer(self) -> bytearray:
        taken, self._buffer = self._buffer, bytearray()
        return taken

    def _append(self, data: bytearray) -> None:
        with self._lock, self._undone_when_it_fails():
            self._write_all(data)

    def _finish(self, data: bytearray, expected_bytes: int) -> Blob:
        with self._lock, self._undone_when_it_fails():
            fd = self._write_all(data)
            if self._stored_bytes != expected_bytes:
                raise ValueError("a write was cancelled half way; the blob can only be discarded")
            probe("blob.written")
            sync_file(fd)
            probe("blob.synced")
            self._close()
            return _publish(self._scratch, self._final, self._name, self._kind, self._crc)

    def _write_all(self, data: bytearray) -> int:
        fd = self._open()
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        view = memoryview(data)
        for at in range(0, len(data), _CRC_BYTES):  # it takes nothing but bytes
            self._crc = google_crc32c.extend(self._crc, bytes(view[at : at + _CRC_BYTES]))
        self._stored_bytes += len(data)
        self._unsynced_bytes += len(data)
        if self._unsynced_bytes >= _SYNC_BYTES:
            sync_data(fd)
            self._unsynced_bytes = 0
        return fd

    def _open(self) -> int:
        if self._closed:
            raise ValueError("the blob was finished or discarded already")
        if self._fd is None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._fd = os.open(self._scratch, flags, 0o600)
        return self._fd

    @contextmanager
    def _undone_when_it_fails(self) -> Iterator[None]:
        try:
            with _our_errors():
                yield
        except BaseException:
            self._remove()
            raise

    def _discard(self) -> None:
        with self._lock:
            self._remove()

    def _close(self) -> None:
        self._closed = True
        if self._fd is not None:
            fd, self._fd = self._fd, None
            os.close(fd)

    def _remove(self) -> None:
        """Nothing is left under either name: `finish` may have been cancelled after its rename."""
        self._close()
        self._buffer.clear()
        _drop([self._scratch, self._final])


def _fresh_name(kind: BlobKind) -> BlobName:
    return BlobName(f"{kind.value}-{secrets.token_hex(16)}")


@contextmanager
def _our_errors() -> Iterator[None]:
    """The operating system's errors on writing as ours, in one place."""
    try:
        yield
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull("no space left for a blob") from exc
        name = errno.errorcode.get(exc.errno or 0, "unknown")
        raise StoreUnavailable(f"a blob could not be written: {name}") from exc


def _publish(
    unfinished: Path, final: Path, name: BlobName, kind: BlobKind, crc: int | None
) -> Blob:
    """Give synced bytes their name, durably."""
    with _our_errors():
        size = unfinished.stat().st_size
        unfinished.rename(final)
        try:
            probe("blob.renamed")
            sync_folder(final.parent)
        except OSError:
            _drop([final])
            raise
        probe("blob.durable")
    return Blob(name=name, kind=kind, bytes=size, crc=crc)


def _unlink_all(paths: Sequence[Path]) -> None:
    for path in paths:
        with suppress(FileNotFoundError):
            path.unlink()


def _drop(paths: Sequence[Path]) -> None:
    """Remove what nobody was told of; where a sick disk refuses, the next start sweeps it."""
    for path in paths:
        with suppress(OSError):
            path.unlink()
