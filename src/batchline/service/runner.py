"""Drives every unfinished batch through its life: validate, run, stop, finalize.

One task per batch, woken by events, that looks at the row and does what its status asks for;
so a restart is nothing but starting the task again, and a crash between two steps is a step to be
repeated. The transitions themselves are the store's, by compare-and-set.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from batchline import telemetry
from batchline.domain.errors import BatchlineError
from batchline.domain.ids import BatchId
from batchline.domain.lifecycle import TERMINAL, BatchEvent, BatchStatus
from batchline.domain.model import Batch
from batchline.executor.contract import Executor, GateReport
from batchline.service import clocks, receipts
from batchline.service.finalizer import Finalizer
from batchline.service.planning import Planner
from batchline.service.repair import Repair
from batchline.service.running import Running
from batchline.service.scheduler import Scheduler
from batchline.store.contract import Store

RETRY_S: Final = 0.5  # after trouble that may pass
LOOK_S: Final = 30.0  # the wall clock may be set: deadlines are looked at again at least this often
FENCE_AFTER_S: Final = 2.0  # a worker that holds a stopped shard so long after it should is killed
CAP_RESERVE_S: Final = 10.0  # of the cap, for the end: half for workers to let go, half for files
TAKEN_UP_AT_ONCE: Final = 4  # batches; the store answers one question at a time anyway


class GateKeeper(Executor, Protocol):
    """An executor that remembers closed gates until it is told that a batch is terminal."""

    def forget_gate(self, batch_id: BatchId) -> None:
        """The batch is terminal: nothing will ask for its gate again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StopSettings:
    """Seconds. `cap_s` bounds CANCELLING whatever workers and backends do."""

    cancel_grace_s: float = 10.0
    expire_grace_s: float = 10.0
    cap_s: float = 600.0

    @property
    def last_s(self) -> float:
        """When the last connection of a stopped batch is closed: there is time left for the end."""
        return self.cap_s - self._reserve_s

    @property
    def fence_s(self) -> float:
        """When whoever still holds a shard of it is killed."""
        return self.cap_s - self._reserve_s / 2

    @property
    def _reserve_s(self) -> float:
        return min(CAP_RESERVE_S, self.cap_s / 3)


@dataclass(slots=True, eq=False)
class _Driven:
    """One unfinished batch: its task, what wakes it, and what its stop looked like so far."""

    batch_id: BatchId
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    planning: asyncio.Task[bool] | None = None
    stop: asyncio.Task[GateReport] | None = None
    window_ends: float | None = None  # steady time
    stopped_at: float | None = None  # monotonic
    quiet_s: float | None = None  # from the stop until no worker held a shard
    taken_up: bool = False  # its cancel began in another process, and what that knew is gone
    task: asyncio.Task[None] | None = None


