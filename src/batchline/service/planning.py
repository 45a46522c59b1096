"""From `validating` to `in_progress` or `failed`: the input is checked and planned in a child.

Or only checked: a dry run goes the same way and leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Protocol

from batchline import telemetry
from batchline.domain.errors import BlobUnreadable, StorageFull
from batchline.domain.ids import BatchId, BlobName, FileId, ProjectId
from batchline.domain.job_queue import JobTerms, hurried_at
from batchline.domain.model import Batch, BlobKind, LineProblem, Purpose
from batchline.domain.plan import Order
from batchline.service.alarms import Alarms
from batchline.service.jobs import LOOK_AGAIN_S, JobFailed, Jobs, OtherVersion
from batchline.service.plans import unfinished
from batchline.service.project_weights import ProjectWeights, weight_of
from batchline.service.skipped import SkipSettings
from batchline.service.tries import Tries
from batchline.service.validation import ValidationJob, ValidationResult, validate
from batchline.store.blob_contract import BlobStore
from batchline.store.contract import Skipped, Store

RETRY_S: Final = 0.5
CHILD_TRIES: Final = 3  # a file that kills the validating child this often is refused
SERVER_TRIES: Final = 5  # and so is one over which this many servers in a row have died

INTERNAL: Final = LineProblem(
    code="server_error", message="The input file could not be validated because of a server error."
)


class KnownModels(Protocol):
    """What validation asks of the catalogue."""

    def known(self) -> bool:
        """Whether there is a backend and the catalogue of every one is known."""

    def models(self) -> Sequence[str]:
        """Every model that some backend lists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InputLimits:
    """What an input file may be; None lifts a limit."""

    max_file_bytes: int | None = 209_715_200
    max_lines: int | None = 50_000
    max_line_bytes: int | None = 64 * 1024 * 1024
    max_embedding_inputs: int | None = 50_000
    allow_mixed_models: bool = False
    max_problems: int = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchInput:
    """The file that a batch would read; `blob` is None when there is none that it could read.

    `skipped_into` is the batch whose error file takes its bad lines; None: they refuse it.
    `hurried_at` is when its checking becomes pressing.
    """

    project_id: ProjectId
    file_id: FileId
    endpoint: str
    blob: BlobName | None
    bytes: int
    crc: int | None
    skipped_into: BatchId | None = None
    run_once: bool = False
    hurried_at: float = math.inf

    @classmethod
    def of(cls, batch: Batch) -> BatchInput:
        return cls(
            project_id=batch.project_id,
            file_id=batch.input_file_id,
            endpoint=batch.endpoint,
            blob=batch.input_blob,
            bytes=batch.input_bytes,
            crc=batch.input_crc,
            skipped_into=batch.id if batch.skip_invalid else None,
            run_once=batch.run_once,
            hurried_at=hurried_at(created_at=batch.created_at, expires_at=batch.expires_at),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Planner:
    """Validates batches and starts or refuses them."""

    store: Store
    blobs: BlobStore
    jobs: Jobs
    models: KnownModels
    limits: InputLimits
    order: Order = Order.PREFIX
    clock: Callable[[], float] = time.time
    has_room: Callable[[], bool] = lambda: True  # False: the disk is low, and plans wait
    tries: Tries = field(default_factory=lambda: Tries(None))
    alarms: Alarms = field(default_factory=Alarms)
    weights: ProjectWeights | None = None  # None: all are the same

    async def plan(self, batch: Batch) -> bool:
        """Validate `batch`; True when it was started or refused here, False when it moved on.

        Cancelling the task kills the child. A full disk delays and does not fail the batch.

        Raises:
            StoreUnavailable: the database or the disk does not work; the same call may later.
        """
        problems = await self._before_reading(BatchInput.of(batch))
        if problems:
            return await self._refuse(batch, problems)
        if not self.has_room():
            await asyncio.sleep(RETRY_S)
            return False  # whoever asked asks again while the batch is validating
        if self.tries.deaths(batch.id) >= SERVER_TRIES:
            telemetry.trouble("validation_given_up", batch_id=batch.id, servers=SERVER_TRIES)
            return await self._refuse(batch, [INTERNAL])
        try:
            return await self._in_children(batch)
        finally:
            self.tries.over(batch.id)

    async def _in_children(self, batch: Batch) -> bool:
        for _ in range(CHILD_TRIES):
            try:
                return await self._in_child(batch)
            except BlobUnreadable:
                self.alarms.input_corrupt(batch_id=batch.id)
                return await self._refuse(batch, [INTERNAL])
            except (StorageFull, OtherVersion) as exc:
                telemetry.trouble("validation_delayed", batch_id=batch.id, code=exc.code)
                await asyncio.sleep(LOOK_AGAIN_S if isinstance(exc, OtherVersion) else RETRY_S)
                return False
            except JobFailed as exc:
                if not exc.retryable:
                    telemetry.trouble("validation_failed", batch_id=batch.id, error=exc.message)
                    break
                telemetry.trouble("validation_child_failed", batch_id=batch.id, error=exc.message)
        return await self._refuse(batch, [INTERNAL])

    async def check(
        self,
        project_id: ProjectId,
        file_id: FileId,
        endpoint: str,
        *,
        skipped_into: BatchId | None = None,
    ) -> ValidationResult:
        """What `plan` would find for a batch created now. Nothing is kept, and no batch is needed.

        `skipped_into` is what such a batch would be called if it left bad lines out.

        Raises:
            StorageFull: the disk is low; a plan needs room even when it is thrown away.
        """
        if not self.has_room():
            raise StorageFull("the disk is low: nothing is validated until there is room again")
        source = replace(
            await self._input_of(project_id, file_id, endpoint), skipped_into=skipped_into
        )
        problems = await self._before_reading(source)
        if problems:
            return ValidationResult(problems=problems)
        for _ in range(CHILD_TRIES):
            job = replace(self._job(source), order=Order.FILE)  # nobody is to run the plan
            try:
                return await self.jobs.run(validate, job, terms=await self._terms(source))
            except BlobUnreadable:
                # No batch holds the bytes: the file may have been deleted beside us.
                problems = await self._before_reading(
                    await self._input_of(project_id, file_id, endpoint)
                )
                return ValidationResult(problems=problems or [INTERNAL])
            except JobFailed as exc:
                telemetry.trouble("dry_run_failed", file_id=file_id, error=exc.message)
                if not exc.retryable:
                    break
            finally:
                await self._drop_scratch(job)
        return ValidationResult(problems=[INTERNAL])

    async def _input_of(self, project_id: ProjectId, file_id: FileId, endpoint: str) -> BatchInput:
        file = await self.store.get_file(project_id, file_id, now=int(self.clock()))
        ranges = () if file is None else await self.store.file_ranges(file.id, most=2)
        whole = None
        # One whole blob, as every upload is; `Store.create_batch` takes no other.
        if file is not None and [(one.start, one.stop) for one in ranges] == [(0, file.bytes)]:
            whole = ranges[0]
        return BatchInput(
            project_id=project_id,
            file_id=file_id,
            endpoint=endpoint,
            blob=None if whole is None else whole.blob,
            bytes=0 if whole is None else whole.stop,
            crc=None if whole is None else whole.crc,
        )

    async def _before_reading(self, source: BatchInput) -> Sequence[LineProblem]:
        """V1 and V2: what the store knows of the input file."""
        file = await self.store.get_file(source.project_id, source.file_id, now=int(self.clock()))
        # A file deleted since the create is fine: the batch holds a reference on its bytes.
        if file is not None and file.purpose is not Purpose.BATCH:
            return [
                LineProblem(
                    code="invalid_request",
                    message=(
                        f"File {file.id} has purpose '{file.purpose}'; a batch needs a file "
                        "that was uploaded with purpose 'batch'."
                    ),
                    param="file_id",
                )
            ]
        if source.blob is None:
            return [
                LineProblem(
                    code="invalid_request",
                    message=(
                        f"Cannot find file {source.file_id}, or organization "
                        f"{source.project_id} does not have access to it."
                    ),
                    param="file_id",
                )
            ]
        return []

    async def _in_child(self, batch: Batch) -> bool:
        source = BatchInput.of(batch)
        job = self._job(source)
        try:
            result = await self.jobs.run(
                validate,
                job,
                terms=await self._terms(source),
                # Noted once it begins: what only waited for its turn has not ended the server.
                during=self.tries.noted(batch.id),
            )
            telemetry.probe("validation.done")
            if result.problems:
                return await self._refuse(batch, result.problems)
            return await self._start(batch, result, job)
        finally:
            await self._drop_scratch(job)

    async def _terms(self, source: BatchInput) -> JobTerms:
        return JobTerms(
            project=source.project_id,
            weight=await weight_of(self.weights, source.project_id),
            work=source.bytes,
            hurried_at=source.hurried_at,
        )

    async def _drop_scratch(self, job: ValidationJob) -> None:
        plan = Path(job.plan_path)
        skipped = [] if job.skip is None else [Path(job.skip.path)]
        await self.blobs.drop_scratch(plan, unfinished(plan), *skipped)

    def _job(self, source: BatchInput) -> ValidationJob:
        unlimited = 2**62
        limits = self.limits
        return ValidationJob(
            input_path=str(self.blobs.path(BlobName(source.blob or ""))),
            input_bytes=source.bytes,
            input_crc=source.crc,
            plan_path=str(self.blobs.scratch()),
            endpoint=source.endpoint,
            max_file_bytes=limits.max_file_bytes or unlimited,
            max_lines=limits.max_lines or unlimited,
            max_line_bytes=limits.max_line_bytes or unlimited,
            max_embedding_inputs=limits.max_embedding_inputs,
            known_models=list(self.models.models()) if self.models.known() else None,
            allow_mixed_models=limits.allow_mixed_models,
            max_problems=limits.max_problems,
            skip=(
                None
                if source.skipped_into is None
                else SkipSettings(batch_id=source.skipped_into, path=str(self.blobs.scratch()))
            ),
            order=self.order,
            run_once=source.run_once,
        )

    async def _start(self, batch: Batch, result: ValidationResult, job: ValidationJob) -> bool:
        plan = await self.blobs.adopt(Path(job.plan_path), BlobKind.PLAN)
        adopted = [plan.name]
        try:
            skipped = None
            if job.skip is not None and result.skipped:
                blob = await self.blobs.adopt(
                    Path(job.skip.path), BlobKind.NEVER_RUN, crc=result.skipped_crc
                )
                adopted.append(blob.name)
                skipped = Skipped(lines=result.skipped, blob=blob)
            started = await self.store.start_batch(
                batch.id,
                plan=plan,
                shards=result.shards,
                lines=result.lines,
                model=result.model,
                skipped=skipped,
                now=int(self.clock()),
            )
        except Exception:
            # Not for a cancelled task: its transaction goes on to its end on the store's thread,
            # and the batch then needs the plan. If not, the next start sweeps the orphan.
            # Nor where it committed and only the answer was lost.
            if not await self.store.known_blobs(adopted):
                await self.blobs.delete(adopted)
            raise
        if started:
            telemetry.event(
                "batch_started", batch_id=batch.id, lines=result.lines, skipped=result.skipped
            )
        else:
            await self.blobs.delete(adopted)
        return started

    async def _refuse(self, batch: Batch, problems: Sequence[LineProblem]) -> bool:
        refused = await self.store.refuse_batch(batch.id, problems=problems, now=int(self.clock()))
        if refused:
            telemetry.event("batch_refused", batch_id=batch.id, problems=len(problems))
        return refused
