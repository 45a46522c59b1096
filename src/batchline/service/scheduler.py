"""Hands shards of running batches to workers and accepts what they commit; whose shard is next is
said by `sharing.py`.

Keeps in memory which shards of which running batch wait and which are held; the store arbitrates
(`claim_shard`, epochs), so that a mistake here can cost time but never settle a line twice.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, TypeVar

from batchline import telemetry
from batchline.domain.errors import StoreError
from batchline.domain.ids import BatchId, BlobName, ProjectId, WorkerId
from batchline.domain.lifecycle import BatchStatus
from batchline.domain.model import Batch, PendingShard, Shard, ShardCommit, ShardKey
from batchline.domain.results import Failure
from batchline.domain.shares import Charge, Turn
from batchline.executor.contract import Ends, Executor, Released, Room, ShardWork
from batchline.service.pace_meter import PaceMeter
from batchline.service.plans import models_known
from batchline.service.running import AtWork, Running
from batchline.service.sharing import SchedulingSettings, Sharing
from batchline.service.suspects import Suspects
from batchline.service.unlisted import Listings, Unlisted
from batchline.store.blob_contract import BlobStore
from batchline.store.contract import Store

T = TypeVar("T")

RETRY_S: Final = 0.5  # between tries while the store does not answer


class Backends(Listings, Protocol):
    """What the scheduler asks of the catalogue."""

    def backends_for(self, model: str) -> Sequence[str]:
        """Names of the backends that list `model`, or whose catalogue is not known yet."""

    def name_at_backends(self, model: str) -> str:
        """What backends call the model that a file calls `model`."""


@dataclass(slots=True, eq=False)
class _Held:
    """A shard that is out. `charge` is None in quarantine, where nobody competes."""

    model: str
    quarantine: bool
    charge: Charge | None = None


class Scheduler:
    """Implements `executor.contract.ExecutorEvents`."""

    def __init__(
        self,
        store: Store,
        blobs: BlobStore,
        executor: Executor,
        backends: Backends,
        *,
        settings: SchedulingSettings | None = None,
        weights: Mapping[str, float] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._executor = executor
        self._backends = backends
        self._clock = clock
        self._running: dict[BatchId, Running] = {}
        self._unlisted = Unlisted(backends)
        self._held: dict[ShardKey, _Held] = {}
        self._sharing = Sharing(store, settings or SchedulingSettings(), weights or {})
        self._suspects = Suspects()
        self._room = asyncio.Event()

    # -- batches come and go ---------------------------------------------------------------

    async def activate(self, batch: Batch) -> Running:
        """Begin to hand out the unsettled shards of a batch that is in progress."""
        weight = await self._sharing.weights.of(batch.project_id)
        shards = await self._store.pending_shards(batch.id)
        plan_path = Path(self._blobs.path(BlobName(batch.plan_blob or "")))
        known = await asyncio.to_thread(models_known, plan_path)
        running = Running(batch=batch, unsettled=len(shards), meter=PaceMeter(batch.counts))
        for shard in reversed(shards):
            running.put_back(shard.number, shard.model, quarantine=False)
        running.idle.set()
        self._running[batch.id] = running
        self._unlisted.begin(running, models_known=known)
        self._sharing.begin(running, weight=weight)
        self._room.set()
        return running

    def stop(self, batch_id: BatchId) -> None:
        """Hand out nothing more of the batch; held shards come back as they are."""
        running = self._running.get(batch_id)
        if running is not None:
            running.stopped = True
            self._sharing.end(running)
            running.pending.clear()
            running.quarantined.clear()
            running.changed.set()

    def deactivate(self, batch_id: BatchId) -> None:
        """The batch is terminal."""
        running = self._running.pop(batch_id, None)
        self._unlisted.end(batch_id)
        if running is not None:
            self._sharing.end(running)
        self._suspects.forget(batch_id)
        if running is not None and running.suspected:
            self._set_quarantine()

    def _set_quarantine(self) -> None:
        self._executor.set_quarantine(
            any(one.quarantined or one.held_quarantined for one in self._running.values())
        )

    def find(self, batch_id: BatchId) -> Running | None:
        return self._running.get(batch_id)

    def running_of(self, project_id: ProjectId) -> Sequence[Running]:
        """The running batches of a project, oldest first."""
        found = [one for one in self._running.values() if one.batch.project_id == project_id]
        return sorted(found, key=lambda one: one.batch.sequence)

    def at_work(self) -> AtWork:
        """What workers have now, of all batches."""
        every = self._running.values()
        return AtWork(
            batches=sum(bool(one.held) for one in every),
            shards=sum(one.meter.shards_at_work for one in every if one.held),
        )

    def on_catalogue(self) -> None:
        """A backend came, went, or lists other models: what is held may go to more of them."""
        for model in {held.model for held in self._held.values()}:
            serving = self._backends.backends_for(model)
            name = self._backends.name_at_backends(model)
            self._executor.serve(name, serving, self._unlisted.listed_by(serving, model))
        self._room.set()

    # -- handing out -----------------------------------------------------------------------

    async def run(self) -> None:
        """Hand out shards whenever a worker has room, until cancelled."""
        while True:
            await self._room.wait()
            self._room.clear()
            try:
                await self._fill()
            except StoreError as exc:
                telemetry.trouble("shard_not_claimed", code=exc.code)
                await asyncio.sleep(RETRY_S)
                self._room.set()

    async def _fill(self) -> None:
        """Give each worker what it has room for, one shard a round so that all get some."""
        progress = True
        while progress:
            progress = False
            given: set[WorkerId] = set()  # it has a room at each backend, and a shard may fill many
            for room in self._executor.rooms():
                if room.worker not in given and await self._give(room):
                    given.add(room.worker)
                    progress = True

    async def _give(self, room: Room) -> bool:
        choice = self._choose(room)
        if choice is None:
            return False
        running, model = choice
        competes = not room.quarantine and not self._unlisted.fails(running, model)
        turn = self._sharing.turn(running, model, room) if competes else Turn()
        number = self._take(running, model, quarantine=room.quarantine)
        key = ShardKey(batch_id=running.batch.id, number=number)
        given = settled = False
        try:
            shard = await self._store.claim_shard(key)
            if shard is None:
                settled = await self._is_settled(running)
                return True
            if running.stopped:
                return False
            work = self._work(running, shard, turn, quarantine=room.quarantine)
            if work.backends or work.refuse is not None:  # else nobody serves it any more
                self._held[key] = held = _Held(model, room.quarantine)
                running.meter.claimed(shard)
                given = self._executor.open_shard(room.worker, work)
                if given and competes:
                    held.charge = self._sharing.charge(running, shard, room)
            return given
        finally:
            if not given:
                self._held.pop(key, None)
                if settled:
                    running.unsettled -= 1
                elif not running.stopped:
                    self._put_back(running, number, model, quarantine=room.quarantine)
                running.let_go(number)

    async def _is_settled(self, running: Running) -> bool:
        """Why a shard could not be claimed: it is settled, or its batch's gate is closed.

        Then we have not heard of it yet: no more of this batch, and who closed it does the rest.
        """
        batch = await self._store.load_batch(running.batch.id)
        if batch.status is BatchStatus.IN_PROGRESS:
            return True
        self.stop(running.batch.id)
        return False

    def _choose(self, room: Room) -> tuple[Running, str] | None:
        """The batch, and its model, whose shard goes to `room` next."""
        if not room.quarantine:
            return self._unlisted.next() or self._sharing.choose(
                room, goes_to=self._goes_to, now=self._clock()
            )
        # Suspect lines are few, and whose are first matters little: the earliest deadline.
        waiting = {
            (running.batch.expires_at, running.batch.sequence, model): (running, model)
            for running in self._running.values()
            for model in running.quarantined
            if self._goes_to(room, model)
        }
        return waiting[min(waiting)] if waiting else None

    def _goes_to(self, room: Room, model: str) -> bool:
        if room.away and self._backends.name_at_backends(model) in room.away:
            return False
        return room.backend in self._backends.backends_for(model)

    def _take(self, running: Running, model: str, *, quarantine: bool) -> int:
        if quarantine:
            return running.take(model, quarantine=True)
        return self._sharing.take(running, model)

    def _put_back(self, running: Running, number: int, model: str, *, quarantine: bool) -> None:
        if quarantine:
            running.put_back(number, model, quarantine=True)
        else:
            self._sharing.put_back(running, number, model)

    def _no_longer_held(self, key: ShardKey) -> _Held | None:
        held = self._held.pop(key, None)
        if held is not None and held.charge is not None:
            self._sharing.returned(held.charge)
        return held

    def _work(self, running: Running, shard: Shard, turn: Turn, *, quarantine: bool) -> ShardWork:
        batch = running.batch
        serving = self._backends.backends_for(shard.model)
        name = self._backends.name_at_backends(shard.model)
        fails = not serving and self._unlisted.fails(running, shard.model)
        return ShardWork(
            shard=shard,
            endpoint=batch.endpoint,
            input_path=str(self._blobs.path(BlobName(batch.input_blob or ""))),
            plan_path=str(self._blobs.path(BlobName(batch.plan_blob or ""))),
            backends=list(serving),
            listed_by=self._unlisted.listed_by(serving, shard.model, running=running),
            announced=shard.deaths > 0,
            suspects=self._suspects.suspects(shard.key, deaths=shard.deaths) if quarantine else (),
            lost=self._suspects.lost(shard.key),
            send_as=None if name == shard.model else name,
            refuse=Failure.MODEL_NOT_FOUND.value if fails else None,
            turn=turn,
        )

    # -- what the executor tells -----------------------------------------------------------

    def on_room(self) -> None:
        self._room.set()

    async def on_commit(self, worker: WorkerId, commits: Sequence[ShardCommit]) -> Sequence[bool]:
        """Commit, however long the store needs: the bytes are durable, only the row is missing."""
        while True:
            try:
                accepted = await self._store.commit(worker, commits, now=int(self._clock()))
            except StoreError as exc:
                telemetry.trouble("commit_delayed", worker=worker, code=exc.code)
                await asyncio.sleep(RETRY_S)
            else:
                break
        for one, ok in zip(commits, accepted, strict=True):
            running = self._running.get(one.key.batch_id)
            if ok and running is not None:
                running.meter.committed(one)
            held = self._held.get(one.key)
            if ok and held is not None and held.charge is not None:
                self._sharing.committed(held.charge, one)
        return accepted

    def on_handed(self, key: ShardKey) -> None:
        running = self._running.get(key.batch_id)
        if running is not None:
            running.meter.sent(key.number)
        self.on_room()

    async def on_released(self, worker: WorkerId, released: Released) -> None:  # noqa: ARG002  # part of the contract
        held = self._no_longer_held(released.key)
        running = self._running.get(released.key.batch_id)
        if running is None:
            return
        for backend, ends in released.ends.items():
            running.ends.setdefault(backend, Ends()).add(ends)
        if released.settled:
            running.unsettled -= 1
        elif held is not None and not running.stopped:
            # Out of quarantine its suspects are settled: the rest runs like any other shard.
            self._sharing.put_back(running, released.key.number, held.model)
        running.let_go(released.key.number)
        if held is not None and held.quarantine:
            self._suspects.cleared(released.key)
            self._set_quarantine()

    async def on_segment_closed(self, worker: WorkerId) -> None:
        """Let go of what only the open segment kept: its files may be gone already."""
        await self._until_stored(lambda: self._store.release_worker_references(worker))

    async def on_lost(
        self,
        worker: WorkerId,
        held: Sequence[ShardKey],
        *,
        under_way: Mapping[ShardKey, Collection[int]],
    ) -> None:
        """Outdate what the dead worker held, then let others have it."""
        for key, entries in under_way.items():
            out = self._held.get(key)
            self._suspects.died(key, entries, quarantined=out is not None and out.quarantine)
        await self._until_stored(lambda: self._store.fence_shards(held, died=True))
        await self._until_stored(lambda: self._store.release_worker_references(worker))
        for batch_id in {key.batch_id for key in held}:
            await self._recover(batch_id, [key for key in held if key.batch_id == batch_id])

    async def _recover(self, batch_id: BatchId, lost: Sequence[ShardKey]) -> None:
        """Put the lost shards back, except those that the last commits had settled."""
        running = self._running.get(batch_id)
        shards = await self._until_stored(lambda: self._store.pending_shards(batch_id))
        numbers = {key.number for key in lost}
        unsettled = {shard.number: shard for shard in shards if shard.number in numbers}
        for key in lost:
            self._no_longer_held(key)
            if running is not None:
                self._recover_one(running, key, unsettled.get(key.number))
        self._set_quarantine()

    def _recover_one(self, running: Running, key: ShardKey, shard: PendingShard | None) -> None:
        if shard is None:
            running.unsettled -= 1
        elif not running.stopped:
            suspects = self._suspects.suspects(key, deaths=shard.deaths)
            if suspects:
                telemetry.trouble("lines_suspected", batch_id=key.batch_id, lines=len(suspects))
            self._put_back(running, key.number, shard.model, quarantine=bool(suspects))
        running.let_go(key.number)

    async def _until_stored(self, call: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                return await call()
            except StoreError as exc:
                telemetry.trouble("fence_delayed", code=exc.code)
                await asyncio.sleep(RETRY_S)

    async def on_input_unreadable(self, key: ShardKey) -> None:
        running = self._running.get(key.batch_id)
        if running is not None:
            running.input_lost = True
            running.changed.set()
