"""`Store` on SQLite and PostgreSQL, one set of queries: the asynchronous face of this package.

Each method is one transaction (`transactions.py`); what it does is in the modules beside this one
(`keys.py`, `files.py`, `uploads.py`, …), as functions on a connection.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from batchline.domain.ids import BatchId, BlobName, FileId, KeyId, ProjectId, UploadId
from batchline.domain.keys import ApiKey
from batchline.domain.lifecycle import BatchEvent, BatchStatus, Stopping
from batchline.domain.model import (
    Batch,
    Blob,
    BlobRange,
    CommittedRange,
    File,
    LineProblem,
    Page,
    PlannedShard,
    Shard,
    ShardCommit,
    ShardKey,
    Upload,
    UploadPart,
)
from batchline.domain.pending import PendingShards
from batchline.store import (
    batches,
    committing,
    files,
    finalizing,
    idempotency,
    keys,
    outputs,
    references,
    repairing,
    uploads,
)
from batchline.store.contract import FinalFiles, IdempotencyKey, NewBatch, Skipped
from batchline.store.transactions import Transactions


class Database(Transactions):
    """Implements `store.contract.Store`; the promises are written there."""

    # -- keys ----------------------------------------------------------------------------------

    async def create_key(self, key: ApiKey) -> ApiKey:
        return await self._write(lambda c: keys.create(c, key), step="key.create")

    async def list_keys(self) -> Sequence[ApiKey]:
        return await self._read(keys.every)

    async def project_name(self, project_id: ProjectId) -> str:
        return await self._read(lambda c: keys.project_name(c, project_id))

    async def revoke_key(self, key_id: KeyId, *, now: int) -> ApiKey | None:
        return await self._write(lambda c: keys.revoke(c, key_id, now=now), step="key.revoke")

    # -- files ---------------------------------------------------------------------------------

    async def create_file(self, file: File, blob: Blob) -> None:
        await self._write(lambda c: files.create(c, file, blob), step="file.create")

    async def get_file(self, project_id: ProjectId, file_id: FileId, *, now: int) -> File | None:
        return await self._read(lambda c: files.get(c, project_id, file_id, now=now))

    async def list_files(
        self,
        project_id: ProjectId,
        *,
        purpose: str | None,
        after: FileId | None,
        limit: int,
        ascending: bool,
        now: int,
    ) -> Page[File]:
        return await self._read(
            lambda c: files.list_page(
                c,
                project_id,
                purpose=purpose,
                after=after,
                limit=limit,
                ascending=ascending,
                now=now,
            )
        )

    async def delete_file(self, project_id: ProjectId, file_id: FileId, *, now: int) -> bool:
        return await self._write(
            lambda c: files.hide(c, project_id, file_id, now=now), step="file.delete"
        )

    async def expire_files(self, *, now: int, limit: int) -> int:
        return await self._write(
            lambda c: files.hide_expired(c, now=now, limit=limit), step="files.expire"
        )

    async def hidden_files(self, *, after: FileId | None, limit: int) -> Sequence[FileId]:
        return await self._read(lambda c: references.hidden(c, after=after, limit=limit))

    async def let_go_files(self, file_ids: Sequence[FileId]) -> None:
        await self._write(lambda c: files.let_go(c, file_ids), step="files.let_go")

    async def file_ranges(
        self, file_id: FileId, *, start: int = 0, stop: int | None = None, most: int | None = None
    ) -> Sequence[BlobRange]:
        return await self._read(
            lambda c: files.ranges(c, file_id, start=start, stop=stop, most=most)
        )

    # -- uploads in parts ----------------------------------------------------------------------

    async def create_upload(self, upload: Upload) -> None:
        await self._write(lambda c: uploads.create(c, upload), step="upload.create")

    async def get_upload(self, project_id: ProjectId, upload_id: UploadId) -> Upload | None:
        return await self._read(lambda c: uploads.get(c, project_id, upload_id))

    async def add_part(
        self, part: UploadPart, blob: Blob, *, max_parts: int, max_bytes: int
    ) -> bool:
        return await self._write(
            lambda c: uploads.add_part(c, part, blob, max_parts=max_parts, max_bytes=max_bytes),
            step="part.add",
        )

    async def upload_parts(self, upload_id: UploadId) -> Sequence[UploadPart]:
        return await self._read(lambda c: uploads.parts(c, upload_id))

    async def complete_upload(
        self, upload_id: UploadId, *, recipe: str, file: File, blob: Blob
    ) -> bool:
        return await self._write(
            lambda c: uploads.complete(c, upload_id, recipe=recipe, file=file, blob=blob),
            step="upload.complete",
        )

    async def cancel_upload(self, upload_id: UploadId, *, now: int) -> bool:
        return await self._write(
            lambda c: uploads.cancel(c, upload_id, now=now), step="upload.cancel"
        )

    async def expire_uploads(self, *, now: int, limit: int) -> int:
        return await self._write(
            lambda c: uploads.expire(c, now=now, limit=limit), step="uploads.expire"
        )

    # -- blobs ---------------------------------------------------------------------------------

    async def unreferenced_blobs(self, *, limit: int) -> Sequence[Blob]:
        return await self._read(lambda c: references.unreferenced(c, limit=limit))

    async def forget_blobs(self, names: Sequence[BlobName]) -> None:
        await self._write(lambda c: references.forget(c, names), step="blobs.forget")

    async def known_blobs(self, names: Sequence[BlobName]) -> set[BlobName]:
        return await self._read(lambda c: references.known(c, names))

    async def release_worker_references(self, worker: str | None) -> None:
        step = "references.release"
        if worker is None:
            await self._write(references.drop_held_by_workers, step=step)
        else:
            holder = references.worker_holder(worker)
            await self._write(lambda c: references.drop_held_by(c, [holder]), step=step)

    # -- batches -------------------------------------------------------------------------------

    async def create_batch(self, batch: NewBatch) -> Batch:
        return await self._write(lambda c: batches.create(c, batch), step="batch.create")

    async def create_batch_once(self, batch: NewBatch, key: IdempotencyKey) -> Batch | None:
        return await self._write(
            lambda c: idempotency.create_once(c, batch, key), step="batch.create"
        )

    async def drop_idempotency_keys(self, *, now: int) -> None:
        await self._write(lambda c: idempotency.drop_expired(c, now=now), step="idempotency.drop")

    async def get_batch(self, project_id: ProjectId, batch_id: BatchId) -> Batch | None:
        return await self._read(lambda c: batches.get(c, project_id, batch_id))

    async def list_batches(
        self, project_id: ProjectId, *, after: BatchId | None, limit: int
    ) -> Page[Batch]:
        return await self._read(
            lambda c: batches.list_page(c, project_id, after=after, limit=limit)
        )

    async def unfinished_batches(self) -> Sequence[Batch]:
        return await self._read(batches.unfinished)

    async def load_batch(self, batch_id: BatchId) -> Batch:
        return await self._read(lambda c: batches.load(c, batch_id))

    async def advance_batch(
        self, batch_id: BatchId, *, from_status: BatchStatus, event: BatchEvent, now: int
    ) -> Batch | None:
        return await self._write(
            lambda c: batches.advance(c, batch_id, from_status=from_status, event=event, now=now),
            step="cancel" if event is BatchEvent.CANCEL_REQUESTED else event.value,
        )

    async def refuse_batch(
        self, batch_id: BatchId, *, problems: Sequence[LineProblem], now: int
    ) -> bool:
        return await self._write(
            lambda c: batches.refuse(c, batch_id, problems=problems, now=now), step="refuse"
        )

    async def start_batch(
        self,
        batch_id: BatchId,
        *,
        plan: Blob,
        shards: Iterable[PlannedShard],
        lines: int,
        model: str | None,
        skipped: Skipped | None = None,
        now: int,
    ) -> bool:
        return await self._write(
            lambda c: batches.start(
                c,
                batch_id,
                plan=plan,
                shards=shards,
                lines=lines,
                model=model,
                skipped=skipped,
                now=now,
            ),
            step="batch.start",
        )

    async def put_receipt(self, batch_id: BatchId, receipt: Mapping[str, object]) -> None:
        await self._write(lambda c: batches.merge_receipt(c, batch_id, receipt), step="receipt.put")

    # -- shards and commits --------------------------------------------------------------------

    async def pending_shards(self, batch_id: BatchId) -> PendingShards:
        return await self._read(lambda c: committing.pending(c, batch_id))

    async def claim_shard(self, key: ShardKey) -> Shard | None:
        return await self._write(lambda c: committing.claim(c, key), step="shard.claim")

    async def fence_shards(self, keys: Sequence[ShardKey], *, died: bool) -> None:
        await self._write(lambda c: committing.fence(c, keys, died=died), step="shards.fence")

    async def commit(
        self, worker: str, commits: Sequence[ShardCommit], *, now: int
    ) -> Sequence[bool]:
        return await self._write(
            lambda c: committing.commit(c, worker, commits, now=now), step="commit"
        )

    async def shard_bitmaps(self, batch_id: BatchId) -> Sequence[tuple[int, int, bytes]]:
        return await self._read(lambda c: committing.bitmaps(c, batch_id))

    async def partials(self, batch_id: BatchId) -> Sequence[BlobRange]:
        return await self._read(lambda c: committing.partials(c, batch_id))

    async def output_end(
        self, batch_id: BatchId, *, after: int, limit: int, repairs: int, now: int
    ) -> int | None:
        return await self._read(
            lambda c: outputs.end(c, batch_id, after=after, limit=limit, repairs=repairs, now=now)
        )

    async def committed_output(
        self, batch_id: BatchId, *, start: int, stop: int, most: int, repairs: int, now: int | None
    ) -> Sequence[BlobRange]:
        return await self._read(
            lambda c: outputs.committed(
                c, batch_id, start=start, stop=stop, most=most, repairs=repairs, now=now
            )
        )

    async def committed_ranges(
        self, batch_id: BatchId, *, after: int, limit: int
    ) -> Sequence[CommittedRange]:
        return await self._read(
            lambda c: repairing.committed(c, batch_id, after=after, limit=limit)
        )

    async def unsettle_ranges(
        self,
        batch_id: BatchId,
        damaged: Sequence[int],
        *,
        from_status: BatchStatus,
        stopping: Stopping | None,
        now: int,
    ) -> Batch | None:
        return await self._write(
            lambda c: repairing.unsettle(
                c, batch_id, damaged, from_status=from_status, stopping=stopping, now=now
            ),
            step="unsettle",
        )

    async def finalize(
        self,
        batch_id: BatchId,
        *,
        from_status: BatchStatus,
        stopping: Stopping | None,
        files: FinalFiles,
        now: int,
    ) -> Batch | None:
        return await self._write(
            lambda c: finalizing.finalize(
                c, batch_id, from_status=from_status, stopping=stopping, finals=files, now=now
            ),
            step="finalize",
        )
