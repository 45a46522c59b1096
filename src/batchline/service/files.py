"""Files: upload as a stream, list, read, delete.

An upload's bytes are durable before its row exists, and the row before the caller is answered; an
upload that does not get that far leaves neither.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from batchline.domain import ids
from batchline.domain.errors import BlobUnreadable, InvalidRequest, NotFound, StorageFull
from batchline.domain.ids import FileId, ProjectId
from batchline.domain.model import DAY_S, Blob, BlobKind, File, Page, Purpose
from batchline.service import manifest
from batchline.service.alarms import Alarms
from batchline.service.downloads import Downloads, holding
from batchline.service.file_rules import HEAD_BYTES, check_begins_like_jsonl, too_large
from batchline.service.incoming import Incoming
from batchline.store.blob_contract import BlobStore, BlobWriter
from batchline.store.contract import Store
from batchline.telemetry import event

MIB: Final = 1024 * 1024
MAX_LIST: Final = 10_000
NOT_DOWNLOADABLE: Final = frozenset({Purpose.ASSISTANTS, Purpose.USER_DATA})


@dataclass(frozen=True, slots=True, kw_only=True)
class FileLimits:
    """How big a file may be and how long one for a batch lives when its uploader says nothing.

    512 MiB and 30 days are the service's. `download_chunk_bytes` is what one download holds.
    """

    max_bytes: int = 512 * MIB
    batch_file_lifetime_s: int = 30 * DAY_S
    download_chunk_bytes: int = 256 * 1024


class Files:
    """The use cases of files, each scoped by a project."""

    def __init__(
        self,
        store: Store,
        blobs: BlobStore,
        *,
        clock: Callable[[], float] = time.time,
        random: Callable[[int], bytes] = os.urandom,
        limits: FileLimits | None = None,
        has_room: Callable[[], bool] = lambda: True,
        alarms: Alarms | None = None,
        downloads: Downloads | None = None,
    ) -> None:
        """`has_room` False: the disk is low, and uploads are refused before it is full."""
        self._store = store
        self._blobs = blobs
        self._clock = clock
        self._random = random
        self.limits = limits or FileLimits()
        self._has_room = has_room
        self._alarms = alarms or Alarms()
        self._downloads = downloads or Downloads()

    def begin(self, project_id: ProjectId) -> IncomingFile:
        """Start an upload; use it as `async with`, which discards what was not finished.

        Raises:
            StorageFull: the disk is low.
        """
        if not self._has_room():
            raise StorageFull("the disk is low: no uploads until there is room again")
        return IncomingFile(self, project_id, self._blobs.writer(BlobKind.INPUT))

    async def get(self, project_id: ProjectId, file_id: str) -> File:
        """The file.

        Raises:
            NotFound: there is no such file, or no longer, or it is another project's.
        """
        found = None
        if ids.is_plausible(file_id):
            found = await self._store.get_file(project_id, FileId(file_id), now=self._now())
        if found is None:
            raise _no_such_file(file_id)
        return found

    async def list(
        self,
        project_id: ProjectId,
        *,
        purpose: str | None,
        after: str | None,
        limit: int,
        ascending: bool,
    ) -> Page[File]:
        """One page, newest first unless `ascending`; `limit` is 1 to MAX_LIST.

        Raises:
            NotFound: `after` never existed (the cursor may be deleted or expired).
        """
        if after is not None and not ids.is_plausible(after):
            raise _no_such_cursor(after)
        if purpose is not None and purpose not in tuple(Purpose):
            return Page(items=(), has_more=False)
        try:
            return await self._store.list_files(
                project_id,
                purpose=purpose,
                after=None if after is None else FileId(after),
                limit=limit,
                ascending=ascending,
                now=self._now(),
            )
        except NotFound as exc:
            raise _no_such_cursor(str(after)) from exc

    async def delete(self, project_id: ProjectId, file_id: str) -> FileId:
        """Hide the file. A batch that uses its bytes goes on with them, and a download with what it
        reads (`Downloads`).

        Raises:
            NotFound: as `get`; so a second delete raises it too.
        """
        found = FileId(file_id)
        if not ids.is_plausible(file_id) or not await self._store.delete_file(
            project_id, found, now=self._now()
        ):
            raise _no_such_file(file_id)
        event("file_deleted", file_id=found)
        return found

    async def downloadable(self, project_id: ProjectId, file_id: str) -> File:
        """The file, whose bytes may be downloaded.

        Raises:
            NotFound: as `get`.
            InvalidRequest: files of this purpose may not be downloaded.
        """
        file = await self.get(project_id, file_id)
        if file.purpose in NOT_DOWNLOADABLE:
            raise InvalidRequest(f"Not allowed to download files of purpose: {file.purpose}")
        return file

    async def content(
        self, file: File, *, start: int = 0, stop: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        """The bytes `start` to `stop` (None: the end) of a file that is `downloadable`, in chunks;
        close the generator when the reader goes away. Until then they stay, also when the file is
        deleted or expires, as long as `Downloads` allows.

        Raises:
            NotFound: it has been deleted since.
            BlobUnreadable: the row promises bytes that are not there; also while iterating.
        """
        with self._downloads.of_file(file.id):
            await self.get(file.project_id, file.id)  # once more: what is hidden by now may go
            # A manifest that ends just there is whole: it is read only as far as there is no gap.
            last = await self._store.file_ranges(file.id, start=max(0, file.bytes - 1), most=1)
            if sum(part.stop - part.start for part in last) != min(1, file.bytes):
                raise BlobUnreadable(f"the manifest of {file.id} does not add up to its size")
            chunks = self._chunks(file, start, file.bytes if stop is None else stop)
            return await holding(self._downloads.of_file(file.id), chunks)

    async def _chunks(self, file: File, start: int, stop: int) -> AsyncGenerator[bytes, None]:
        bytes_of_file = manifest.read(
            lambda at: self._store.file_ranges(file.id, start=at, stop=stop, most=manifest.PAGE),
            self._blobs,
            start=start,
            stop=stop,
            chunk_bytes=self.limits.download_chunk_bytes,
        )
        try:
            async with aclosing(bytes_of_file):
                async for chunk in bytes_of_file:
                    yield chunk
        except BlobUnreadable:
            # Else it was deleted or has expired beside us, and its bytes went after a while.
            if await self._store.get_file(file.project_id, file.id, now=self._now()) is not None:
                self._alarms.file_corrupt(file_id=file.id)
            raise

    def new_file(
        self,
        project_id: ProjectId,
        *,
        size: int,
        filename: str,
        purpose: Purpose,
        expires_after_s: int | None,
    ) -> File:
        """A file that is created now, with a fresh id and its expiry; it has no row yet."""
        now = self._now()
        if expires_after_s is None and purpose is Purpose.BATCH:
            expires_after_s = self.limits.batch_file_lifetime_s
        return File(
            id=ids.file_id(self._random(ids.RANDOM_BYTES)),
            project_id=project_id,
            purpose=purpose,
            filename=filename,
            bytes=size,
            created_at=now,
            expires_at=None if expires_after_s is None else now + expires_after_s,
        )

    async def _create(
        self,
        project_id: ProjectId,
        blob: Blob,
        *,
        filename: str,
        purpose: Purpose,
        expires_after_s: int | None,
    ) -> File:
        """The row of a durable blob; without the row the blob goes too."""
        file = self.new_file(
            project_id,
            size=blob.bytes,
            filename=filename,
            purpose=purpose,
            expires_after_s=expires_after_s,
        )
        try:
            await self._store.create_file(file, blob)
        except Exception:
            # Not for a cancelled task: its transaction goes on to its end on the store's thread, so
            # the row may yet appear; if it does not, the next start sweeps the orphan. Nor where
            # it committed and only the answer was lost.
            if not await self._store.known_blobs([blob.name]):
                await self._blobs.delete([blob.name])
            raise
        event("file_created", file_id=file.id, purpose=purpose.value, bytes=file.bytes)
        return file

    def _now(self) -> int:
        return int(self._clock())


class IncomingFile(Incoming):
    """A file that is being uploaded. Its metadata may come after its bytes: `finish` takes it.

    See `Files.begin`.
    """

    def __init__(self, files: Files, project_id: ProjectId, writer: BlobWriter) -> None:
        super().__init__(writer)
        self._files = files
        self._project_id = project_id
        self._head = bytearray()

    async def write(self, chunk: bytes) -> None:
        """Append to the file.

        Raises:
            InvalidRequest: the file would be larger than allowed.
            StorageFull: no space.
        """
        if self._writer.bytes_written + len(chunk) > self._files.limits.max_bytes:
            raise too_large()
        if len(self._head) < HEAD_BYTES:
            self._head += chunk[: HEAD_BYTES - len(self._head)]
        await self._writer.write(chunk)

    async def finish(
        self, *, filename: str, purpose: Purpose, expires_after_s: int | None = None
    ) -> File:
        """Make the bytes durable, then the file visible; `expires_after_s` is checked already.

        Raises:
            InvalidRequest: a file for a batch that is not JSONL by name and beginning.
            StorageFull, StoreUnavailable: there is no file, and its bytes are gone.
        """
        if purpose is Purpose.BATCH:
            check_begins_like_jsonl(
                filename, bytes(self._head), is_whole=self._writer.bytes_written <= HEAD_BYTES
            )
        blob = await self._writer.finish()
        return await self._files._create(
            self._project_id,
            blob,
            filename=filename,
            purpose=purpose,
            expires_after_s=expires_after_s,
        )


def _no_such_file(file_id: str) -> NotFound:
    return NotFound(f"No such File object: {file_id}", param="id")


def _no_such_cursor(after: str) -> NotFound:
    return NotFound(f"No such File object: {after}", param="after")
