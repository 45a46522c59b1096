"""Every question that may be asked of the database. Start reading here; of bytes: `blob_contract`.

Promises common to all methods of `Store`:
- A method that returns has committed: what it wrote survives kill -9 and power loss.
- A method that raises has written nothing.
- A method that may lose a race carries its guard in its parameters (`from_status=`, an epoch) and
  says so with its result; losing is ordinary, not an error.
- Every read and write of a project's things is scoped by `project_id`: another project's id is
  indistinguishable from one that never existed.
- Errors are `StoreUnavailable` (try again), `StorageFull` (no space; nothing half-done) and
  nothing else.

One set of promises for SQLite and PostgreSQL; `tests/contract/` holds both to them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

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


@dataclass(frozen=True, slots=True, kw_only=True)
class NewBatch:
    """A batch as its creator asked for it. `expires_at` is created_at + the window."""

    id: BatchId
    project_id: ProjectId
    endpoint: str
    completion_window: str
    input_file_id: FileId
    created_at: int
    expires_at: int
    metadata: Mapping[str, str] | None
    output_expires_after_s: int | None
    skip_invalid: bool = False
    run_once: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """Lines that were left out of a batch: how many, and their error lines (at least one byte)."""

    lines: int
    blob: Blob


@dataclass(frozen=True, slots=True, kw_only=True)
class IdempotencyKey:
    """A creator's name for a create, valid until `expires_at`; `fingerprint` stands for what was
    asked for."""

    key: str
    fingerprint: str
    expires_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalFiles:
    """What `finalize` is to create: the ids and names of the two files, and the never-run lines.

    A file is created only if it gets at least one byte. `never_run` goes to the error file, after
    the committed error ranges; None when every line ran.
    """

    output_id: FileId
    output_filename: str
    error_id: FileId
    error_filename: str
    expires_at: int | None
    never_run: Blob | None
    problems: Sequence[LineProblem] = ()  # the batch's `errors`, for a batch that ends FAILED


class Store(Protocol):
    """Keys, files, uploads, batches, shards and commits."""

    # -- keys ----------------------------------------------------------------------------------

    async def create_key(self, key: ApiKey) -> ApiKey:
        """Add a key and give it back as it is stored.

        It opens the project of `key.project_name`. Only if there is none, one is made with the id
        `key.project_id`.
        """

    async def list_keys(self) -> Sequence[ApiKey]:
        """Every key there has ever been, revoked ones too, oldest first."""

    async def project_name(self, project_id: ProjectId) -> str:
        """What the project is called, for ever; it must exist."""

    async def revoke_key(self, key_id: KeyId, *, now: int) -> ApiKey | None:
        """Revoke the key for good; None when there is none.

        One that was revoked before keeps its `revoked_at`.
        """

    # -- files ---------------------------------------------------------------------------------

    async def create_file(self, file: File, blob: Blob) -> None:
        """Make `file` visible with the bytes of `blob`, which must be durable already."""

    async def get_file(self, project_id: ProjectId, file_id: FileId, *, now: int) -> File | None:
        """The file, or None when it never existed, is another project's, deleted or expired."""

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
        """One page in order of creation (newest first unless `ascending`), without the cursor item.

        The cursor may be deleted or expired: its place is remembered.

        Raises:
            NotFound: `after` never existed in this project.
        """

    async def delete_file(self, project_id: ProjectId, file_id: FileId, *, now: int) -> bool:
        """Hide the file; False when there was no such visible file.

        Its manifest and bytes stay until `let_go_files`. A batch that uses them has a reference of
        its own.
        """

    async def expire_files(self, *, now: int, limit: int) -> int:
        """Hide up to `limit` files past `expires_at`, as `delete_file` does; how many."""

    async def hidden_files(self, *, after: FileId | None, limit: int) -> Sequence[FileId]:
        """Deleted and expired files whose bytes are still held, in order of their ids."""

    async def let_go_files(self, file_ids: Sequence[FileId]) -> None:
        """Drop the manifests and the references of hidden files; what is not hidden stays."""

    async def file_ranges(
        self, file_id: FileId, *, start: int = 0, stop: int | None = None, most: int | None = None
    ) -> Sequence[BlobRange]:
        """The file's manifest in order: its content is these ranges, one after another.

        Only what holds bytes `start` to `stop` (None: the end), cut there, and of that the first
        `most` ranges. Costs by what it gives, however many ranges the file has.
        """

    # -- uploads in parts ----------------------------------------------------------------------

    async def create_upload(self, upload: Upload) -> None:
        """Make a new upload, without parts, known."""

    async def get_upload(self, project_id: ProjectId, upload_id: UploadId) -> Upload | None:
        """The upload, or None when it never existed or is another project's."""

    async def add_part(
        self, part: UploadPart, blob: Blob, *, max_parts: int, max_bytes: int
    ) -> bool:
        """Add a part whose `blob` is durable already; the upload holds it while it is pending.

        False when the upload is no longer pending, had expired at the part's `created_at`, has
        `max_parts` already or would have more than `max_bytes`: nothing was written, and the
        blob's bytes are the caller's to delete.
        """

    async def upload_parts(self, upload_id: UploadId) -> Sequence[UploadPart]:
        """The parts that came so far, in no order; none once the upload is not pending."""

    async def complete_upload(
        self, upload_id: UploadId, *, recipe: str, file: File, blob: Blob
    ) -> bool:
        """Make `file` visible with the bytes of the durable `blob`, and the upload `completed`.

        In one transaction, which also lets go of the parts. False when the upload is no longer
        pending: nothing was written, and the blob's bytes are the caller's to delete.
        """

    async def cancel_upload(self, upload_id: UploadId, *, now: int) -> bool:
        """Make the upload `cancelled` and let go of its parts; False when it is not open."""

    async def expire_uploads(self, *, now: int, limit: int) -> int:
        """Let go of the parts of up to `limit` pending uploads past `expires_at`; how many."""

    # -- blobs ---------------------------------------------------------------------------------

    async def unreferenced_blobs(self, *, limit: int) -> Sequence[Blob]:
        """Blobs that nothing references any more; no new reference can appear."""

    async def forget_blobs(self, names: Sequence[BlobName]) -> None:
        """Drop the rows of unreferenced blobs whose bytes are gone from storage."""

    async def known_blobs(self, names: Sequence[BlobName]) -> set[BlobName]:
        """Which of `names` have a row; at start, stored bytes without one are orphans."""

    async def release_worker_references(self, worker: str | None) -> None:
        """Drop the references that a worker holds on its open segment; None for all workers."""

    # -- batches -------------------------------------------------------------------------------

    async def create_batch(self, batch: NewBatch) -> Batch:
        """Create the batch in `validating` and take a reference on its input's bytes.

        The input file need not exist: then `input_blob` is None, and validation refuses the batch.
        The input's purpose does not matter here either.
        """

    async def create_batch_once(self, batch: NewBatch, key: IdempotencyKey) -> Batch | None:
        """As `create_batch`, unless the project has this key already.

        Then, for the same fingerprint, the batch that was created with it, as it is now; None for
        another fingerprint. Of many calls at once one creates. A key that is past its `expires_at`
        at the batch's `created_at` is as good as none.
        """

    async def drop_idempotency_keys(self, *, now: int) -> None:
        """Forget the keys past their `expires_at`."""

    async def get_batch(self, project_id: ProjectId, batch_id: BatchId) -> Batch | None:
        """The batch, or None when it never existed or is another project's."""

    async def list_batches(
        self, project_id: ProjectId, *, after: BatchId | None, limit: int
    ) -> Page[Batch]:
        """One page, newest first, without the cursor item.

        Raises:
            NotFound: `after` never existed in this project.
        """

    async def unfinished_batches(self) -> Sequence[Batch]:
        """Every batch of every project that is not terminal, oldest first; for start-up."""

    async def load_batch(self, batch_id: BatchId) -> Batch:
        """The batch whatever its project, for the scheduler; it must exist."""

    async def advance_batch(
        self, batch_id: BatchId, *, from_status: BatchStatus, event: BatchEvent, now: int
    ) -> Batch | None:
        """Move a batch by `event` if it is still in `from_status` (compare-and-set).

        Sets `<status>_at` of the new status unless it is set, and `stopping` where the event has
        one (`lifecycle.STOPS`). Returns the batch after the move. None means that the batch is no
        longer in `from_status`, or that the table does not allow the event (the window closing on
        a batch that is stopping already): re-read before doing anything else. A batch that ends
        here without files (VALIDATING to EXPIRED or, via CANCELLING, to CANCELLED) is finished with
        `finalize`.
        """

    async def refuse_batch(
        self, batch_id: BatchId, *, problems: Sequence[LineProblem], now: int
    ) -> bool:
        """VALIDATING to FAILED with `problems`, dropping the references, in one transaction.

        False when the batch is no longer validating (it was cancelled or expired).
        """

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
        """VALIDATING to IN_PROGRESS: plan, shard rows (numbers from 0) and counts, at once.

        `shards` may be gone through more than once, and on another thread.
        `lines` are those of the plan. Those of `skipped` are failed, and their error lines the
        beginning of the error file.

        False when the batch is no longer validating; then nothing was written and the bytes of
        both blobs are the caller's to delete.
        """

    # -- shards and commits --------------------------------------------------------------------

    async def pending_shards(self, batch_id: BatchId) -> PendingShards:
        """Each shard with an unsettled line, by number."""

    async def claim_shard(self, key: ShardKey) -> Shard | None:
        """Take the right to run a shard: raises its epoch by one and returns it.

        Every earlier holder is outdated from this moment on. None when the batch's gate is closed
        (`stopping` is set or the batch is not IN_PROGRESS) or the shard is settled.
        """

    async def fence_shards(self, keys: Sequence[ShardKey], *, died: bool) -> None:
        """Raise the epochs without giving the shards to anyone: no held epoch can commit again.

        `died` adds one to each shard's `deaths` (a worker died holding it).
        """

    async def commit(
        self, worker: str, commits: Sequence[ShardCommit], *, now: int
    ) -> Sequence[bool]:
        """Accept ranges of a worker's segment: the only meaning of "committed".

        One transaction. For each commit True when the shard's epoch was still `epoch` and the
        batch is not terminal: bitmap, counts and usage replace the shard's, the ranges join the
        batch's output and error lists, and the batch's counts and usage grow by the difference.
        False means fenced: nothing of that commit was written, and the worker drops the shard.
        Registers the segment as a blob, referenced by the batch and by the worker. `partials` are
        kept for the end of the batch and settle nothing.
        """

    async def shard_bitmaps(self, batch_id: BatchId) -> Sequence[tuple[int, int, bytes]]:
        """(first entry, entries, settled bitmap) of each shard with an unsettled line, in order.

        Of a shard with no settled line the bitmap is empty: of a batch that was stopped early that
        is nearly every one.
        """

    async def partials(self, batch_id: BatchId) -> Sequence[BlobRange]:
        """The committed records of lines that were cut off, oldest first; gone once it has ended.

        The same records may be there twice, and those of a line that has settled since.
        """

    async def output_end(
        self, batch_id: BatchId, *, after: int, limit: int, repairs: int, now: int
    ) -> int | None:
        """Where in the batch's committed output the commit ends that reaches byte `after + limit`,
        or else the last one; `after` when nothing more is there.

        Offsets count in what is, or will be, the output file, so they mean the same before and
        after `finalize`, but not before and after `unsettle_ranges`: `repairs` is how many of those
        there were when the offset was told, and nothing is there by any other number. 0 when the
        file is gone; None when there never were `after` bytes (which a file that is gone cannot
        tell: then it is None too).
        """

    async def committed_output(
        self, batch_id: BatchId, *, start: int, stop: int, most: int, repairs: int, now: int | None
    ) -> Sequence[BlobRange]:
        """The committed output from byte `start` to `stop`, by offsets as in `output_end`: of its
        ranges the first `most`, cut there. Costs by what it gives. Empty when none of it is there.
        `now` None: also of a file that is hidden, as long as its bytes are there.
        """

    async def committed_ranges(
        self, batch_id: BatchId, *, after: int, limit: int
    ) -> Sequence[CommittedRange]:
        """Up to `limit` committed ranges of both files whose `sequence` is above `after`, in order.

        None of a batch that has ended: they have become the manifests of its files.
        """

    async def unsettle_ranges(
        self,
        batch_id: BatchId,
        damaged: Sequence[int],
        *,
        from_status: BatchStatus,
        stopping: Stopping | None,
        now: int,
    ) -> Batch | None:
        """Take back the committed ranges with these sequences and move by RESULTS_DAMAGED.

        One transaction: exactly the lines in them are unsettled, counts and usage of shards and
        batch fall by exactly theirs, and `repairs` grows by one. A batch that nothing stopped is
        IN_PROGRESS again. Guarded like `finalize`: None when `from_status` or `stopping` has
        changed, and nothing was written. A range whose lines were not recorded stays as it is.
        """

    async def finalize(
        self,
        batch_id: BatchId,
        *,
        from_status: BatchStatus,
        stopping: Stopping | None,
        files: FinalFiles,
        now: int,
    ) -> Batch | None:
        """Write the two files and move the batch by FILES_WRITTEN, in one transaction.

        Guarded by `from_status` and `stopping` together: None when either has changed (a cancel
        arrived), and nothing was written. The output and error ranges become the files' manifests;
        the batch's references move to the files; commit rows are dropped.
        """

    async def put_receipt(self, batch_id: BatchId, receipt: Mapping[str, object]) -> None:
        """Merge `receipt` into the batch's cancel receipt (top-level keys replace)."""

    async def close(self) -> None:
        """Finish what runs and give back every connection."""
