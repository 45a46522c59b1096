"""Workers, the control process's desk and backends in one loop without time: for histories.

The workers, their lanes and the desk are the product's own. Messages between them are on their way
until the history delivers them; requests run until it says how they end. What is watched at every
step: no first byte behind an acknowledged gate, no settled line again, and never more in flight at
a backend than it takes.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from batchline.domain import bitmap, ids, plan
from batchline.domain.attempts import RetryPolicy
from batchline.domain.errors import NotAdmitted, NotSent
from batchline.domain.ids import BatchId
from batchline.domain.model import Shard, ShardKey, Usage
from batchline.executor import messages as m
from batchline.executor.admission import Admission
from batchline.executor.contract import BackendSettings, Released, ShardWork
from batchline.executor.holding import Holding
from batchline.executor.intake import Intake
from batchline.executor.transport.contract import Answer, Pieces
from batchline.executor.worker import Worker
from tests.model.loop import QuietLoop

GOOD = b'{"usage":{"prompt_tokens":20,"completion_tokens":30,"total_tokens":50}}'
TOLD = {"x-ratelimit-limit-requests": "600", "x-ratelimit-remaining-requests": "300"}
ASKED = {"retry-after": "1"}
AWAY = b'{"error":{"message":"no such model","type":"x","code":"model_not_found"}}'
RETRY = RetryPolicy(max_attempts=3, base_s=0.5, ceiling_s=4.0)


def answer(status: int, body: bytes = GOOD, headers: Mapping[str, str] | None = None) -> Answer:
    return Answer(status=status, headers=headers or {}, body=body)


@dataclass(slots=True, eq=False)
class Request:
    """One that is at a backend."""

    backend: str
    worker: str
    custom_id: int
    model: str
    end: asyncio.Future[Answer]


class Backend:
    """What one backend has in hand, of all workers; `down`: nobody can connect. `lacks`: models
    that it says it does not have."""

    def __init__(self, settings: BackendSettings) -> None:
        self.settings = settings
        self.requests: list[Request] = []
        self.down = False
        self.lacks: set[str] = set()
        self.most = 0


class Wire:
    """`Transport` of one worker to one backend."""

    def __init__(self, world: World, worker: str, backend: Backend) -> None:
        self._world = world
        self._worker = worker
        self._backend = backend

    async def send(
        self,
        path: str,  # noqa: ARG002
        body: bytes,
        before_write: Callable[[], bool],
        key: str | None = None,  # noqa: ARG002
        headers: Mapping[str, str] | None = None,  # noqa: ARG002
        pieces: Pieces | None = None,  # noqa: ARG002
    ) -> Answer:
        if self._world.slow and self._world.roll() < 0.5:
            await asyncio.sleep(8 * self._world.roll())  # a connection is being made
        if self._backend.down:
            raise NotSent("nobody there")
        if not before_write():
            raise NotAdmitted("the gate closed")
        asked = msgspec.json.decode(body)
        request = Request(
            self._backend.settings.name,
            self._worker,
            asked["x"],
            asked["model"],
            asyncio.get_running_loop().create_future(),
        )
        self._world.on_first_byte(request)
        self._backend.requests.append(request)
        self._backend.most = max(self._backend.most, len(self._backend.requests))
        try:
            return await request.end
        finally:
            try:
                await asyncio.sleep(0)  # until the socket is closed
            finally:
                if request in self._backend.requests:
                    self._backend.requests.remove(request)

    async def get_json(self, path: str, *, timeout_s: float) -> Answer:  # noqa: ARG002
        await asyncio.sleep(0.01)
        if self._backend.down:
            raise NotSent("nobody there")
        return answer(200, b'{"data":[]}')

    async def close(self) -> None:
        pass


@dataclass(slots=True, eq=False)
class Link:
    """A worker, and what is on its way to it and from it."""

    name: str
    worker: Worker
    task: asyncio.Task[None]
    inbox: deque[m.ToWorker] = field(default_factory=deque)
    outbox: deque[m.ToControl] = field(default_factory=deque)
    holding: Holding = field(default_factory=Holding)
    dead: bool = False

    def rest(self) -> None:
        """No line is taken any more: a slot that ends would begin others."""
        self.worker._draining = self.worker._slots.rests = True


@dataclass(slots=True)
class OneShard:
    work: ShardWork
    epoch: int = 0
    settled: bytes = b""
    done: bool = False
    holder: str | None = None


class World:
    """`backends` are shared by all workers; each shard may go to all of them."""

    def __init__(
        self,
        folder: Path,
        loop: QuietLoop,
        rng: random.Random,
        backends: Sequence[BackendSettings],
        *,
        workers: int = 2,
        byte_budget: int = 1 << 20,
    ) -> None:
        self.folder = folder
        self.loop = loop
        self.rng = rng
        self.roll = rng.random
        self.slow = True  # to take a connection
        self.backends = {one.name: Backend(one) for one in backends}
        self.byte_budget = byte_budget
        self.admission = Admission(
            backends, tell=self._tell, clock=loop.time, chance=rng, holds=self._holds
        )
        self.links: dict[str, Link] = {}
        self.shards: dict[ShardKey, OneShard] = {}
        self.closed: set[BatchId] = set()  # gates that are closed here
        self.quiet: set[BatchId] = set()  # and acknowledged by everybody
        self.acks: dict[BatchId, set[str]] = {}
        self.refuses: set[ShardKey] = set()  # commits of it
        self.sent: Counter[tuple[ShardKey, int]] = Counter()
        self._by_custom_id: list[tuple[ShardKey, int]] = []
        self._asked: dict[int, BatchId] = {}  # of each request for a gate
        self._births = 0
        for _ in range(workers):
            loop.finish(self.birth())

    # -- workers ---------------------------------------------------------------------------

    async def birth(self) -> None:
        self._births += 1
        name = f"w{self._births}"
        worker = Worker(
            m.WorkerSettings(
                worker=name,
                segment_directory=str(self.folder),
                backends=[one.settings for one in self.backends.values()],
                retry=RETRY,
                byte_budget=self.byte_budget,
            ),
            send=lambda message: self._from(name, message),
            transport=lambda settings: Wire(self, name, self.backends[settings.name]),
            intake=Intake(self.byte_budget),
        )
        worker._settling.random = self.rng
        self.links[name] = Link(name, worker, self.loop.create_task(worker.run()))

    def death(self, link: Link) -> None:
        """All of its tasks end without a word, and the desk hears that it is reaped."""
        link.dead = True
        link.rest()
        mine = [task for task in asyncio.all_tasks(self.loop) if self._is_of(task, link)]
        for task in mine:
            task.cancel()
        self.loop.settle()
        for backend in self.backends.values():
            backend.requests[:] = [one for one in backend.requests if one.worker != link.name]
        self.links.pop(link.name)
        self.admission.worker_gone(link.name)
        for key in link.holding.works:
            self.shards[key].holder = None
        self.loop.finish(self.birth())

    @staticmethod
    def _is_of(task: asyncio.Task[object], link: Link) -> bool:
        if task is link.task:
            return True
        frame = task.get_coro().cr_frame if hasattr(task.get_coro(), "cr_frame") else None  # type: ignore[union-attr]
        owner = frame.f_locals.get("self") if frame is not None else None
        return owner in (
            link.worker,
            link.worker._slots,
            link.worker._failover,
            link.worker._writer,
        )

    def _from(self, name: str, message: m.ToControl) -> None:
        link = self.links.get(name)
        if link is not None and not link.dead:
            link.outbox.append(message)

    def _holds(self, worker: str, backend: str, model: str) -> bool:
        link = self.links.get(worker)
        return link is not None and link.holding.has(backend, model)

    def _tell(self, worker: str, message: m.ToWorker) -> None:
        link = self.links.get(worker)
        if link is not None and not link.dead:
            link.inbox.append(message)

    def deliver(self, link: Link) -> None:
        """One message in each direction, where there is one."""
        if link.inbox:
            self.loop.call_soon(link.worker.handle, link.inbox.popleft())
            self.loop.settle()
        if link.outbox:
            self._hear(link, link.outbox.popleft())
            self.loop.settle()

    def _hear(self, link: Link, message: m.ToControl) -> None:
        match message:
            case m.PermitsHeld():
                self.admission.permits_held(link.name, message)
            case m.BackendFault():
                self.admission.fault(link.name, message)
            case m.TrialOver():
                self.admission.trial_over(link.name, message)
            case m.ModelAway():
                self.admission.model_away(link.name, message)
            case m.ModelTried():
                self.admission.model_tried(link.name, message)
            case m.LaneIdle():
                self.admission.lane_idle(link.name, message)
            case m.LaneReport():
                self.admission.lane_report(link.name, message)
            case m.AskRates():
                self.admission.rates_asked(link.name, message)
            case m.RatesHeard():
                self.admission.rates_heard(message)
            case m.Commit(commits=commits):
                accepted = [self._commit(one.key, one.epoch, one.settled) for one in commits]
                self._tell(link.name, m.Committed(accepted))
            case m.ShardReleased(released=released):
                self._released(link, released)
            case m.GateClosed(request=request):
                batch_id = self._asked[request]
                self.acks[batch_id].discard(link.name)
            case m.Trying(key=key, index=index):
                self._tell(link.name, m.Proceed(key, index))
            case m.Handed(key=key):
                link.holding.handed(key)
            case m.InputUnreadable():
                raise AssertionError(message)
            case _:
                pass
        self.look_at_gates()

    def _commit(self, key: ShardKey, epoch: int, settled: bytes) -> bool:
        shard = self.shards[key]
        if key in self.refuses or epoch != shard.epoch:
            return False
        assert all(a & b == a for a, b in zip(shard.settled, settled, strict=True))
        shard.settled = settled
        return True

    def _released(self, link: Link, released: Released) -> None:
        link.holding.end(released.key)
        self.admission.set_wanting(link.name, link.holding.backends)
        shard = self.shards[released.key]
        shard.holder = None
        self.refuses.discard(released.key)
        shard.done = bitmap.count(shard.settled) == shard.work.shard.entries
        assert not released.settled or shard.done

    # -- shards and gates ------------------------------------------------------------------

    def new_batch(
        self, number: int, *, shards: int, lines: int, sizes: Sequence[int], once: bool = False
    ) -> BatchId:
        batch_id = ids.batch_id(1_750_000_000, number.to_bytes(ids.RANDOM_BYTES, "big"))
        path = self.folder / f"input-{number}"
        plan_path = self.folder / f"plan-{number}"
        # Of one model, or of two; some backends list it, some only later.
        models = self.rng.choice((["m"], ["m", "n"]))
        known = [name for name in self.backends if self.rng.random() < 0.7]
        known = known or [self.rng.choice(list(self.backends))]
        of_shard = [self.rng.choice(models) for _ in range(shards)]
        raw, entries, offset = [], [plan.header(followers=once)], 0
        for index in range(shards * lines):
            key = ShardKey(batch_id=batch_id, number=index // lines)
            custom = len(self._by_custom_id)
            self._by_custom_id.append((key, index % lines))
            pad = "p" * self.rng.choice(sizes)
            line = (
                f'{{"custom_id":"c{custom}","method":"POST","url":"/v1/chat/completions",'
                f'"body":{{"model":"{of_shard[index // lines]}","x":{custom},"pad":"{pad}"}}}}'
            ).encode()
            follows = once and index % lines and self.rng.random() < 0.4
            prefix = plan.FOLLOWS if follows else self.rng.choice((0, 0, 7, 8, 9))
            entries.append(plan.ENTRY.pack(offset, len(line), index + 1, prefix))
            offset += len(line) + 1
            raw.append(line)
        path.write_bytes(b"\n".join(raw) + b"\n")
        plan_path.write_bytes(b"".join(entries))
        for at in range(shards):
            key = ShardKey(batch_id=batch_id, number=at)
            empty = bytes(bitmap.empty(lines))
            shard = Shard(
                key=key,
                first_entry=at * lines,
                entries=lines,
                model=of_shard[at],
                epoch=0,
                settled=empty,
                usage=Usage(),
            )
            work = ShardWork(
                shard=shard,
                endpoint="/v1/chat/completions",
                input_path=str(path),
                plan_path=str(plan_path),
                backends=known,
                listed_by=known,
            )
            self.shards[key] = OneShard(work, settled=empty)
        return batch_id

    def open(self, link: Link, shard: OneShard) -> None:
        key = shard.work.shard.key
        if shard.holder or shard.done or key.batch_id in self.closed:
            return
        shard.epoch += 1
        shard.holder = link.name
        one = replace(shard.work.shard, epoch=shard.epoch, settled=shard.settled)
        work = replace(shard.work, shard=one, announced=self.rng.random() < 0.2)
        link.holding.begin(work)
        self.admission.set_wanting(link.name, link.holding.backends)
        self._tell(link.name, m.OpenShard(work))

    def serve(self, model: str) -> None:
        """Every backend lists it from now on."""
        everywhere = list(self.backends)
        for shard in self.shards.values():
            if shard.work.model == model:
                shard.work = shard.work.served_by(everywhere, everywhere)
        for link in self.links.values():
            if link.holding.serve(model, everywhere, everywhere):
                self.admission.set_wanting(link.name, link.holding.backends)
                self._tell(link.name, m.Serve(model, everywhere, everywhere))

    def close_gate(self, batch_id: BatchId, *, grace_s: float, last_s: float) -> None:
        if batch_id in self.closed:
            return
        self.closed.add(batch_id)
        holders = [
            link
            for link in self.links.values()
            if any(key.batch_id == batch_id for key in link.holding.works)
        ]
        request = len(self._asked) + 1
        self._asked[request] = batch_id
        self.acks[batch_id] = {link.name for link in holders}
        for link in holders:
            self._tell(link.name, m.CloseGate(batch_id, request, grace_s, last_s))
        self.look_at_gates()

    def look_at_gates(self) -> None:
        for batch_id, missing in self.acks.items():
            missing &= self.links.keys()
            if not missing:
                self.quiet.add(batch_id)

    def on_first_byte(self, request: Request) -> None:
        key, index = self._by_custom_id[request.custom_id]
        assert key.batch_id not in self.quiet, "a first byte behind an acknowledged gate"
        shard = self.shards[key]
        assert not bitmap.is_marked(shard.settled, index), "a settled line was sent"
        backend = self.backends[request.backend]
        assert len(backend.requests) < backend.settings.max_in_flight, "above max_in_flight"
        self.sent[key, index] += 1

    # -- what happens ----------------------------------------------------------------------

    def end(self, request: Request, how: Answer | Exception) -> None:
        if request.end.done():
            return
        if isinstance(how, Exception):
            request.end.set_exception(how)
        else:
            request.end.set_result(how)
        self.loop.settle()

    def skip(self, seconds: float) -> None:
        self.loop.skip(seconds)
        self.loop.settle()
        self.admission.tick()
        self.loop.settle()

    def heal(self, *, most_s: float = 4_000.0) -> None:
        """Everything works from now on, until nothing is left to do."""
        for name, backend in self.backends.items():
            backend.down = False
            backend.lacks.clear()
            self.admission.set_drained(name, drained=False)
            self.admission.note_up(name)
        for link in self.links.values():
            link.inbox.append(m.Pause(paused=False))
        until = self.loop.time() + most_s
        while self.loop.time() < until:
            for link in list(self.links.values()):
                while link.inbox or link.outbox:
                    self.deliver(link)
            open_ones = [s for s in self.shards.values() if not s.done and not s.holder]
            for shard in open_ones:
                self.open(self.rng.choice(list(self.links.values())), shard)
            for backend in self.backends.values():
                for request in list(backend.requests):
                    self.end(request, answer(200))
            if self.is_over:
                break
            self.skip(0.1)

    def stop(self) -> None:
        """Nothing goes on."""
        for link in self.links.values():
            link.rest()
        self.loop.end_all_tasks()

    @property
    def is_over(self) -> bool:
        return not any(
            shard.holder or not (shard.done or key.batch_id in self.closed)
            for key, shard in self.shards.items()
        )

    def check_nothing_is_left(self) -> None:
        """Counters are at rest where nothing goes on."""
        self.skip(700.0)
        for link in self.links.values():
            while link.inbox or link.outbox:
                self.deliver(link)
        self.skip(1.0)
        for link in self.links.values():
            worker = link.worker
            assert worker._failure is None
            assert not link.task.done(), link.task
            assert not worker._shards.runs
            assert (worker._budget.held, worker._budget.unwritten) == (0, 0)
            assert not worker._failover._last, "verdicts that wait for nobody"
            assert not worker._failover._doubtful
            assert not worker._failover._looks
            assert not worker._shards.handing.unsaid
            for lane in worker._lanes.values():
                assert lane.in_flight == 0
                assert not lane.owes_permits
                assert not lane.runs, "shards that are over"
                assert not lane.held, "models that nobody has lines of"
                assert lane.rates is None or not lane.rates.remembered, (
                    "costs of lines that are over"
                )
        for backend in self.backends.values():
            assert not backend.requests
            assert backend.most <= backend.settings.max_in_flight
