"""The executor on one machine: workers in child processes, supervised, fenced, restarted.

There are no timed leases here: liveness is the socket plus a heartbeat counted in ticks of our own
(so that a suspended laptop fences nobody). A silent worker is killed and reaped, and only then are
its shards free for others.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from batchline import telemetry
from batchline.domain.ids import BatchId, WorkerId
from batchline.domain.model import ShardKey
from batchline.domain.waiting import Reason
from batchline.executor import messages as m
from batchline.executor.admission import Admission
from batchline.executor.contract import ExecutorEvents, GateReport, Room, ShardWork
from batchline.executor.gates import Gates
from batchline.executor.load_watch import LoadWatch
from batchline.executor.protocol import PROTOCOL, other_version
from batchline.executor.standing import Standing
from batchline.executor.transport.choice import transport_for
from batchline.executor.worker_link import WorkerLink

OPEN_SHARDS: Final = 2  # not yet handed out, per worker and backend: one runs dry, one is ready
MOST_OPEN: Final = 64  # the same of many batches, which take turns: a few ten KiB and a file each
TICK_S: Final = 0.05  # circuits are looked at this often
GRANT_S: Final = 0.005  # and rate limits at most this often
START_S: Final = 30.0  # a worker imports for a second, on a busy machine for several
FAILING_DEATHS: Final = 5  # deaths before the first hello that make readiness say so
_RESTART_S: Final = (0.0, 0.1, 0.5, 2.0, 5.0, 30.0)  # waits before the nth restart in a row


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalSettings:
    """How workers are started and how patient the supervisor is.

    `command` starts one worker; ` --fd N` is appended. `worker_prefix` is unique per server start:
    segments carry the worker's name and are never reused.
    """

    workers: int
    command: Sequence[str]
    children: Path
    worker_prefix: str
    worker: m.WorkerSettings
    probes: str = ""
    ack_s: float = 0.25
    silent_s: float = 10.0


class LocalExecutor:
    """Implements `contract.Executor`."""

    def __init__(
        self,
        settings: LocalSettings,
        *,
        on_unreachable: Callable[[str, str], None] | None = None,
    ) -> None:
        """`on_unreachable`: see `Admission`."""
        self._settings = settings
        self._links: dict[WorkerId, WorkerLink] = {}
        self._admission = Admission(
            settings.worker.backends,
            tell=self._tell,
            on_unreachable=on_unreachable,
            retry_after_cap_s=settings.worker.retry.retry_after_cap_s,
            trial_patience_s=settings.worker.retry.trial_patience_s,
            holds=self._holds,
            on_models=self._models_changed,
        )
        self._gates = Gates(settings.worker.backends, ack_s=settings.ack_s)
        self._paused: str | None = None
        self._stopping = asyncio.Event()
        self._started = 0
        self._deaths_at_start = 0
        self._other_version: str | None = None  # what is installed instead of what runs
        self._all_ready = asyncio.Event()
        self._keepers: list[asyncio.Task[None]] = []
        self._quarantine: asyncio.Task[None] | None = None
        self._quarantine_wanted = False
        self._ticker: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._events: ExecutorEvents | None = None

    # -- life ------------------------------------------------------------------------------

    async def start(self, events: ExecutorEvents) -> None:
        self._events = events
        loop = asyncio.get_running_loop()
        self._keepers = [loop.create_task(self._keep(n)) for n in range(self._settings.workers)]
        self._ticker = loop.create_task(self._tick())
        watch = LoadWatch(
            self._settings.worker.backends,
            wanted=self._admission.is_wanted,
            heard=self._admission.engine_load,
            transport=transport_for,
        )
        self._watching = loop.create_task(watch.run())
        await self._all_ready.wait()

    @property
    def failing(self) -> str | None:
        """Why workers do not come up, or None; without a stop at its end."""
        if self._other_version is not None:
            return other_version(self._other_version)
        if self._deaths_at_start >= FAILING_DEATHS:
            return f"workers died at start {self._deaths_at_start} times in a row"
        return None

    @property
    def ready_workers(self) -> int:
        return sum(link.ready and not link.quarantine for link in self._links.values())

    def waiting_reasons(self) -> Mapping[str, Reason]:
        """Backend to why lines wait for it."""
        return {one.name: one.waits for one in self.standings() if one.waits is not None}

    @property
    def admission(self) -> Admission:
        """The permits and circuits, for who knows more of backends than the workers tell."""
        return self._admission

    def standings(self) -> Sequence[Standing]:
        """How every backend stands, in the order of the settings."""
        told = (Counter(link.in_flight) for link in self._links.values())
        return self._admission.standings(sum(told, Counter[str]()))

    def storage_trouble(self) -> str | None:
        """Why some worker cannot write its segment, or None."""
        return next((x.storage_trouble for x in self._links.values() if x.storage_trouble), None)

    async def _keep(self, slot: int) -> None:
        """Keep one worker running: start it, serve it, reap it, start the next."""
        deaths = 0
        while not await self._stops_within(_RESTART_S[min(deaths, len(_RESTART_S) - 1)]):
            deaths = 1 if await self._one_life(f"{slot}") else deaths + 1

    async def _keep_quarantine(self) -> None:
        """As `_keep`, for as long as it is wanted."""
        deaths = 0
        while self._quarantine_wanted and not await self._stops_within(
            _RESTART_S[min(deaths, len(_RESTART_S) - 1)]
        ):
            deaths = 1 if await self._one_life("q", quarantine=True) else deaths + 1

    async def _one_life(self, slot: str, *, quarantine: bool = False) -> bool:
        """One worker from start to reaped; whether it ever said hello."""
        self._started += 1
        worker = WorkerId(f"{self._settings.worker_prefix}-{slot}-{self._started}")
        try:
            return await self._serve(worker, quarantine=quarantine)
        except Exception as exc:  # noqa: BLE001  # whatever it was, the slot must go on
            telemetry.trouble("worker_link_failed", worker=worker, error=repr(exc))
            return False

    async def _stops_within(self, delay_s: float) -> bool:
        """Wait `delay_s`, less when the executor stops meanwhile; whether it does."""
        if delay_s > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay_s):
                    await self._stopping.wait()
        return self._stopping.is_set()

    async def _serve(self, worker: WorkerId, *, quarantine: bool) -> bool:
        settings = self._settings
        link = await WorkerLink.start(
            worker,
            settings.command,
            children=settings.children,
            environment=os.environ,
            quarantine=quarantine,
        )
        self._links[worker] = link
        # For the first workers only: a probe that ends one would end its successors too.
        probes = settings.probes if self._started <= settings.workers else ""
        link.tell(m.Configure(_named(settings.worker, worker), probes))
        if self._paused is not None:
            link.tell(m.Pause(paused=True))
        if quarantine and not self._quarantine_wanted:
            link.tell(m.Drain(0.0))
        if self._stopping.is_set():  # a drain that began meanwhile does not know of this one
            link.kill()
        ordered: asyncio.Queue[m.ToControl | None] = asyncio.Queue()
        serving = asyncio.get_running_loop().create_task(self._serve_in_order(link, ordered))
        # A worker whose commits nobody answers any more would hold its shards for ever.
        serving.add_done_callback(lambda _: link.kill())
        try:
            await link.messages(lambda message: self._on_message(link, message, ordered))
        finally:
            link.kill()
            status = await link.reap()
            ordered.put_nowait(None)
            try:
                # What was received before the end is durable in the worker's segment: it counts.
                await serving
            finally:
                self._note_version(link)
                await self._after_reaped(link, status)
        return link.ready

    def _note_version(self, link: WorkerLink) -> None:
        if link.other_version is not None:
            self._other_version = link.other_version
            telemetry.trouble(
                "worker_of_another_version_refused",
                worker=link.worker,
                installed=link.other_version,
                running=PROTOCOL,
            )

    async def _after_reaped(self, link: WorkerLink, status: int) -> None:
        self._links.pop(link.worker, None)
        self._admission.worker_gone(link.worker)
        expected = self._stopping.is_set() or (link.quarantine and not self._quarantine_wanted)
        if not expected:
            telemetry.trouble(
                "worker_ended", worker=link.worker, status=status, shards=len(link.holding.works)
            )
            if not link.ready and not link.quarantine:
                self._deaths_at_start += 1
                if self._deaths_at_start >= FAILING_DEATHS:
                    self._all_ready.set()
        events = self._must_events()
        await events.on_lost(link.worker, list(link.holding.works), under_way=link.trying)
        link.holding.clear()
        events.on_room()

    def _must_events(self) -> ExecutorEvents:
        if self._events is None:
            raise RuntimeError("the executor was not started")
        return self._events

    async def _tick(self) -> None:
        silent = max(1, round(self._settings.silent_s / TICK_S))
        starting = max(silent, round(START_S / TICK_S))
        due_s = TICK_S
        while True:
            looked_at = time.monotonic() + TICK_S
            while (left_s := looked_at - time.monotonic()) > 0:
                # Evenly, where a rate limit sets the pace: some services count by the second.
                await asyncio.sleep(min(left_s, max(due_s, GRANT_S)))
                due_s = self._admit()
            for link in list(self._links.values()):
                link.silent_beats += 1
                if link.silent_beats > (silent if link.ready else starting):
                    telemetry.trouble("worker_silent", worker=link.worker)
                    link.silent_beats = 0
                    link.kill()

    def _admit(self) -> float:
        """Grant and try what is due; the seconds until something is again."""
        try:
            self._admission.tick()
            return self._admission.due_s()
        except Exception as exc:  # noqa: BLE001  # of ours; nobody would look at silent workers
            telemetry.trouble("admission_failed", kind=type(exc).__name__)
            return TICK_S

    # -- messages --------------------------------------------------------------------------

    def _tell(self, worker: str, message: m.ToWorker) -> None:
        link = self._links.get(WorkerId(worker))
        if link is not None:
            link.tell(message)

    def _on_message(
        self, link: WorkerLink, message: m.ToControl, ordered: asyncio.Queue[m.ToControl | None]
    ) -> None:
        """What needs no store is done at once; the rest goes, in order, through `ordered`."""
        match message:
            case m.Hello():
                link.ready = True
                self._deaths_at_start = 0
                self._other_version = None
                if self.ready_workers >= self._settings.workers:
                    self._all_ready.set()
                self._must_events().on_room()
            case m.Heartbeat(in_flight=in_flight, answering=answering):
                link.in_flight = in_flight
                self._admission.note_answering(answering)
            case m.GateClosed():
                pass
            case m.Handed(key=key):
                link.holding.handed(key)
                self._must_events().on_handed(key)
            case m.Trying(key=key, index=index):
                link.trying.setdefault(key, set()).add(index)
                link.tell(m.Proceed(key, index))
            case m.Tried(key=key, index=index):
                link.trying.get(key, set()).discard(index)
            case m.PermitsHeld():
                self._admission.permits_held(link.worker, message)
            case m.BackendFault():
                self._admission.fault(link.worker, message)
            case m.LaneReport():
                self._admission.lane_report(link.worker, message)
            case m.LaneIdle():
                self._admission.lane_idle(link.worker, message)
            case m.TrialOver():
                self._admission.trial_over(link.worker, message)
            case m.ModelAway():
                self._admission.model_away(link.worker, message)
            case m.ModelTried():
                self._admission.model_tried(link.worker, message)
            case m.AskRates():
                self._admission.rates_asked(link.worker, message)
            case m.RatesHeard():
                self._admission.rates_heard(message)
            case m.StorageTrouble(reason=reason):
                link.storage_trouble = reason
                if reason is not None:
                    telemetry.trouble("segment_unwritable", worker=link.worker, reason=reason)
            case (
                m.Commit()
                | m.SegmentClosed()
                | m.ShardReleased()
                | m.InputUnreadable()
                | m.Drained()
            ):
                ordered.put_nowait(message)

    async def _serve_in_order(
        self, link: WorkerLink, ordered: asyncio.Queue[m.ToControl | None]
    ) -> None:
        events = self._must_events()
        while (message := await ordered.get()) is not None:
            match message:
                case m.Commit(commits=commits):
                    telemetry.probe("commit.received")
                    accepted = await events.on_commit(link.worker, commits)
                    link.tell(m.Committed(list(accepted)))
                    telemetry.probe("commit.answered")
                case m.SegmentClosed():
                    await events.on_segment_closed(link.worker)
                case m.InputUnreadable(key=key):
                    await events.on_input_unreadable(key)
                case m.ShardReleased(released=released):
                    link.holding.end(released.key)
                    link.trying.pop(released.key, None)
                    self._want(link)
                    await events.on_released(link.worker, released)
                    events.on_room()
                case _:
                    pass  # Drained: the end of the socket follows

    # -- shards ----------------------------------------------------------------------------

    def rooms(self) -> Sequence[Room]:
        if self._paused is not None or self._stopping.is_set():
            return []
        rooms = []
        for link in self._links.values():
            if link.ready and link.storage_trouble is None:
                for backend in self._settings.worker.backends:
                    room = _room(link, backend.name, self._admission.models_away(backend.name))
                    if room.shards or room.others:
                        rooms.append(room)
        return rooms

    def set_quarantine(self, wanted: bool) -> None:
        self._quarantine_wanted = wanted
        if wanted and (self._quarantine is None or self._quarantine.done()):
            self._quarantine = asyncio.get_running_loop().create_task(self._keep_quarantine())
        elif not wanted:
            for link in self._links.values():
                if link.quarantine:
                    link.tell(m.Drain(0.0))

    def open_shard(self, worker: WorkerId, work: ShardWork) -> bool:
        link = self._links.get(worker)
        key = work.shard.key
        if (
            link is None
            or link.gone.is_set()
            or self._stopping.is_set()
            or self._gates.is_closed(key.batch_id)
        ):
            return False
        link.holding.begin(work)
        self._want(link)  # first: of several backends' permits one would come before the others
        link.tell(m.OpenShard(work))
        telemetry.probe("shard.opened")
        return True

    def serve(self, model: str, backends: Sequence[str], listed_by: Sequence[str]) -> None:
        for link in self._links.values():
            if link.holding.serve(model, backends, listed_by):
                self._want(link)
                link.tell(m.Serve(model, list(backends), list(listed_by)))

    def _holds(self, worker: str, backend: str, model: str) -> bool:
        link = self._links.get(WorkerId(worker))
        return link is not None and link.holding.has(backend, model)

    def _models_changed(self) -> None:
        if self._events is not None:
            self._events.on_room()

    def _want(self, link: WorkerLink) -> None:
        self._admission.set_wanting(link.worker, link.holding.backends, one_permit=link.quarantine)

    def holders(self, batch_id: BatchId) -> Mapping[ShardKey, WorkerId]:
        return {
            key: link.worker
            for link in self._links.values()
            for key in link.holding.works
            if key.batch_id == batch_id
        }

    # -- gates -----------------------------------------------------------------------------

    async def close_gate(self, batch_id: BatchId, *, grace_s: float, last_s: float) -> GateReport:
        return await self._gates.close(
            batch_id, self._holding(batch_id), grace_s=grace_s, last_s=last_s
        )

    def forget_gate(self, batch_id: BatchId) -> None:
        """The batch is terminal: nothing will ask for its gate again."""
        self._gates.forget(batch_id)

    async def fence(self, batch_id: BatchId) -> Sequence[WorkerId]:
        links = self._holding(batch_id)
        for link in links:
            link.kill()
        for link in links:
            await link.gone.wait()
        telemetry.probe("workers.fenced")
        return [link.worker for link in links]

    def _holding(self, batch_id: BatchId) -> list[WorkerLink]:
        return [link for link in self._links.values() if link.holds(batch_id)]

    # -- pause and end ---------------------------------------------------------------------

    def pause(self, reason: str) -> None:
        if self._paused is None:
            for link in self._links.values():
                link.tell(m.Pause(paused=True))
        self._paused = reason

    def resume(self) -> None:
        if self._paused is not None:
            self._paused = None
            for link in self._links.values():
                link.tell(m.Pause(paused=False))
            if self._events is not None:
                self._events.on_room()

    @property
    def paused(self) -> str | None:
        """Why nothing is dispatched, or None."""
        return self._paused

    async def drain(self, *, grace_s: float) -> None:
        self._stopping.set()
        links = list(self._links.values())
        for link in links:
            link.tell(m.Drain(grace_s))
        # A worker that is drained ends by itself; one second more covers its last commit.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s + 1.0):
                for link in links:
                    await link.gone.wait()
        for link in links:
            link.kill()
        quarantine = [] if self._quarantine is None else [self._quarantine]
        await asyncio.gather(*self._keepers, *quarantine)
        for task in (self._ticker, self._watching):
            if task is not None:
                task.cancel()


def _room(link: WorkerLink, backend: str, away: Collection[str]) -> Room:
    if link.quarantine:  # one shard at a time, to its end
        shards = 0 if link.holding.works else 1
        return Room(worker=link.worker, backend=backend, shards=shards, away=away, quarantine=True)
    waiting = link.holding.open_at(backend, away)
    return Room(
        worker=link.worker,
        backend=backend,
        shards=max(0, OPEN_SHARDS - len(waiting)),
        others=max(0, MOST_OPEN - len(waiting)),
        open=waiting,
        away=away,
    )


def _named(settings: m.WorkerSettings, worker: WorkerId) -> m.WorkerSettings:
    return m.WorkerSettings(
        worker=worker,
        segment_directory=settings.segment_directory,
        backends=settings.backends,
        retry=settings.retry,
        commit_interval_s=settings.commit_interval_s,
        byte_budget=settings.byte_budget,
        segment_bytes=settings.segment_bytes,
        segment_idle_s=settings.segment_idle_s,
        heartbeat_s=settings.heartbeat_s,
    )
