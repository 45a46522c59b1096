"""Whose shard next: hands shards of running batches to workers and accepts what they commit.

Keeps in memory which shards of which running batch wait and which are held; the store arbitrates
(`claim_shard`, epochs), so that a mistake here can cost time but never settle a line twice.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeVar

from batchline import telemetry
from batchline.domain.errors import StoreError
from batchline.domain.fairness import Waiting, next_batch
from batchline.domain.ids import BatchId, BlobName, WorkerId
from batchline.domain.model import Batch, Shard, ShardCommit, ShardKey
from batchline.domain.results import Failure
from batchline.executor.contract import Executor, Released, Room, ShardWork
from batchline.store.contract import BlobStore, Store

T = TypeVar("T")

RETRY_S: Final = 0.5  # between tries while the store does not answer
SERIAL_AFTER_DEATHS: Final = 3  # a shard that killed this many workers runs one line at a time


class Backends(Protocol):
    """What the scheduler asks of the catalogue."""

    def backends_for(self, model: str) -> Sequence[str]:
        """Names of the backends that list `model`, or whose catalogue is not known yet."""

    def lists(self, backend: str, model: str) -> bool:
        """Whether the backend's own catalogue is known and lists `model`."""

    def known(self) -> bool:
        """Whether there is a backend and the catalogue of every one is known."""


@dataclass(slots=True, eq=False)
class Running:
    """One batch in progress: its shards by where they are. Owned by the event loop.

    `idle` is set while no shard is held; `over` once nothing is left to hand out or to wait for.
    """

    batch: Batch
    pending: dict[str, deque[int]]  # by model
    unsettled: int
    held: set[int] = field(default_factory=set)
    stopped: bool = False
    input_lost: bool = False
    aborted: int = 0
    finished_late: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def waiting(self) -> Waiting:
        return Waiting(
            sequence=self.batch.sequence,
            created_at=self.batch.created_at,
            expires_at=self.batch.expires_at,
            running_shards=len(self.held),
        )

    @property
    def all_settled(self) -> bool:
        return self.unsettled == 0

    def put_back(self, number: int, model: str) -> None:
        self.pending.setdefault(model, deque()).appendleft(number)

    def let_go(self, number: int) -> None:
        self.held.discard(number)
        if not self.held:
            self.idle.set()
        self.changed.set()


