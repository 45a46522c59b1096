"""Bytes under names, beside the database: what may be asked of where blobs are kept.

Which blobs there are is the database's to say (`contract.Store`); a blob that it does not know is
an orphan, and swept at the next start.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from pathlib import Path
from typing import Protocol

from batchline.domain.ids import BlobName
from batchline.domain.model import Blob, BlobKind, BlobRange


class BlobWriter(Protocol):
    """Receives the bytes of one new blob; nothing is visible before `finish`."""

    @property
    def bytes_written(self) -> int: ...

    async def write(self, chunk: bytes) -> None:
        """Append. Blocks on storage, never on the event loop.

        Raises:
            StorageFull: no space; call `discard`.
        """

    async def finish(self) -> Blob:
        """Make the blob durable under its name (data, then name, then directory) and return it.

        Raises:
            StorageFull: no space; the blob does not exist.
        """

    async def discard(self) -> None:
        """Drop what was written; harmless after `finish` or a second time."""


class BlobStore(Protocol):
    """Inputs, plans, never-run lines and segments as bytes under names."""

    def writer(self, kind: BlobKind) -> BlobWriter:
        """A writer for a new blob with a fresh name."""

    def path(self, name: BlobName) -> Path:
        """Where the blob's bytes are, for children that read it with `pread`."""

    def read(self, ranges: Sequence[BlobRange], *, chunk_bytes: int) -> AsyncGenerator[bytes, None]:
        """The bytes of `ranges` in order, in chunks of at most `chunk_bytes`.

        A range with a CRC is held against it before its first byte is given; where it is very
        large, before its last.

        Raises:
            BlobUnreadable: a blob is missing or shorter than its range, or its bytes have changed.
        """

    async def delete(self, names: Sequence[BlobName]) -> None:
        """Remove bytes; a name that is already gone is not an error."""

    def stored(self) -> AsyncIterator[Sequence[BlobName]]:
        """The names of everything in storage, in groups, unfinished uploads not included."""

    async def adopt(self, unfinished: Path, kind: BlobKind, *, crc: int | None = None) -> Blob:
        """Make a finished, synced file that a child wrote (see `scratch`) a blob.

        `crc` is the CRC-32C of what the child wrote, if it knows.

        Renames it and syncs the directory; the blob is durable when this returns.
        """

    def scratch(self) -> Path:
        """A fresh path on the same file system for a child to write to; swept at start."""

    async def drop_scratch(self, *paths: Path) -> None:
        """Remove what a child left at scratch paths; harmless where nothing is (any more)."""

    async def sweep_scratch(self) -> None:
        """Remove unfinished uploads and scratch files; only at start, before anyone writes."""
