"""A control process, its workers and a hosted account in virtual time.

The desk, the lanes and the meters are the product's own; sockets, files and processes are left out.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

from batchline.domain import bitmap, plan
from batchline.domain.attempts import Outcome
from batchline.domain.ids import BatchId
from batchline.domain.lines import RequestLine
from batchline.domain.model import Shard, ShardKey, Usage
from batchline.executor import messages as m
from batchline.executor.admission import Admission
from batchline.executor.contract import BackendSettings, ShardWork
from batchline.executor.lane import Lane
from batchline.executor.line import Line
from batchline.executor.local import GRANT_S, TICK_S
from batchline.executor.rate_headers import told_in
from batchline.executor.rate_meter import RateMeter
from batchline.executor.shard_run import ShardRun
from bench.nowhere import Nowhere
from bench.rated_account import MINUTE_S, Account, Counted

BACKEND: Final = "hosted"
MESSAGE_S: Final = 0.001  # between processes
LATE_S: Final = 0.002  # on average, by which a tick comes late
NETWORK_S: Final = 0.02
PERMITS: Final = 256  # more than any shape can use
SHARD: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One situation. `tokens` gives the real tokens of the nth line, `bytes_a_token` how long its
    request is for each. `known`: the limits are in the settings. `huge` lines take that share of
    the token allowance, `huge_every` so many lines. `other` is a share of the account that somebody
    else uses, in bursts of five seconds. `answers_s`: the backend takes between these."""

    what: str
    requests: int | None = None
    tokens: int | None = None
    of_a_line: tuple[int, int] = (150, 450)
    bytes_a_token: float = 4.0
    counts: float = 1.0  # times what an answer then says that it used: by `max_tokens`, say
    known: bool = True
    tells: bool = True
    workers: int = 1
    huge: float = 0.0
    huge_every: int = 500
    other: float = 0.0
    restarts: bool = False
    window: str = "bucket"
    answers_s: tuple[float, float] = (2.0, 8.0)
    times: int = 1  # as long as the others: what is rare must happen often
    judged: bool = True


