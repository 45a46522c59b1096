"""Uploads in parts: a file that comes in pieces, in any order, and becomes a file when it is whole.

Each part is a blob of its own, durable before its caller is answered and held by the upload. On
completion the parts are copied into one blob (decision 0009), and one transaction makes it a file
and lets go of the parts. An upload that is not completed lets go of them when it is cancelled or
expires; a sweep removes their bytes.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final
from weakref import WeakValueDictionary

import anyio

from batchline.domain import ids
from batchline.domain.errors import BlobUnreadable, InvalidRequest, NotFound, StorageFull
from batchline.domain.ids import ProjectId, UploadId
from batchline.domain.model import (
    Blob,
    BlobKind,
    BlobRange,
    File,
    Purpose,
    Upload,
    UploadPart,
    UploadStatus,
)
from batchline.service.file_rules import HEAD_BYTES, check_begins_like_jsonl, too_large
from batchline.service.files import MIB, Files
from batchline.service.incoming import Incoming
from batchline.service.upload_orders import Completion, parse_completion, parse_upload
from batchline.store.blob_contract import BlobStore, BlobWriter
from batchline.store.contract import Store
from batchline.telemetry import event

MAX_PART_BYTES: Final = 64 * MIB  # the service's, and what its Python client cuts
MAX_PARTS: Final = 10_000  # of one upload: at most as many files on disk, however small they are

_COPY_BYTES: Final = MIB  # held while parts are copied; three hand-overs to threads for each


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadLimits:
    """8 GiB and one hour are the service's. `max_bytes` also bounds what all parts hold together,
    parts that were sent twice included."""

    max_bytes: int = 8 * 1024 * MIB
    lifetime_s: int = 3_600


class Uploads:
    """The use cases of uploads in parts, each scoped by a project."""

    def __init__(
        self,
        store: Store,
        blobs: BlobStore,
        files: Files,
        *,
        clock: Callable[[], float] = time.time,
        random: Callable[[int], bytes] = os.urandom,
        limits: UploadLimits | None = None,
        has_room: Callable[[], bool] = lambda: True,
    ) -> None:
        """`files` says what a completed file looks like. `has_room` False: the disk is low."""
        self._store = store
        self._blobs = blobs
        self._files = files
        self._clock = clock
        self._random = random
        self.limits = limits or UploadLimits()
        self._has_room = has_room
        # Whoever completes an upload holds its lock: a client that asks again because the copy
        # takes longer than its patience does not start a second copy beside the first.
        self._completing: WeakValueDictionary[UploadId, asyncio.Lock] = WeakValueDictionary()

    async def create(self, project_id: ProjectId, body: object) -> Upload:
        """Begin an upload from the decoded JSON `body`; it is committed when this returns.

        Raises:
            InvalidRequest: the body is not what `parse_upload` takes.
        """
        order = parse_upload(body, max_bytes=self.limits.max_bytes)
        now = self._now()
        upload = Upload(
            id=ids.upload_id(self._random(ids.RANDOM_BYTES)),
            project_id=project_id,
            purpose=order.purpose,
            filename=order.filename,
            bytes=order.bytes,
            created_at=now,
            expires_at=now + self.limits.lifetime_s,
            file_expires_after_s=order.expires_after_s,
        )
        await self._store.create_upload(upload)
        event("upload_created", upload_id=upload.id, bytes=upload.bytes)
        return upload

    async def begin_part(self, project_id: ProjectId, upload_id: str) -> IncomingPart:
        """Start a part; use it as `async with`, which discards what was not finished.

        Raises:
            NotFound: there is no such upload, or it is another project's.
            InvalidRequest: it is no longer open.
            StorageFull: the disk is low.
        """
        self._refuse_when_low()
        upload = await self._open_upload(project_id, upload_id)
        return IncomingPart(self, upload, self._blobs.writer(BlobKind.INPUT))

    async def complete(
        self, project_id: ProjectId, upload_id: str, body: object
    ) -> tuple[Upload, File | None]:
        """Make the parts that `body` lists, in its order, a file; the upload and that file.

        Asked again with the same parts it gives the same answer and makes nothing; the file is
        then None if it has been deleted since.

        Raises:
            NotFound: there is no such upload, or it is another project's.
            InvalidRequest: the upload is no longer open, or parts, size, checksum or content are
                not what was announced. The upload stays as it is.
            StorageFull: no room for the copy. The upload stays as it is.
        """
        order = parse_completion(body)
        async with self._completing.setdefault(UploadId(upload_id), asyncio.Lock()):
            upload = await self._get(project_id, upload_id)
            if upload.recipe != order.recipe:
                self._refuse_when_low()
                self._check_open(upload)
                await self._join(upload, await self._chosen(upload, order), order)
            return await self._completed(project_id, upload_id)

    async def cancel(self, project_id: ProjectId, upload_id: str) -> Upload:
        """Give the upload up; a repeated cancel changes nothing.

        Raises:
            NotFound: there is no such upload, or it is another project's.
            InvalidRequest: it is completed or expired.
        """
        upload = await self._get(project_id, upload_id)
        if await self._store.cancel_upload(upload.id, now=self._now()):
            event("upload_cancelled", upload_id=upload.id)
        upload = await self._get(project_id, upload_id)
        if upload.status is not UploadStatus.CANCELLED:
            raise self._not_open(upload)
        return upload

    # -- completing ----------------------------------------------------------------------------

    async def _chosen(self, upload: Upload, order: Completion) -> Sequence[UploadPart]:
        """The parts that `order` lists; they have the announced size together."""
        known = {part.id: part for part in await self._store.upload_parts(upload.id)}
        for part_id in order.part_ids:
            if part_id not in known:
                raise InvalidRequest(f"No such part: {part_id}", param="part_ids")
        chosen = [known[part_id] for part_id in order.part_ids]
        size = sum(part.bytes for part in chosen)
        if size != upload.bytes:
            raise InvalidRequest(
                f"The parts have {size} bytes together, but the upload was announced with "
                f"{upload.bytes} bytes.",
                param="part_ids",
            )
        return chosen

    async def _join(self, upload: Upload, parts: Sequence[UploadPart], order: Completion) -> None:
        try:
            blob = await self._copied(upload, parts, md5=order.md5)
        except BlobUnreadable:
            # A cancel or the end of the hour let the parts go meanwhile: then say that.
            self._check_open(await self._get(upload.project_id, upload.id))
            raise
        file = self._files.new_file(
            upload.project_id,
            size=blob.bytes,
            filename=upload.filename,
            purpose=upload.purpose,
            expires_after_s=upload.file_expires_after_s,
        )
        try:
            completed = await self._store.complete_upload(
                upload.id, recipe=order.recipe, file=file, blob=blob
            )
        except Exception:
            await self._drop_unknown(blob)
            raise
        if not completed:
            await self._blobs.delete([blob.name])
            raise self._not_open(await self._get(upload.project_id, upload.id))
        event("upload_completed", upload_id=upload.id, file_id=file.id, bytes=file.bytes)

    async def _copied(
        self, upload: Upload, parts: Sequence[UploadPart], *, md5: str | None
    ) -> Blob:
        """One durable blob of the parts' bytes, looked at on the way; none when an error is raised.

        Reading, hashing and writing take turns on threads and let go of the interpreter's lock, so
        that the event loop does other things meanwhile.
        """
        ranges = [BlobRange(blob=part.blob_name, start=0, stop=part.bytes) for part in parts]
        digest = hashlib.md5(usedforsecurity=False)
        writer = self._blobs.writer(BlobKind.INPUT)
        try:
            async for chunk in self._blobs.read(ranges, chunk_bytes=_COPY_BYTES):
                if writer.bytes_written == 0 and upload.purpose is Purpose.BATCH:
                    check_begins_like_jsonl(
                        upload.filename, chunk[:HEAD_BYTES], is_whole=upload.bytes <= HEAD_BYTES
                    )
                if md5 is not None:
                    await asyncio.to_thread(digest.update, chunk)
                await writer.write(chunk)
            if md5 is not None and digest.hexdigest() != md5:
                raise InvalidRequest(
                    "The MD5 checksum of the parts is not the one that was given.", param="md5"
                )
            return await writer.finish()
        finally:
            # Shielded: the bytes must go even when the task is ending because it was cancelled.
            with anyio.CancelScope(shield=True):
                await writer.discard()

    async def _completed(self, project_id: ProjectId, upload_id: str) -> tuple[Upload, File | None]:
        upload = await self._get(project_id, upload_id)
        if upload.file_id is None:
            return upload, None
        file = await self._store.get_file(project_id, upload.file_id, now=self._now())
        return upload, file

    # -- parts ---------------------------------------------------------------------------------

    async def _add_part(self, upload: Upload, blob: Blob) -> UploadPart:
        """The row of a durable part; without the row the blob goes too."""
        part = UploadPart(
            id=ids.part_id(self._random(ids.RANDOM_BYTES)),
            upload_id=upload.id,
            blob_name=blob.name,
            bytes=blob.bytes,
            created_at=self._now(),
        )
        try:
            added = await self._store.add_part(
                part, blob, max_parts=MAX_PARTS, max_bytes=self.limits.max_bytes
            )
        except Exception:
            await self._drop_unknown(blob)
            raise
        if not added:
            await self._blobs.delete([blob.name])
            self._check_open(await self._get(upload.project_id, upload.id))
            raise InvalidRequest(
                f"The upload has no room for this part: at most {MAX_PARTS} parts and "
                f"{self.limits.max_bytes} bytes in all."
            )
        return part

    async def _drop_unknown(self, blob: Blob) -> None:
        """Delete `blob` after its transaction failed, unless that committed after all.

        Not for a cancelled task: its transaction goes on to its end on the store's thread, and the
        row may yet appear; if it does not, the next start sweeps the orphan.
        """
        if not await self._store.known_blobs([blob.name]):
            await self._blobs.delete([blob.name])

    # -- looking up ----------------------------------------------------------------------------

    async def _open_upload(self, project_id: ProjectId, upload_id: str) -> Upload:
        upload = await self._get(project_id, upload_id)
        self._check_open(upload)
        return upload

    async def _get(self, project_id: ProjectId, upload_id: str) -> Upload:
        found = None
        if ids.is_plausible(upload_id):
            found = await self._store.get_upload(project_id, UploadId(upload_id))
        if found is None:
            raise NotFound(f"No such Upload object: {upload_id}", param="id")
        return found

    def _check_open(self, upload: Upload) -> None:
        if upload.status_at(self._now()) is not UploadStatus.PENDING:
            raise self._not_open(upload)

    def _not_open(self, upload: Upload) -> InvalidRequest:
        status = upload.status_at(self._now())
        return InvalidRequest(f"Upload {upload.id} has status '{status}' and cannot be changed.")

    def _refuse_when_low(self) -> None:
        if not self._has_room():
            raise StorageFull("the disk is low: no uploads until there is room again")

    def _now(self) -> int:
        return int(self._clock())


class IncomingPart(Incoming):
    """A part that is being received."""

    def __init__(self, uploads: Uploads, upload: Upload, writer: BlobWriter) -> None:
        super().__init__(writer)
        self._uploads = uploads
        self._upload = upload

    async def write(self, chunk: bytes) -> None:
        """Append to the part.

        Raises:
            InvalidRequest: it would be larger than MAX_PART_BYTES.
            StorageFull: no space.
        """
        if self._writer.bytes_written + len(chunk) > MAX_PART_BYTES:
            raise too_large()
        await self._writer.write(chunk)

    async def finish(self) -> UploadPart:
        """Make the bytes durable, then the part known.

        Raises:
            InvalidRequest: the upload ended meanwhile, or has no room for this part.
            StorageFull, StoreUnavailable: there is no part, and its bytes are gone.
        """
        blob = await self._writer.finish()
        return await self._uploads._add_part(self._upload, blob)
