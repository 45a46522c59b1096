"""Drives a run: the parts of `serve` without HTTP, on the run's own directory, to its end."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import uvloop

from batchline import telemetry
from batchline.cli import input_check, run_results
from batchline.cli.data_directory import DataDirectory
from batchline.cli.file_limit import raise_file_limit, too_few_files
from batchline.cli.outcome import FAILED, INTERRUPTED, USAGE, CommandFailed
from batchline.cli.parts import Parts, build, first_look
from batchline.cli.progress import ProgressView, Sight
from batchline.cli.readiness import backend_health
from batchline.cli.run_directory import InputNote, RunDirectory
from batchline.cli.signals import on_signals
from batchline.config.settings import Settings
from batchline.domain.errors import IllegalTransition, InvalidRequest, StorageFull
from batchline.domain.ids import DEFAULT_PROJECT
from batchline.domain.lifecycle import TERMINAL, BatchStatus
from batchline.domain.model import Batch, Purpose
from batchline.executor import processes
from batchline.service.batches import MAX_LIST

WINDOW: Final = "24h"  # a batch must name one; for a run it is set to a century
LOOK_S: Final = 0.2
_READ_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to run and where the results go."""

    source: Path
    endpoint: str
    output: Path
    errors: Path
    run_once: bool | None  # None: as the settings have it


def go(settings: Settings, directory: RunDirectory, order: Order, *, restart: bool) -> int:
    """Run to the end, or until a signal cancels it; the exit code.

    Raises:
        CommandFailed: nothing was run, and nothing of an earlier run is changed.
        ConfigError: the directory is in use.
    """
    telemetry.configure_logging(level="error")  # the progress says what a run waits for
    telemetry.arm(settings.probes)
    raise_file_limit()
    if (few := too_few_files(settings)) is not None:
        sys.stderr.write(f"{few}\n")
    if order.output.exists() and not directory.exists and not restart:
        raise CommandFailed(
            f"{order.output} exists already; choose another --output, or have it replaced with"
            " --restart",
            exit_code=USAGE,
        )
    note = InputNote(
        bytes=input_check.size_of(order.source, wrong=USAGE),
        sha256=_sha256(order.source),
        endpoint=order.endpoint,
    )
    taken = directory.take(restart=restart)
    try:
        directory.check_input(note)
        ended = uvloop.run(_Run(settings, taken, order).to_the_end())
        telemetry.probe("run.written")
        if ended.remove:
            directory.remove()
    finally:
        taken.release()
    if ended.refused is not None:
        raise CommandFailed(ended.refused, exit_code=USAGE)
    return ended.exit_code


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ended:
    """`refused` says what is wrong with the input; nothing of it was run."""

    exit_code: int
    remove: bool
    refused: str | None = None


class _Run:
    """One start of a run."""

    def __init__(self, settings: Settings, directory: DataDirectory, order: Order) -> None:
        self._settings = settings
        self._directory = directory
        self._order = order
        self._interrupted = asyncio.Event()

    async def to_the_end(self) -> _Ended:
        self._on_signals()
        await asyncio.to_thread(processes.kill_survivors, self._directory.children)
        async with build(self._settings, self._directory) as parts, _running(parts):
            with ProgressView() as view:
                batch = await self._begin(parts)
                if isinstance(batch, str):
                    return _Ended(exit_code=USAGE, remove=True, refused=batch)
                batch = await self._follow(parts, batch, view)
                while _has_more(batch) and not self._interrupted.is_set():
                    # An earlier start was cancelled: what it left is the next batch.
                    batch = await self._follow(parts, await self._go_on(parts, batch), view)
            return await self._write(parts, batch)

    def _on_signals(self) -> None:
        """The first signal cancels, a second SIGINT or SIGTERM ends the process at once."""

        def at_once() -> None:
            os._exit(INTERRUPTED)  # children see the hang-up; what is committed is safe

        on_signals(self._interrupted, at_once)

    # -- batches ---------------------------------------------------------------------------

    async def _begin(self, parts: Parts) -> Batch | str:
        """The batch that an earlier start left, or a first one; or why the input is no good."""
        left = await _batches(parts)
        if left:
            return left[-1]
        try:
            async with parts.files.begin(DEFAULT_PROJECT) as upload:
                for chunk in _chunks(self._order.source):
                    await upload.write(chunk)
                file = await upload.finish(filename="input.jsonl", purpose=Purpose.BATCH)
        except InvalidRequest as exc:
            # Plainly not JSONL. Said line by line, as of every other bad file.
            try:
                await asyncio.to_thread(input_check.check, self._order.source, self._order.endpoint)
            except CommandFailed as said:
                return said.message
            return exc.message
        except StorageFull as exc:
            raise CommandFailed(exc.message) from exc
        return await self._create(parts, file.id)

    async def _go_on(self, parts: Parts, cancelled: Batch) -> Batch:
        """A batch of what `cancelled` did not run; all of it where it never started."""
        if cancelled.in_progress_at is None:
            return await self._create(parts, cancelled.input_file_id)
        file = await run_results.take_up_again(parts.files, DEFAULT_PROJECT, cancelled)
        return await self._create(parts, file.id)

    async def _create(self, parts: Parts, file_id: str) -> Batch:
        wanted: dict[str, object] = {
            "input_file_id": file_id,
            "endpoint": self._order.endpoint,
            "completion_window": WINDOW,
        }
        if self._order.run_once is not None:
            wanted["identical_requests"] = "run_once" if self._order.run_once else "run_each"
        return await parts.batches.create(DEFAULT_PROJECT, wanted)

    async def _follow(self, parts: Parts, batch: Batch, view: ProgressView) -> Batch:
        """The batch once it has ended; a signal cancels it."""
        asked = False
        before = await _finished_before(parts, batch)
        while batch.status not in TERMINAL:
            if self._interrupted.is_set() and not asked:
                asked = True
                with contextlib.suppress(IllegalTransition):  # it ended meanwhile
                    await parts.batches.cancel(DEFAULT_PROJECT, batch.id)
            view.show(_sight(batch, before, _note(parts, batch)))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await (asyncio.sleep(LOOK_S) if asked else self._interrupted.wait())
            batch = await parts.batches.get(DEFAULT_PROJECT, batch.id)
        view.show(_sight(batch, before, ""))
        return batch

    # -- the end ---------------------------------------------------------------------------

    async def _write(self, parts: Parts, last: Batch) -> _Ended:
        """Write what there is, and say it."""
        if last.status is BatchStatus.FAILED and last.in_progress_at is None:
            said = input_check.refusal(str(self._order.source), last.errors or [])
            return _Ended(exit_code=USAGE, remove=True, refused=said)
        every = await _batches(parts)
        await run_results.write_results(
            parts.files,
            DEFAULT_PROJECT,
            every,
            output=self._order.output,
            errors=self._order.errors,
        )
        succeeded = sum(batch.counts.completed for batch in every)
        failed = sum(batch.counts.failed for batch in every)
        _say(self._order, succeeded, failed, _not_run(last))
        if _has_more(last):
            return _Ended(exit_code=INTERRUPTED, remove=False)
        # A batch whose input was lost ends FAILED; what it settled is written, the rest can only
        # be run by beginning anew.
        lost = last.status is BatchStatus.FAILED
        return _Ended(exit_code=FAILED if failed or lost else 0, remove=not lost)


