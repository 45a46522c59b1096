"""The executor on one machine: workers in child processes, given shards, gated, fenced.

`supervision` keeps the processes alive; what they are told and what it means that they say is here.
A worker's shards are free for others once it is reaped, and not before.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from batchline import telemetry
from batchline.domain.ids import BatchId, WorkerId
from batchline.domain.model import ShardKey
from batchline.domain.waiting import Reason
from batchline.executor import messages as m
from batchline.executor.admission import Admission
from batchline.executor.contract import ExecutorEvents, GateReport, Room, ShardWork
from batchline.executor.gates import Gates
from batchline.executor.load_watch import LoadWatch
from batchline.executor.standing import Standing
from batchline.executor.supervision import Supervision, SupervisionSettings
from batchline.executor.transport.choice import transport_for
from batchline.executor.worker_link import WorkerLink

OPEN_SHARDS: Final = 2  # not yet handed out, per worker and backend: one runs dry, one is ready
MOST_OPEN: Final = 64  # the same of many batches, which take turns: a few ten KiB and a file each
TICK_S: Final = 0.05  # circuits are looked at this often
GRANT_S: Final = 0.005  # and rate limits at most this often


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalSettings:
    """How workers are kept, and what each is told; `ack_s`: see `Gates`."""

    supervision: SupervisionSettings
    worker: m.WorkerSettings
    probes: str = ""
    ack_s: float = 0.25


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
        self._supervision = Supervision(
            settings.supervision,
            greet=self._greet,
            heard=self._heard,
            heard_in_turn=self._heard_in_turn,
            lost=self._lost,
        )
        self._links = self._supervision.links
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
        self._ticker: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._events: ExecutorEvents | None = None

    # -- life ------------------------------------------------------------------------------

    async def start(self, events: ExecutorEvents) -> None:
        self._events = events
        loop = asyncio.get_running_loop()
        self._ticker = loop.create_task(self._tick())
        watch = LoadWatch(
            self._settings.worker.backends,
            wanted=self._admission.is_wanted,
            heard=self._admission.engine_load,
            transport=transport_for,
        )
        self._watching = loop.create_task(watch.run())
        await self._supervision.start()

    @property
    def failing(self) -> str | None:
        """Why workers do not come up, or None; without a stop at its end."""
        return self._supervision.failing

    @property
    def ready_workers(self) -> int:
        return self._supervision.ready_workers

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

    def _must_events(self) -> ExecutorEvents:
        if self._events is None:
            raise RuntimeError("the executor was not started")
        return self._events

    async def _tick(self) -> None:
        due_s = TICK_S
        while True:
            # Evenly, where a rate limit sets the pace: some services count by the second.
            await asyncio.sleep(min(TICK_S, max(due_s, GRANT_S)))
            due_s = self._admit()

    def _admit(self) -> float:
        """Grant and try what is due; the seconds until something is again."""
        try:
            self._admission.tick()
            return self._admission.due_s()
        except Exception as exc:  # noqa: BLE001  # of ours; nothing would be granted any more
            telemetry.trouble("admission_failed", kind=type(exc).__name__)
            return TICK_S

    # -- messages --------------------------------------------------------------------------

    def _tell(self, worker: str, message: m.ToWorker) -> None:
        link = self._links.get(WorkerId(worker))
        if link is not None:
            link.tell(message)

    def _greet(self, link: WorkerLink, first: bool) -> None:
        # For the first workers only: a probe that ends one would end its successors too.
        probes = self._settings.probes if first else ""
        named = msgspec.structs.replace(self._settings.worker, worker=link.worker)
        link.tell(m.Configure(named, probes))
        if self._paused is not None:
            link.tell(m.Pause(paused=True))

    def _heard(self, link: WorkerLink, message: m.ToControl) -> bool:
        """Do at once what needs no store; the rest is to come again in its turn."""
        match message:
            case m.Hello():
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
                return False
        return True

    async def _heard_in_turn(self, link: WorkerLink, message: m.ToControl) -> None:
        events = self._must_events()
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

    async def _lost(self, link: WorkerLink) -> None:
        self._admission.worker_gone(link.worker)
        events = self._must_events()
        await events.on_lost(link.worker, list(link.holding.works), under_way=link.trying)
        link.holding.clear()
        events.on_room()

    # -- shards ----------------------------------------------------------------------------

    def rooms(self) -> Sequence[Room]:
        if self._paused is not None or self._supervision.stopping:
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
        self._supervision.set_quarantine(wanted)

    def open_shard(self, worker: WorkerId, work: ShardWork) -> bool:
        link = self._links.get(worker)
        key = work.shard.key
        if (
            link is None
            or link.gone.is_set()
            or self._supervision.stopping
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
        await self._supervision.drain(grace_s=grace_s)
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