class Clock:
    """Virtual time: what is due, in order."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def later(self, delay_s: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._due, (self.now + delay_s, next(self._numbers), call))

    def run_until(self, instant: float) -> None:
        while self._due and self._due[0][0] <= instant:
            self.now, _, call = heapq.heappop(self._due)
            call()
        self.now = instant


@dataclass(slots=True)
class Job:
    """The lines: what each costs, drawn once."""

    shape: Shape
    random: random.Random = field(default_factory=lambda: random.Random(1))  # noqa: S311
    costs: list[int] = field(default_factory=list)

    def tokens(self, number: int) -> int:
        while len(self.costs) <= number:
            least, most = self.shape.of_a_line
            cost = self.random.randint(least, most)
            if self.shape.huge and len(self.costs) % self.shape.huge_every == 100:
                cost = round(self.shape.huge * (self.shape.tokens or 0.0))
            self.costs.append(cost)
        return self.costs[number]


class Worker:
    """A worker without sockets and files: a real lane and a real meter."""

    def __init__(self, name: str, world: World) -> None:
        self.name = name
        self._world = world
        self.lane = Lane(BACKEND, Nowhere())
        self.meter = RateMeter(
            BACKEND,
            send=self._send,
            read=self._read,
            clock=lambda: world.clock.now,
            later=world.clock.later,
        )
        self.is_dead = False
        if world.shape.known:
            self._metered()

    def _metered(self) -> None:
        if self.lane.rates is None:
            self.lane.rates = self.meter
            if self._world.shape.known:
                shape = self._world.shape
                self.meter.set_rates(
                    m.SetRates(BACKEND, requests=bool(shape.requests), tokens=shape.tokens)
                )

    def _send(self, message: m.ToControl) -> None:
        self._world.clock.later(MESSAGE_S, lambda: self._world.hear(self, message))

    def _read(self, line: Line) -> RequestLine:
        tokens = self._world.job.tokens(line.line_number)
        # The prompt is all of it: `max_tokens` of 1 makes the guess one of bytes.
        size = max(0, round(tokens * self._world.shape.bytes_a_token) - 16)
        return RequestLine(b'""', b'{"max_tokens":1}' + b" " * size)

    def obey(self, message: m.ToWorker) -> None:
        if self.is_dead:
            return
        match message:
            case m.SetPermits(permits=permits, order=order):
                self.lane.permits = permits
                self._send(m.PermitsHeld(BACKEND, permits, order))
            case m.SetCircuit(admitting=admitting, trials=trials):
                self.lane.set_circuit(admitting=admitting, trials=trials)
            case m.SetRates():
                self._metered()
                self.meter.set_rates(message)
            case m.Grant():
                self.meter.granted(message)
            case _:
                raise TypeError(message)
        self.pump()

    def pump(self) -> None:
        while not self.is_dead:
            if not any(run.has_line for run in self.lane.runs):
                self.lane.runs.add(self._world.shard())
            line = self.lane.take()
            if line is None:
                return
            line.begin(BACKEND)
            self._world.clock.later(NETWORK_S, partial(self._arrive, line))

    def _arrive(self, line: Line) -> None:
        if self.is_dead:
            return
        world = self._world
        line.admit()
        tokens = world.job.tokens(line.line_number)
        counted = tokens * world.shape.counts
        let_through, headers = world.account.asks(counted, world.clock.now)
        takes_s = world.random.uniform(*world.shape.answers_s) if let_through else 0.0
        world.clock.later(
            NETWORK_S + takes_s, lambda: self._answered(line, tokens, headers, let_through)
        )

    def _answered(
        self, line: Line, tokens: int, headers: dict[str, str], let_through: bool
    ) -> None:
        if self.is_dead:
            return
        if told_in(headers):
            self._metered()
            self.meter.heard(line, headers)
        run = line.run
        usage = Usage(input_tokens=tokens - 1, output_tokens=1, total_tokens=tokens)
        if let_through:
            self.meter.ended(line, Outcome.ANSWERED, usage)
            run.in_flight.discard(line)
        else:
            self._refused(line, headers)
        self.meter.over(line, written=True)
        if line.trial and let_through:
            self._send(m.TrialOver(BACKEND, worked=True))
        self.lane.ended(line, answered=let_through)
        self.pump()

    def _refused(self, line: Line, headers: dict[str, str]) -> None:
        self.meter.ended(line, Outcome.SHED, None)
        asked_s = float(headers["retry-after"])
        run = line.run
        if not self.meter.counts:
            run.in_flight.discard(line)
            run.returned.append(line)
            self.lane.fault()
            self._send(
                m.BackendFault(BACKEND, "shed", "status 429", asked_s, trial=line.trial is not None)
            )
            return
        wait_s = self.meter.refused(line, asked_s, self._world.random.random())
        run.in_flight.discard(line)
        if wait_s is None:
            self._world.given_up += 1
            return

        def due() -> None:
            run.waiting.pop(line)
            run.returned.append(line)
            self.lane.runs.add(run)
            self.pump()

        run.waiting[line] = None  # type: ignore[assignment]  # no timer that would be cancelled
        self._world.clock.later(wait_s, due)


class World:
    """One shape, from its start."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.clock = Clock()
        self.random = random.Random(7)  # noqa: S311
        self.job = Job(shape)
        self.account = Account(
            Counted(shape.requests, shape.window) if shape.requests else None,
            Counted(shape.tokens, shape.window) if shape.tokens else None,
            tells=shape.tells,
        )
        self.given_up = 0
        self.others = 0.0
        self._shards = 0
        self._start()
        self.clock.later(0.0, self._tick)
        if shape.other:
            self.clock.later(0.0, self._somebody_else)

    def _start(self) -> None:
        """A server starts: nothing is known of what was spent before."""
        settings = BackendSettings(
            name=BACKEND,
            base_url="http://hosted/v1",
            max_in_flight=PERMITS,
        )
        if self.shape.known:
            settings = replace(
                settings,
                requests_per_minute=self.shape.requests,
                tokens_per_minute=self.shape.tokens,
            )
        self.admission = Admission([settings], tell=self._tell, clock=lambda: self.clock.now)
        self.workers = {f"w{n}": Worker(f"w{n}", self) for n in range(self.shape.workers)}
        for worker in self.workers:
            self.admission.set_wanting(worker, [BACKEND])

    def restart(self) -> None:
        """Everything dies, with what is in flight, and begins anew."""
        for worker in self.workers.values():
            worker.is_dead = True
        self._start()

    def _tell(self, worker: str, message: m.ToWorker) -> None:
        self.clock.later(MESSAGE_S, lambda: self._workers_obey(worker, message))

    def _workers_obey(self, worker: str, message: m.ToWorker) -> None:
        self.workers[worker].obey(message)

    def hear(self, worker: Worker, message: m.ToControl) -> None:
        if worker.is_dead:
            return
        match message:
            case m.AskRates():
                self.admission.rates_asked(worker.name, message)
            case m.RatesHeard():
                self.admission.rates_heard(message)
            case m.BackendFault():
                self.admission.fault(worker.name, message)
            case m.TrialOver():
                self.admission.trial_over(worker.name, message)
            case m.PermitsHeld():
                self.admission.permits_held(worker.name, message)
            case _:
                raise TypeError(message)

    def _tick(self) -> None:
        self.admission.tick()
        pause_s = min(TICK_S, max(self.admission.due_s(), GRANT_S))
        late_s = self.random.expovariate(1 / LATE_S)
        self.clock.later(pause_s + late_s, self._tick)

    def _somebody_else(self) -> None:
        """Takes its share of five seconds within one, if it is there; it asks for no more."""
        tokens = 300.0
        account = self.account
        each_s = [MINUTE_S / account.requests.limit] if account.requests else []
        each_s += [MINUTE_S * tokens / account.tokens.limit] if account.tokens else []
        for number in range(round(5.0 * self.shape.other / max(each_s))):
            self.clock.later(number * max(each_s) * 0.2 / self.shape.other, self._others_request)
        self.clock.later(5.0, self._somebody_else)

    def _others_request(self) -> None:
        refused = self.account.refused
        if not self.account.asks(300.0, self.clock.now)[0]:
            self.others += 1
            self.account.refused = refused

    def shard(self) -> ShardRun:
        first = self._shards * SHARD
        self._shards += 1
        work = ShardWork(
            shard=Shard(
                key=ShardKey(batch_id=BatchId("batch_" + "0" * 32), number=self._shards),
                first_entry=0,
                entries=SHARD,
                model="m",
                epoch=1,
                settled=bytes(bitmap.empty(SHARD)),
            ),
            endpoint="/v1/chat/completions",
            input_path="unused",
            plan_path="unused",
            backends=[BACKEND],
        )
        entries = b"".join(plan.ENTRY.pack(0, 1, first + n, 0) for n in range(SHARD))
        return ShardRun.open(work, input_fd=-1, entries=entries)