@asynccontextmanager
async def _running(parts: Parts) -> AsyncIterator[None]:
    """The engine at work, on whatever an earlier start left; ended without a grace afterwards,
    when there is nothing to wait for."""
    await parts.maintenance.recover()
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(parts.jobs.warm())
            starting = tasks.create_task(parts.executor.start(parts.scheduler))
            await first_look(parts)
            background = [
                tasks.create_task(parts.catalogue.run()),
                tasks.create_task(parts.places.run()),
                tasks.create_task(parts.scheduler.run()),
                tasks.create_task(parts.maintenance.run()),
                tasks.create_task(parts.disk.run(parts.executor)),
            ]
            await starting
            try:
                await parts.runner.resume()
                yield
            finally:
                await parts.executor.drain(grace_s=0)
                await parts.runner.close()
                for task in background:
                    task.cancel()
    except ExceptionGroup as group:
        if len(group.exceptions) > 1:
            raise
        raise group.exceptions[0] from None  # what was raised in the block, as it was raised


async def _batches(parts: Parts) -> list[Batch]:
    """The batches of the run, in the order they ran."""
    found: list[Batch] = []
    while True:
        after = found[-1].id if found else None
        page = await parts.batches.list(DEFAULT_PROJECT, after=after, limit=MAX_LIST)
        found += page.items
        if not page.has_more:
            return found[::-1]


async def _finished_before(parts: Parts, batch: Batch) -> tuple[int, int]:
    """How many lines succeeded and failed in the batches before this one."""
    earlier = [one.counts for one in await _batches(parts) if one.sequence < batch.sequence]
    return sum(one.completed for one in earlier), sum(one.failed for one in earlier)


def _not_run(batch: Batch) -> int:
    return batch.counts.total - batch.counts.completed - batch.counts.failed


def _has_more(batch: Batch) -> bool:
    """Whether `batch` was cancelled before everything was done; it may not even have begun."""
    began = batch.in_progress_at is not None
    return batch.status is BatchStatus.CANCELLED and (not began or _not_run(batch) > 0)


def _sight(batch: Batch, before: tuple[int, int], note: str) -> Sight:
    completed, failed = before
    counts = batch.counts
    return Sight(
        status=batch.status.value,
        completed=completed + counts.completed,
        failed=failed + counts.failed,
        total=completed + failed + counts.total if counts.total else 0,
        note=note,
    )


def _note(parts: Parts, batch: Batch) -> str:
    """What the run waits for, or how it can be ended sooner."""
    if batch.status is BatchStatus.CANCELLING:
        return "running requests may finish; Ctrl-C again ends at once"
    if parts.executor.failing is not None:
        return parts.executor.failing
    disk = parts.executor.paused or parts.executor.storage_trouble()
    if disk:
        return f"waiting for room on the disk ({disk})"
    backends = backend_health(parts)
    if any(one.state == "up" for one in backends):
        running = parts.progress.running(DEFAULT_PROJECT, limit=1)
        return "; ".join(wait.message for one in running for wait in one.waits)
    return "; ".join(
        f"backend {one.name} {one.reason or 'has not answered yet'}" for one in backends
    )


def _say(order: Order, succeeded: int, failed: int, not_run: int) -> None:
    total = succeeded + failed + not_run
    words = [f"{succeeded} of {total} lines succeeded: {order.output}"]
    if failed or not_run:
        words.append(f"{failed} failed, {not_run} not run: {order.errors}")
    if not_run:
        words.append("The same command again runs the rest.")
    sys.stderr.write("\n".join(words) + "\n")


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from iter(lambda: file.read(_READ_BYTES), b"")


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as exc:
        raise CommandFailed(f"{path}: {exc.strerror}", exit_code=USAGE) from exc
