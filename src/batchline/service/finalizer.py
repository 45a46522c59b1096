"""The end of a batch: commits become the output and error file, in one transaction.

A batch that was stopped gets a line for every request without a result first: those lines are made
in a child process and become a small blob that the error file ends with.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from batchline import telemetry
from batchline.domain import ids
from batchline.domain.errors import BlobUnreadable, StorageFull, StoreUnavailable
from batchline.domain.ids import BatchId, BlobName
from batchline.domain.job_queue import JobTerms
from batchline.domain.lifecycle import TERMINAL, BatchEvent, BatchStatus, Stopping, advance
from batchline.domain.model import DAY_S, Batch, Blob, BlobKind, LineProblem
from batchline.domain.results import Failure
from batchline.service.jobs import JobFailed, Jobs
from batchline.service.leftovers import LeftoversJob, Unfinished, write_leftovers
from batchline.service.partials import PartialsRange
from batchline.service.project_weights import ProjectWeights, weight_of
from batchline.store.blob_contract import BlobStore
from batchline.store.contract import FinalFiles, Store

RETRY_S: Final = 0.5

_UNRUN: Final = {
    Stopping.CANCEL: Failure.BATCH_CANCELLED,
    Stopping.WINDOW: Failure.BATCH_EXPIRED,
}

INPUT_UNREADABLE: Final = LineProblem(
    code="input_unreadable",
    message="The input file's bytes were lost or damaged while the batch was running.",
    param="input_file_id",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finalizer:
    """Ends batches in FINALIZING or CANCELLING whose gates are closed and whose shards are back."""

    store: Store
    blobs: BlobStore
    jobs: Jobs
    clock: Callable[[], float] = time.time
    random: Callable[[int], bytes] = os.urandom
    output_lifetime_s: int = 30 * DAY_S  # of both files, unless the batch's creator said otherwise
    weights: ProjectWeights | None = None  # of projects; None: all are the same

    async def finalize(self, batch_id: BatchId, *, known: Batch | None = None) -> Batch:
        """Write the files and make the batch terminal; the terminal batch.

        `known` is the batch as it was a moment ago: where it is not so any more, nothing comes of
        the first try. Tries until it succeeds: a full disk or an absent database only delays it.
        A cancel that arrives meanwhile wins, and the files are written again with its reason.
        """
        while True:
            try:
                batch, known = known or await self.store.load_batch(batch_id), None
                if batch.status in TERMINAL:
                    return batch
                ended = await self._try(batch)
                if ended is not None:
                    return ended
            except (StorageFull, StoreUnavailable) as exc:
                telemetry.trouble("finalize_delayed", batch_id=batch_id, code=exc.code)
                await asyncio.sleep(RETRY_S)

    async def _try(self, batch: Batch) -> Batch | None:
        telemetry.probe("finalize.starting")
        never_run = await self._never_run(batch)
        now = int(self.clock())
        try:
            ended = await self.store.finalize(
                batch.id,
                from_status=batch.status,
                stopping=batch.stopping,
                files=FinalFiles(
                    output_id=ids.file_id(self.random(ids.RANDOM_BYTES)),
                    output_filename=f"{batch.id}_output.jsonl",
                    error_id=ids.file_id(self.random(ids.RANDOM_BYTES)),
                    error_filename=f"{batch.id}_error.jsonl",
                    expires_at=now + (batch.output_expires_after_s or self.output_lifetime_s),
                    never_run=never_run,
                    problems=[INPUT_UNREADABLE] if _failed(batch) else [],
                ),
                now=now,
            )
        except Exception:
            # Not for a cancelled task: its transaction goes on to its end on the store's thread,
            # and the file then has these bytes. If it does not, the next start sweeps the orphan.
            await self._drop(never_run)
            raise
        if ended is None:
            await self._drop(never_run)
        return ended

    async def _drop(self, blob: Blob | None) -> None:
        """Delete the lines, unless the transaction committed and only its answer was lost."""
        if blob is not None and not await self.store.known_blobs([blob.name]):
            await self.blobs.delete([blob.name])

    async def _never_run(self, batch: Batch) -> Blob | None:
        """The durable lines of the requests without a result; None when there is none."""
        failure = None if batch.stopping is None else _UNRUN.get(batch.stopping)
        if failure is None or batch.plan_blob is None or batch.input_blob is None:
            return None
        bitmaps = await self.store.shard_bitmaps(batch.id)
        if not bitmaps:
            return None
        scratch = self.blobs.scratch()
        job = LeftoversJob(
            batch_id=batch.id,
            failure=failure,
            input_path=str(self.blobs.path(BlobName(batch.input_blob))),
            input_bytes=batch.input_bytes,
            plan_path=str(self.blobs.path(BlobName(batch.plan_blob))),
            output_path=str(scratch),
            shards=[
                Unfinished(first_entry=first, entries=entries, settled=settled)
                for first, entries, settled in bitmaps
            ],
            partials=[
                PartialsRange(
                    path=str(self.blobs.path(one.blob)), start=one.start, stop=one.stop, crc=one.crc
                )
                for one in await self.store.partials(batch.id)
            ],
        )
        try:
            terms = await self._terms(batch, job)
            written = await self.jobs.run(write_leftovers, job, terms=terms)
            if written.lost_partials:
                telemetry.trouble("partials_lost", batch_id=batch.id, ranges=written.lost_partials)
            telemetry.probe("never_run.written")
            return await self.blobs.adopt(scratch, BlobKind.NEVER_RUN, crc=written.crc)
        except BlobUnreadable:
            await self._input_lost(batch)
            return None
        except JobFailed as exc:
            raise StoreUnavailable(f"the never-run lines were not written: {exc}") from exc
        finally:
            await self.blobs.drop_scratch(scratch)

    async def _terms(self, batch: Batch, job: LeftoversJob) -> JobTerms:
        """The end waits for no validation. Its work is to read the lines that are left."""
        left = sum(one.entries for one in job.shards) / max(1, batch.counts.total)
        return JobTerms(
            project=batch.project_id,
            weight=await weight_of(self.weights, batch.project_id),
            work=batch.input_bytes * min(1.0, left),
            urgent=True,
        )

    async def _input_lost(self, batch: Batch) -> None:
        """Nobody can name the lines that never ran: end with the files of what was settled."""
        telemetry.trouble("input_lost", batch_id=batch.id)
        await self.store.advance_batch(
            batch.id,
            from_status=batch.status,
            event=BatchEvent.INPUT_LOST,
            now=int(self.clock()),
        )


def _failed(batch: Batch) -> bool:
    """Whether the batch ends FAILED; a cancelled one whose input was lost is still cancelled."""
    return advance(batch.status, BatchEvent.FILES_WRITTEN, batch.stopping) is BatchStatus.FAILED
