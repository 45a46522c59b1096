"""The worker: takes lines of the shards it holds, sends them, settles them, commits them.

One event loop, one process. The control process decides which shards, how many permits, whether a
backend's circuit admits and when a gate closes; the worker obeys in the loop step in which it hears
of it. Here its parts are put together and told what the control process says: `shards` holds what
it works on, `slots` go from line to line, `attempt` sends one, `settling` does what follows.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import assert_never

from batchline.domain import bitmap
from batchline.domain.results import Failure
from batchline.executor import messages as m
from batchline.executor import routed
from batchline.executor.aborts import Aborts
from batchline.executor.attempt import Attempts
from batchline.executor.byte_budget import ByteBudget
from batchline.executor.contract import BackendSettings, ShardWork
from batchline.executor.failover import Failover
from batchline.executor.idle_lanes import IdleLanes
from batchline.executor.intake import Intake
from batchline.executor.lane import Lane
from batchline.executor.level_meter import REPORT_S
from batchline.executor.line import CLOSED, FENCED
from batchline.executor.metering import Metering
from batchline.executor.proxies import Proxies
from batchline.executor.segments import SegmentWriter
from batchline.executor.settling import Settling
from batchline.executor.shard_run import ShardRun
from batchline.executor.shards import Shards
from batchline.executor.slots import Slots
from batchline.executor.transport.contract import Transport
from batchline.telemetry import probe


class Worker:
    """Everything one worker process does. `send` queues a message to the control process."""

    def __init__(
        self,
        settings: m.WorkerSettings,
        *,
        send: Callable[[m.ToControl], None],
        transport: Callable[[BackendSettings], Transport],
        intake: Intake,
    ) -> None:
        self._settings = settings
        self._send = send
        self._over = asyncio.Event()
        self._failure: Exception | None = None
        self._paused = False
        self._storage_trouble = False
        self._draining = False
        self._lanes = routed.lanes_of(settings.backends, map(transport, settings.backends))
        for lane in self._lanes.values():
            lane.held.missed = partial(_not_tried, send, lane.backend)
        self._budget = budget = ByteBudget(settings.byte_budget)
        self._intake = intake
        intake.held = lambda: budget.held
        intake.unwritten = lambda: budget.unwritten
        self._writer = SegmentWriter(
            Path(settings.segment_directory),
            settings.worker,
            interval_s=settings.commit_interval_s,
            segment_bytes=settings.segment_bytes,
            idle_s=settings.segment_idle_s,
            send_commit=lambda commits: send(m.Commit(commits)),
            on_trouble=self._storage_changed,
            on_progress=self._written,
            on_answer=self._commit_answered,
            on_closed=lambda: send(m.SegmentClosed()),
        )
        self._shards = Shards(
            self._lanes, send=send, hurry=self._writer.hurry, released=self._end_if_drained
        )
        runs = self._shards.runs
        self._aborts = Aborts(
            settings.backends, transport=transport, runs=lambda: list(runs.values())
        )
        self._idle_lanes = IdleLanes(
            has_shards=lambda name: any(name in run.work.backends for run in runs.values()),
            send=send,
        )
        self._metering = Metering(settings.backends, self._lanes, send=send)
        self._proxies = Proxies(fail=self._fail)
        self._failover = Failover(
            send=send,
            settle=lambda line, found: self._settling.settle_late(line, found),
            offer=lambda run: self._slots.offer(run),
            fail=self._fail,
        )
        self._settling = Settling(
            settings.retry,
            self._shards,
            budget,
            failover=self._failover,
            proxies=self._proxies,
            send=send,
            offer=lambda run: self._slots.offer(run),
            dirty=self._writer.dirty,
        )
        self._attempts = Attempts(
            self._shards,
            self._settling,
            budget,
            aborts=self._aborts,
            metering=self._metering,
            send=send,
            dirty=self._writer.dirty,
        )
        self._slots = Slots(
            self._lanes,
            self._shards,
            budget,
            send=send,
            attempt=self._attempts.run,
            trial_worked=self._proxies.worked,
            fail=self._fail,
        )

    async def run(self) -> None:
        """Work until drained; cancelled when the control process is gone.

        Raises:
            Exception: something of ours failed; the process must end, so that its shards go to a
                worker in a known state.
        """
        async with asyncio.TaskGroup() as tasks:
            background = [
                tasks.create_task(self._writer.run()),
                tasks.create_task(self._beat()),
                tasks.create_task(self._report()),
            ]
            await self._over.wait()
            for task in background:
                task.cancel()
        if self._failure is not None:
            raise self._failure
        await self._aborts.close()
        self._idle_lanes.close()
        self._failover.close()
        self._proxies.close()
        for lane in self._lanes.values():
            await lane.transport.close()
        self._send(m.Drained())

    def _fail(self, exc: Exception) -> None:
        self._failure = exc
        self._over.set()

    async def _beat(self) -> None:
        while True:
            in_flight = {lane.backend: lane.in_flight for lane in self._lanes.values()}
            answering = [lane.backend for lane in self._lanes.values() if lane.has_answered()]
            self._send(m.Heartbeat(in_flight, answering))
            await asyncio.sleep(self._settings.heartbeat_s)

    async def _report(self) -> None:
        metered = [lane for lane in self._lanes.values() if lane.meter is not None]
        while metered:
            await asyncio.sleep(REPORT_S)
            for lane in metered:
                if (report := lane.report()) is not None:
                    self._send(report)

    # -- what the control process says -----------------------------------------------------

    def handle(self, message: m.ToWorker) -> None:
        """Obey one message, in this loop step."""
        match message:
            case m.OpenShard(work=work):
                self._open(work)
            case m.CloseGate():
                self._close_gate(message)
            case m.SetPermits():
                self._set_permits(message)
            case m.SetCircuit():
                self._set_circuit(message)
            case m.SetAway(backend=backend, models=models):
                self._set_away(self._lanes[backend], models)
            case m.TryModel(backend=backend, model=model):
                lane = self._lanes[backend]
                lane.held.try_one(model)
                self._slots.pump(lane)
            case m.Serve():
                for run in self._shards.serve(message):
                    self._slots.offer(run)
            case m.SetRates() | m.Grant():
                self._slots.pump(self._metering.obey(message))
            case m.Proceed(key=key, index=index):
                self._attempts.proceed(key, index)
            case m.Committed(accepted=accepted):
                self._writer.answered(accepted)
            case m.Pause(paused=paused):
                self._paused = paused
                self._judge_rest()
                self._slots.pump_all()
            case m.Drain(grace_s=grace_s):
                self._drain(grace_s)
            case m.Configure():
                raise ValueError("configured twice")
            case _:
                assert_never(message)

    def _open(self, work: ShardWork) -> None:
        run = self._shards.open(work)
        if run is None:
            return
        if self._draining:
            run.close(CLOSED)
        if work.refuse is not None:
            self._settling.refuse(run, Failure(work.refuse))
        for index in work.lost:
            if not bitmap.is_marked(run.settled, index):
                self._settling.settle_unsent(run.line_at(index), Failure.WORKER_LOST)
        self._slots.offer(run)
        self._shards.release_if_over(run)

    def _close_gate(self, order: m.CloseGate) -> None:
        runs = self._shards.of_batch(order.batch_id)
        for run in runs:
            run.close(CLOSED)
            run.stopping = True
        probe("gate.closed")
        on_the_wire = sum((run.on_the_wire for run in runs), Counter[str]())
        if not probe("gate.acknowledging"):
            self._send(m.GateClosed(request=order.request, in_flight=on_the_wire))
        probe("gate.acknowledged")
        self._aborts.schedule(order.batch_id, grace_s=order.grace_s, last_s=order.last_s)
        for run in runs:
            self._shards.release_if_over(run)
        self._slots.pump_all()  # the permits of lines that were not on the wire are free

    def _set_permits(self, order: m.SetPermits) -> None:
        lane = self._lanes[order.backend]
        lane.permits, lane.permits_order = order.permits, order.order
        lane.owes_permits = True
        self._idle_lanes.watch(lane)
        if lane.meter is not None:
            lane.meter.begin_anew(order.measure)
        self._slots.settle_permits(lane)
        self._slots.pump(lane)
        if not lane.permits:
            self._slots.pump_others(lane)

    def _set_circuit(self, order: m.SetCircuit) -> None:
        lane = self._lanes[order.backend]
        lane.set_circuit(admitting=order.admitting, trials=0)
        if order.trials and not self._proxies.looks_first(lane, lambda: self._try(lane)):
            self._try(lane)
        self._slots.pump(lane)
        if not lane.admitting:
            self._slots.pump_others(lane)

    def _set_away(self, lane: Lane, models: Sequence[str]) -> None:
        lane.set_away(models)
        self._slots.pump(lane)
        self._slots.pump_others(lane)  # what was left to it of those may go elsewhere

    def _try(self, lane: Lane) -> None:
        """Have one line try the closed circuit, unless it admits by now."""
        lane.trials = 0 if lane.admitting else 1
        self._slots.pump(lane)
        if lane.trials or lane.admitting:  # nothing could be taken: somebody else may try
            lane.trials = 0
            self._send(m.TrialOver(lane.backend, worked=False))

    # -- when no line goes, and the end ----------------------------------------------------

    def _judge_rest(self) -> None:
        """Whether no line may go, of any shard: one look at it for each line, not three."""
        self._slots.rests = self._paused or self._storage_trouble or self._draining

    def _drain(self, grace_s: float) -> None:
        self._draining = True
        self._judge_rest()
        for run in list(self._shards.runs.values()):
            run.close(CLOSED)
            self._shards.release_if_over(run)
        self._aborts.shut_down(grace_s=grace_s)
        self._end_if_drained()

    def _end_if_drained(self) -> None:
        if self._draining and not self._shards.runs:
            self._over.set()

    # -- what the segment writer says ------------------------------------------------------

    def _storage_changed(self, reason: str | None) -> None:
        self._storage_trouble = reason is not None
        self._judge_rest()
        self._send(m.StorageTrouble(reason))
        self._slots.pump_all()

    def _commit_answered(self, run: ShardRun, accepted: bool) -> None:
        if not accepted and run.gate is not FENCED:
            dropped = run.uncommitted_bytes
            run.close(FENCED)
            self._written(dropped)
            self._aborts.end_run(run)
        self._shards.release_if_over(run)

    def _written(self, size: int) -> None:
        """So many bytes of results are held no longer."""
        lines_may_go = self._budget.written(size)
        self._intake.freed()
        if lines_may_go:
            self._slots.pump_all()


def _not_tried(send: Callable[[m.ToControl], None], backend: str, model: str) -> None:
    """There is no line to try the model with: somebody else may."""
    send(m.ModelTried(backend, model, worked=False))
