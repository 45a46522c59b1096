"""A batch on a simulated engine, steered by the real admission, in virtual time.

What is real: `Admission` with its permits, circuits and limiter, and the workers' `Lane` and
`LevelMeter`. What is simulated: the engine, the clock, and a worker's loop, which takes lines from
its lane and hands answers back. Messages arrive at once; a refusal takes as long as one does on a
network.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, cast

from batchline.domain.attempts import Outcome
from batchline.domain.model import Usage
from batchline.executor import messages as m
from batchline.executor.admission import Admission
from batchline.executor.contract import BackendSettings, Concurrency
from batchline.executor.lane import Lane
from batchline.executor.level_meter import REPORT_S, LevelMeter
from batchline.executor.line import Line, Trial
from batchline.executor.load_watch import LOOK_S
from batchline.executor.local import TICK_S
from batchline.executor.transport.contract import Transport
from batchline.executor.turns import Turns
from bench.engines import Asked, Engine, EngineShape

BACKEND: Final = "simulated"
CEILING: Final = 1024
_REFUSAL_S: Final = 0.005


@dataclass(slots=True, eq=False)
class _Line:
    trial: Trial | None = None
    began: float = 0.0


class _Endless:
    """A batch that never runs out of lines."""

    def next_line(self) -> _Line:
        return _Line()


class _Worker:
    """As much of `worker.Worker` as has to do with how many lines go."""

    def __init__(self, name: str, play: Play) -> None:
        self.name = name
        self._play = play
        self.lane = Lane(
            BACKEND, cast("Transport", None), meter=LevelMeter(lambda: play.engine.now)
        )
        self.lane.runs = cast("Turns", _Endless())

    def hear(self, message: m.ToWorker) -> None:
        lane = self.lane
        if isinstance(message, m.SetPermits):
            lane.permits, lane.permits_order = message.permits, message.order
            lane.owes_permits = True
            if lane.meter is not None:
                lane.meter.begin_anew(message.measure)
            self._settle()
        elif isinstance(message, m.SetCircuit):
            lane.set_circuit(admitting=message.admitting, trials=message.trials)
        self.pump()

    def pump(self) -> None:
        while (line := self.lane.take()) is not None:
            asked = self._play.submit(self)
            if asked is None:
                self._play.later(_REFUSAL_S, partial(self._refused, line))
            else:
                self._play.under_way[asked] = (self, line)

    def answered(self, line: Line, asked: Asked) -> None:
        if self.lane.meter is not None:
            self.lane.meter.answered(line.began, Usage(output_tokens=asked.tokens))
        if line.trial:
            self._play.tell_control(self, m.TrialOver(BACKEND, worked=True))
        self.lane.ended(line, answered=True)
        self._settle()
        self.pump()

    def _refused(self, line: Line) -> None:
        self.lane.fault()
        fault = m.BackendFault(
            BACKEND,
            Outcome.SHED.value,
            "status 429",
            None,
            line.trial is not None,
            self.lane.in_flight,
        )
        self._play.tell_control(self, fault)
        self.lane.ended(line, answered=False)
        self._settle()

    def report(self) -> None:
        if (report := self.lane.report()) is not None:
            self._play.tell_control(self, report)

    def _settle(self) -> None:
        lane = self.lane
        if lane.owes_permits and lane.in_flight <= lane.permits:
            lane.owes_permits = False
            held = m.PermitsHeld(BACKEND, lane.permits, lane.permits_order)
            self._play.tell_control(self, held)


@dataclass(slots=True)
class Moment:
    """What was so at an instant."""

    at: float
    limit: int
    in_flight: int
    of_workers: tuple[int, ...]
    in_hand: int  # at the engine, others' too


@dataclass(slots=True, kw_only=True)
class Play:
    """A run. `at` schedules what else happens, such as other traffic."""

    shape: EngineShape
    seed: int = 1
    workers: int = 2
    floor: int = 1
    ceiling: int = CEILING
    fixed: bool = False  # then at `ceiling`
    slowdown: float = 1.3
    priority: int = 0
    tokens: float | None = None  # of an answer of the batch, where not the shape's
    moments: list[Moment] = field(default_factory=list)
    ended: list[Asked] = field(default_factory=list)
    refused: int = 0
    most_in_flight: int = 0
    engine: Engine = field(init=False)
    under_way: dict[Asked, tuple[_Worker, Line]] = field(default_factory=dict)
    _admission: Admission = field(init=False)
    _crew: list[_Worker] = field(default_factory=list)
    _due: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _number: int = 0
    _mail: deque[Callable[[], None]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.engine = Engine(self.shape, seed=self.seed)
        backend = BackendSettings(
            name=BACKEND,
            base_url="http://simulated/v1",
            concurrency=Concurrency.FIXED if self.fixed else Concurrency.ADAPTIVE,
            min_in_flight=self.floor,
            max_in_flight=self.ceiling,
            interactive_slowdown=self.slowdown,
        )
        self._admission = Admission(
            [backend],
            tell=self._tell_worker,
            clock=lambda: self.engine.now,
            chance=random.Random(f"{self.seed} circuit"),  # noqa: S311  # no secret
        )
        self._crew = [_Worker(f"w{n}", self) for n in range(self.workers)]
        self._every(TICK_S, self._admission.tick)
        self._every(REPORT_S, self._report)
        self._every(LOOK_S, self._look)

    def run(self, until: float) -> None:
        """Play on until then."""
        if not self.moments:
            for worker in self._crew:
                self._admission.set_wanting(worker.name, [BACKEND])
            self._deliver()
        while self.engine.now < until:
            next_at = min(self._due[0][0] if self._due else math.inf, until)
            asked = self.engine.advance(max(next_at, self.engine.now))
            if asked is not None:
                self.ended.append(asked)
                if asked in self.under_way:
                    worker, line = self.under_way.pop(asked)
                    worker.answered(line, asked)
            else:
                while self._due and self._due[0][0] <= self.engine.now:
                    heapq.heappop(self._due)[2]()
            self._deliver()

    # -- what the world does ---------------------------------------------------------------

    def later(self, delay_s: float, what: Callable[[], None]) -> None:
        """Do it `delay_s` from now."""
        self._number += 1
        heapq.heappush(self._due, (self.engine.now + delay_s, self._number, what))

    def submit(self, worker: _Worker) -> Asked | None:  # noqa: ARG002  # whose it is matters to nobody there
        asked = self.engine.submit("batch", tokens=self.tokens, priority=self.priority)
        self.refused += asked is None
        in_flight = sum(one.lane.in_flight for one in self._crew)
        self.most_in_flight = max(self.most_in_flight, in_flight)
        return asked

    def tell_control(self, worker: _Worker, message: m.ToControl) -> None:
        match message:
            case m.PermitsHeld():
                self._mail.append(partial(self._admission.permits_held, worker.name, message))
            case m.BackendFault():
                self._mail.append(partial(self._admission.fault, worker.name, message))
            case m.TrialOver():
                self._mail.append(partial(self._admission.trial_over, worker.name, message))
            case m.LaneReport():
                self._mail.append(partial(self._admission.lane_report, worker.name, message))
            case _:
                raise ValueError(message)

    def _tell_worker(self, name: str, message: m.ToWorker) -> None:
        (worker,) = (one for one in self._crew if one.name == name)
        self._mail.append(partial(worker.hear, message))

    def _deliver(self) -> None:
        while self._mail:
            self._mail.popleft()()

    def _every(self, period_s: float, what: Callable[[], None]) -> None:
        def do() -> None:
            what()
            self.later(period_s, do)

        self.later(period_s, do)

    def _report(self) -> None:
        for worker in self._crew:
            worker.report()
        shares = tuple(worker.lane.in_flight for worker in self._crew)
        limit = self._admission.limits()[BACKEND]
        self.moments.append(
            Moment(self.engine.now, limit, sum(shares), shares, self.engine.in_hand)
        )

    def _look(self) -> None:
        load = self.engine.page()
        if load is not None:
            self._admission.engine_load(BACKEND, load)

    # -- what came of it -------------------------------------------------------------------

    def limits(self, start: float, stop: float = math.inf) -> list[int]:
        """The limit at each report of that time."""
        return [one.limit for one in self.moments if start <= one.at < stop]

    def rate(self, start: float, stop: float, who: str = "batch") -> float:
        """Tokens a second of the answers that ended in this time."""
        tokens = sum(a.tokens for a in self.ended if a.who == who and start <= a.ended < stop)
        return tokens / (stop - start)

    def latencies(self, start: float, stop: float, who: str) -> Sequence[float]:
        """Of the requests that came in this time."""
        return [a.latency_s for a in self.ended if a.who == who and start <= a.began < stop]