class Runner:
    """Implements `service.batches.BatchRunner`."""

    def __init__(
        self,
        store: Store,
        executor: GateKeeper,
        scheduler: Scheduler,
        planner: Planner,
        repair: Repair,
        finalizer: Finalizer,
        *,
        settings: StopSettings,
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = clocks.steady,
    ) -> None:
        self._store = store
        self._executor = executor
        self._scheduler = scheduler
        self._planner = planner
        self._repair = repair
        self._finalizer = finalizer
        self._settings = settings
        self._clock = clock
        self._steady = steady
        self._driven: dict[BatchId, _Driven] = {}
        self._closing = False
        # A thousand batches that are taken up at a start would have the store busy for a second;
        # with few at once, a shard of the first is claimed and sent meanwhile.
        self._loading = asyncio.Semaphore(TAKEN_UP_AT_ONCE)
        self._activating = asyncio.Semaphore(TAKEN_UP_AT_ONCE)

    # -- what the API asks -----------------------------------------------------------------

    def created(self, batch: Batch) -> None:
        if not self._closing:  # the next start takes it up
            self._drive(batch.id, known=batch)

    async def stop(self, batch: Batch, *, was: BatchStatus) -> Mapping[str, object]:  # noqa: ARG002  # of the contract
        if batch.status in TERMINAL or self._closing:  # nothing is dispatched any more
            return {}
        driven = self._drive(batch.id)
        if driven.planning is not None:
            driven.planning.cancel()
        closing = self._close_gate(driven, self._settings.cancel_grace_s)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(closing)
        driven.wake.set()
        if (running := self._scheduler.find(batch.id)) is not None:
            running.changed.set()
        told = closing.done() and not closing.cancelled() and not driven.taken_up
        return receipts.at_gate(closing.result()) if told else {}

    async def resume(self) -> int:
        """Take up every unfinished batch; how many there are. Windows that closed meanwhile first:
        time while the server was down is not credited."""
        batches = await self._store.unfinished_batches()
        now = int(self._clock())
        for batch in batches:
            if batch.expires_at <= now:
                await self._store.advance_batch(
                    batch.id,
                    from_status=batch.status,
                    event=BatchEvent.WINDOW_CLOSED,
                    now=now,
                )
        for batch in batches:
            driven = self._drive(batch.id)
            driven.taken_up = batch.status is BatchStatus.CANCELLING
        return len(batches)

    async def close(self) -> None:
        """Let go of every batch where it is, and take up none; a later `resume` goes on.

        The executor is drained: of a batch that is cancelled from now on nothing goes out either.
        """
        self._closing = True
        tasks = [driven.task for driven in self._driven.values() if driven.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- one batch -------------------------------------------------------------------------

    def _drive(self, batch_id: BatchId, *, known: Batch | None = None) -> _Driven:
        driven = self._driven.get(batch_id)
        if driven is None:
            driven = self._driven[batch_id] = _Driven(batch_id)
            driven.task = asyncio.get_running_loop().create_task(self._life(driven, known))
        return driven

    async def _life(self, driven: _Driven, batch: Batch | None) -> None:
        """Repeat the next step until the batch is terminal; `batch` is what is known of it."""
        while batch is None or batch.status not in TERMINAL:
            try:
                batch = await (self._load(driven) if batch is None else self._step(driven, batch))
            except BatchlineError as exc:
                telemetry.trouble("batch_delayed", batch_id=driven.batch_id, code=exc.code)
                batch = None
                await asyncio.sleep(RETRY_S)
            except Exception as exc:  # noqa: BLE001  # a fault of ours must not leave a batch stuck
                telemetry.trouble("batch_step_failed", batch_id=driven.batch_id, error=repr(exc))
                batch = None
                await asyncio.sleep(RETRY_S)
        self._forget(driven, batch)

    async def _load(self, driven: _Driven) -> Batch:
        async with self._loading:
            return await self._store.load_batch(driven.batch_id)

    def _forget(self, driven: _Driven, batch: Batch) -> None:
        self._driven.pop(driven.batch_id, None)
        self._scheduler.deactivate(driven.batch_id)
        self._executor.forget_gate(driven.batch_id)
        telemetry.event(
            "batch_ended",
            batch_id=batch.id,
            status=batch.status.value,
            completed=batch.counts.completed,
            failed=batch.counts.failed,
            total=batch.counts.total,
        )

    async def _step(self, driven: _Driven, batch: Batch) -> Batch | None:
        """The batch as it is then, where the step itself has moved it; None: its row says."""
        match batch.status:
            case BatchStatus.VALIDATING:
                await self._plan(driven, batch)
                return None
            case BatchStatus.IN_PROGRESS:
                return await self._run(driven, batch)
            case _:
                return await self._end(driven, batch)

    async def _plan(self, driven: _Driven, batch: Batch) -> None:
        """Validate until done, cancelled or past the window."""
        if driven.stop is not None:  # cancelled since its row was read: nobody else would end this
            return
        planning = asyncio.get_running_loop().create_task(self._planner.plan(batch))
        driven.planning = planning
        try:
            while not planning.done() and (left_s := self._left_s(driven, batch)) > 0:
                await asyncio.wait([planning], timeout=min(left_s, LOOK_S))
            if not planning.done():
                await self._advance(batch, BatchEvent.WINDOW_CLOSED)
            elif not planning.cancelled():  # a cancel ends it: the row says what is next
                planning.result()
        finally:
            driven.planning = None
            planning.cancel()
            await asyncio.wait([planning])

    async def _run(self, driven: _Driven, batch: Batch) -> Batch | None:
        """Run until every line is settled, the window closes, or somebody stopped the batch."""
        running = self._scheduler.find(batch.id)
        if running is None:
            async with self._activating:
                running = await self._scheduler.activate(batch)
        while not driven.wake.is_set():
            if running.input_lost:
                return await self._advance(batch, BatchEvent.INPUT_LOST)
            if running.all_settled:
                return await self._advance(batch, BatchEvent.ALL_LINES_FINISHED)
            left_s = self._left_s(driven, batch)
            if left_s <= 0:
                return await self._advance(batch, BatchEvent.WINDOW_CLOSED)
            await _set_within(running.changed, min(left_s, LOOK_S))
            running.changed.clear()
        driven.wake.clear()
        return None

    def _left_s(self, driven: _Driven, batch: Batch) -> float:
        """Until the window closes: not before `expires_at`, and not before what was left of it when
        the batch was taken up here has really passed. Setting the wall clock closes none early."""
        by_wall = batch.expires_at - self._clock()
        if driven.window_ends is None:
            driven.window_ends = self._steady() + by_wall
        return max(by_wall, driven.window_ends - self._steady())

    async def _advance(self, batch: Batch, event: BatchEvent) -> Batch | None:
        """Try the move; None when somebody else moved first, which a look at the row shows."""
        return await self._store.advance_batch(
            batch.id, from_status=batch.status, event=event, now=int(self._clock())
        )

    # -- the end ---------------------------------------------------------------------------

    async def _end(self, driven: _Driven, batch: Batch) -> Batch | None:
        """FINALIZING or CANCELLING: gates closed, shards back, results checked, files written."""
        if batch.stopping is not None:
            await self._quiesce(driven, batch)
            batch = await self._store.load_batch(batch.id)  # with what the last shards brought
        batch = await self._repair.take_back_damaged(batch)
        if batch.status is BatchStatus.IN_PROGRESS:
            # Some lines run again: which shards that concerns is asked anew.
            self._scheduler.deactivate(batch.id)
            return None
        known = batch.status is BatchStatus.CANCELLING
        if known:
            # Before the end, so that whoever sees `cancelled` finds the whole receipt.
            await self._complete_receipt(driven, batch)
        ended = await self._finalizer.finalize(batch.id, known=batch)
        if ended.status is BatchStatus.CANCELLED and not known:  # while its files were written
            await self._complete_receipt(driven, ended)
        return ended

    async def _quiesce(self, driven: _Driven, batch: Batch) -> None:
        """Wait until no worker holds a shard of the batch; kill those that do not let go."""
        grace_s = (
            self._settings.cancel_grace_s
            if batch.status is BatchStatus.CANCELLING
            else self._settings.expire_grace_s
        )
        report = await self._close_gate(driven, grace_s)
        running = self._scheduler.find(batch.id)
        if running is not None:
            await self._until_idle(batch, driven, running, report.lets_go_s)
        if driven.quiet_s is None:
            driven.quiet_s = self._since_stop(driven)

    async def _until_idle(
        self, batch: Batch, driven: _Driven, running: Running, lets_go_s: float
    ) -> None:
        settings = self._settings
        patience_s = min(lets_go_s + FENCE_AFTER_S, settings.fence_s)
        if not await _set_within(running.idle, patience_s - self._since_stop(driven)):
            killed = await self._executor.fence(batch.id)
            telemetry.trouble("batch_fenced", batch_id=batch.id, workers=len(killed))
            left_s = settings.cap_s - self._since_stop(driven)
            # Only a store that refuses writes can keep us here: then conservation wins.
            if not await _set_within(running.idle, left_s):
                await self._store.put_receipt(batch.id, {"quiet": False})

    def _since_stop(self, driven: _Driven) -> float:
        return 0.0 if driven.stopped_at is None else time.monotonic() - driven.stopped_at

    def _close_gate(self, driven: _Driven, grace_s: float) -> asyncio.Task[GateReport]:
        """The one closing of this batch's gate; whoever needs it awaits the same task."""
        if driven.stop is None:
            driven.stopped_at = time.monotonic()
            self._scheduler.stop(driven.batch_id)
            driven.stop = asyncio.get_running_loop().create_task(
                self._executor.close_gate(
                    driven.batch_id,
                    grace_s=min(grace_s, self._settings.last_s),
                    last_s=self._settings.last_s,
                )
            )
        return driven.stop

    async def _complete_receipt(self, driven: _Driven, batch: Batch) -> None:
        """The cancel receipt: what was finished, aborted, never sent, and how fast."""
        report = driven.stop.result() if driven.stop is not None and driven.stop.done() else None
        running = self._scheduler.find(batch.id)
        quiet_s = driven.quiet_s or 0.0
        if driven.taken_up and batch.cancelling_at is not None:
            quiet_s = max(quiet_s, self._clock() - batch.cancelling_at)
        await self._store.put_receipt(
            batch.id,
            receipts.whole(
                batch,
                report=None if driven.taken_up else report,
                ends={} if running is None else running.ends,
                quiet_s=quiet_s,
            ),
        )

    # -- for people ------------------------------------------------------------------------

    def unfinished(self) -> Sequence[BatchId]:
        return list(self._driven)

    def running(self, batch_id: BatchId) -> Running | None:
        return self._scheduler.find(batch_id)


async def _set_within(event: asyncio.Event, timeout_s: float) -> bool:
    """Whether `event` is set, now or within `timeout_s`."""
    if not event.is_set() and timeout_s > 0:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await event.wait()
    return event.is_set()