class Scheduler:
    """Implements `executor.contract.ExecutorEvents`."""

    def __init__(
        self,
        store: Store,
        blobs: BlobStore,
        executor: Executor,
        backends: Backends,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._executor = executor
        self._backends = backends
        self._clock = clock
        self._running: dict[BatchId, Running] = {}
        self._models: dict[ShardKey, str] = {}  # of held shards
        self._room = asyncio.Event()

    # -- batches come and go ---------------------------------------------------------------

    async def activate(self, batch: Batch) -> Running:
        """Begin to hand out the unsettled shards of a batch that is in progress."""
        pending: dict[str, deque[int]] = {}
        shards = await self._store.pending_shards(batch.id)
        for number, model in shards:
            pending.setdefault(model, deque()).append(number)
        running = Running(batch=batch, pending=pending, unsettled=len(shards))
        running.idle.set()
        self._running[batch.id] = running
        self._room.set()
        return running

    def stop(self, batch_id: BatchId) -> None:
        """Hand out nothing more of the batch; held shards come back as they are."""
        running = self._running.get(batch_id)
        if running is not None:
            running.stopped = True
            running.pending.clear()
            running.changed.set()

    def deactivate(self, batch_id: BatchId) -> None:
        """The batch is terminal."""
        self._running.pop(batch_id, None)

    def find(self, batch_id: BatchId) -> Running | None:
        return self._running.get(batch_id)

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
            for room in self._executor.rooms():
                progress |= await self._give(room)

    async def _give(self, room: Room) -> bool:
        choice = self._choose(room.backend)
        if choice is None:
            return False
        running, model = choice
        number = running.pending[model].popleft()
        if not running.pending[model]:
            del running.pending[model]
        key = ShardKey(batch_id=running.batch.id, number=number)
        running.held.add(number)
        running.idle.clear()
        given = False
        try:
            shard = await self._store.claim_shard(key)
            if shard is not None and not running.stopped:
                self._models[key] = model
                given = self._executor.open_shard(room.worker, self._work(running, shard))
        finally:
            if not given:
                self._models.pop(key, None)
                if not running.stopped:
                    running.put_back(number, model)
                running.let_go(number)
        if shard is None:
            # Its gate is closed in the store and we have not heard of it yet: no more of this one.
            self.stop(running.batch.id)
            return True
        return given

    def _choose(self, backend: str) -> tuple[Running, str] | None:
        """The batch, and its model, whose shard goes to `backend` next."""
        known = self._backends.known()
        candidates: dict[int, tuple[Running, str]] = {}
        for running in self._running.values():
            for model in running.pending:
                serving = self._backends.backends_for(model)
                if backend in serving or (known and not serving):
                    candidates[running.batch.sequence] = (running, model)
                    break
        chosen = next_batch(
            (running.waiting() for running, _ in candidates.values()), now=self._clock()
        )
        return None if chosen is None else candidates[chosen.sequence]

    def _work(self, running: Running, shard: Shard) -> ShardWork:
        batch = running.batch
        serving = self._backends.backends_for(shard.model)
        return ShardWork(
            shard=shard,
            endpoint=batch.endpoint,
            input_path=str(self._blobs.path(BlobName(batch.input_blob or ""))),
            plan_path=str(self._blobs.path(BlobName(batch.plan_blob or ""))),
            backends=list(serving),
            listed_by=[name for name in serving if self._backends.lists(name, shard.model)],
            serial=shard.deaths >= SERIAL_AFTER_DEATHS,
            refuse=None if serving else Failure.MODEL_NOT_FOUND.value,
        )

    # -- what the executor tells -----------------------------------------------------------

    def on_room(self) -> None:
        self._room.set()

    async def on_commit(self, worker: WorkerId, commits: Sequence[ShardCommit]) -> Sequence[bool]:
        """Commit, however long the store needs: the bytes are durable, only the row is missing."""
        while True:
            try:
                return await self._store.commit(worker, commits, now=int(self._clock()))
            except StoreError as exc:
                telemetry.trouble("commit_delayed", worker=worker, code=exc.code)
                await asyncio.sleep(RETRY_S)

    async def on_released(self, worker: WorkerId, released: Released) -> None:  # noqa: ARG002  # part of the contract
        model = self._models.pop(released.key, None)
        running = self._running.get(released.key.batch_id)
        if running is None:
            return
        running.aborted += released.aborted
        running.finished_late += released.finished_late
        if released.settled:
            running.unsettled -= 1
        elif model is not None and not running.stopped:
            running.put_back(released.key.number, model)
        running.let_go(released.key.number)

    async def on_lost(self, worker: WorkerId, held: Sequence[ShardKey]) -> None:
        """Outdate what the dead worker held, then let others have it."""
        await self._until_stored(lambda: self._store.fence_shards(held, died=True))
        await self._until_stored(lambda: self._store.release_worker_references(worker))
        for batch_id in {key.batch_id for key in held}:
            await self._recover(batch_id, [key for key in held if key.batch_id == batch_id])

    async def _recover(self, batch_id: BatchId, lost: Sequence[ShardKey]) -> None:
        """Put the lost shards back, except those that the last commits had settled."""
        running = self._running.get(batch_id)
        unsettled = dict(await self._until_stored(lambda: self._store.pending_shards(batch_id)))
        for key in lost:
            self._models.pop(key, None)
            if running is None:
                continue
            if key.number not in unsettled:
                running.unsettled -= 1
            elif not running.stopped:
                running.put_back(key.number, unsettled[key.number])
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

    def waiting_models(self) -> Mapping[BatchId, Sequence[str]]:
        """Models of running batches that no backend serves as far as is known."""
        return {
            batch_id: missing
            for batch_id, running in self._running.items()
            if (missing := [m for m in running.pending if not self._backends.backends_for(m)])
        }
