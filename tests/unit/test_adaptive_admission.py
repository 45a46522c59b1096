"""Permits of a backend whose limit is learnt: who is told what, and never too much."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchline.domain.attempts import Outcome
from batchline.executor import messages as m
from batchline.executor.admission import Admission
from batchline.executor.contract import BackendSettings, Concurrency
from batchline.executor.engine_load import EngineLoad
from batchline.executor.search import FIRST

ONE = "one"
CEILING = 40


@dataclass(slots=True)
class Worker:
    """A worker's side: it obeys in order, and has as much in flight as it may."""

    permits: int = 0
    order: int = 0
    measure: int = 0
    in_flight: int = 0
    orders: list[m.SetPermits] = field(default_factory=list)


@dataclass(slots=True)
class Floor:
    """An admission and two workers. What is told arrives when the test says so."""

    ceiling: int = CEILING
    slowdown: float = 1.3
    now: float = 1_000.0
    told: list[tuple[str, m.ToWorker]] = field(default_factory=list)
    workers: dict[str, Worker] = field(default_factory=lambda: {"a": Worker(), "b": Worker()})
    admission: Admission = field(init=False)

    def __post_init__(self) -> None:
        self.admission = Admission(
            [
                BackendSettings(
                    name=ONE,
                    base_url="http://one/v1",
                    concurrency=Concurrency.ADAPTIVE,
                    min_in_flight=2,
                    max_in_flight=self.ceiling,
                    interactive_slowdown=self.slowdown,
                )
            ],
            tell=lambda worker, message: self.told.append((worker, message)),
            clock=lambda: self.now,
        )

    @property
    def limit(self) -> int:
        return self.admission.limits()[ONE]

    def want(self) -> None:
        for name in self.workers:
            self.admission.set_wanting(name, [ONE])
        self.settle()

    def deliver(self, *, fill: bool = True) -> None:
        """The workers hear what they were told; with `fill` they send as much as they may."""
        told, self.told = self.told, []
        for name, message in told:
            if not isinstance(message, m.SetPermits):
                continue
            worker = self.workers[name]
            worker.orders.append(message)
            worker.permits, worker.order = message.permits, message.order
            worker.measure = message.measure
            if fill:
                worker.in_flight = max(worker.in_flight, worker.permits)

    def give_back(self, name: str) -> None:
        """What is above the worker's share ends, and it says so."""
        worker = self.workers[name]
        worker.in_flight = min(worker.in_flight, worker.permits)
        answer = m.PermitsHeld(ONE, worker.permits, worker.order)
        self.admission.permits_held(name, answer)

    def settle(self) -> None:
        while self.told:
            self.deliver()
            for name in self.workers:
                self.give_back(name)

    def report(self, name: str, *, answers: int = 0, token_s: float = 0.02) -> None:
        worker = self.workers[name]
        self.admission.lane_report(
            name,
            m.LaneReport(
                backend=ONE,
                measure=worker.measure,
                order=worker.order,
                in_flight=worker.in_flight,
                limited=worker.in_flight >= worker.permits > 0,
                answers=answers,
                tokens=answers * 50,
                latency_s=answers * 51 * token_s,
            ),
        )

    def shed(self, name: str, *, trial: bool = False) -> None:
        self.admission.fault(
            name,
            m.BackendFault(
                ONE, Outcome.SHED.value, "status 429", None, trial, self.workers[name].in_flight
            ),
        )


@pytest.fixture
def floor() -> Floor:
    return Floor()


def test_the_search_begins_small_and_is_shared_evenly(floor: Floor) -> None:
    floor.want()
    assert floor.limit == FIRST
    assert [worker.permits for worker in floor.workers.values()] == [FIRST // 2] * 2


def test_a_new_level_is_told_to_all_and_answers_from_before_it_count_for_nothing(
    floor: Floor,
) -> None:
    floor.want()
    first = floor.workers["a"].measure
    floor.report("a", answers=10)
    assert floor.limit == 2 * FIRST  # few at once, and fast: it goes on
    assert floor.workers["a"].measure == first
    floor.report("b", answers=100)  # it has not heard of the level yet
    assert floor.limit == 2 * FIRST
    floor.settle()
    assert {worker.measure for worker in floor.workers.values()} == {first + 1}
    assert [worker.permits for worker in floor.workers.values()] == [FIRST] * 2


def test_a_worker_whose_share_stays_hears_of_the_level_too() -> None:
    floor = Floor(ceiling=FIRST + 1)
    floor.want()
    before = {name: worker.permits for name, worker in floor.workers.items()}
    floor.report("a", answers=10)
    assert floor.limit == FIRST + 1
    floor.settle()
    after = {name: worker.permits for name, worker in floor.workers.items()}
    assert sorted(after[name] - before[name] for name in after) == [0, 1]
    assert len({worker.measure for worker in floor.workers.values()}) == 1


def test_it_never_goes_past_the_ceiling(floor: Floor) -> None:
    floor.want()
    for _ in range(20):
        for name in floor.workers:
            floor.report(name, answers=100)
            floor.settle()
    assert floor.limit == CEILING


def test_what_a_backend_sheds_beside_what_it_takes_is_the_limit() -> None:
    floor = Floor(ceiling=64)
    floor.want()
    for _ in range(10):
        for name in floor.workers:
            floor.report(name, answers=100)
            floor.settle()
    assert floor.limit == 64
    for _ in range(12):  # of 64, twelve on each side are refused
        for name in floor.workers:
            floor.shed(name)
            floor.workers[name].in_flight -= 1
    assert floor.limit == int(0.95 * 40)


def test_a_trial_that_is_shed_says_nothing_of_the_limit(floor: Floor) -> None:
    floor.want()
    for _ in range(20):
        floor.report("a", answers=100)
        floor.settle()
    floor.shed("a")
    limit = floor.limit
    assert limit > 4
    floor.settle()
    for worker in floor.workers.values():
        worker.in_flight = 1
    floor.shed("a", trial=True)
    assert floor.limit == limit


def test_what_is_shed_by_a_backend_that_went_away_says_nothing_of_the_limit(floor: Floor) -> None:
    """A server that restarts behind a proxy: one connection is refused, and what was in flight is
    answered with a 503. If this fails, the limit falls to its floor and has to be learnt anew."""
    floor.want()
    for _ in range(20):
        floor.report("a", answers=100)
        floor.settle()
    limit = floor.limit
    assert limit > 4
    floor.admission.fault(
        "a", m.BackendFault(ONE, Outcome.NOT_SENT.value, "connection refused", None, trial=False)
    )
    for name in ("a", "b", "a", "b"):
        floor.shed(name)
    assert floor.limit == limit


def test_others_at_the_engine_are_made_room_for_and_what_is_ours_is_not_theirs() -> None:
    floor = Floor()
    floor.want()
    for _ in range(20):
        for name in floor.workers:
            floor.report(name, answers=100)
            floor.settle()
    assert floor.limit == CEILING

    def looks(others: int, number: int) -> None:
        for _ in range(number):
            floor.now += 0.5
            for name in floor.workers:
                floor.report(name)
            running = sum(worker.in_flight for worker in floor.workers.values()) + others
            floor.admission.engine_load(ONE, EngineLoad(running=running, waiting=0))
            floor.settle()

    looks(0, 4)
    assert floor.limit == CEILING
    looks(30, 1)
    assert floor.limit == CEILING - 30
    looks(30, 10)  # what we gave up is not taken for more of theirs
    assert floor.limit == CEILING - 30
    looks(500, 1)
    assert floor.limit == 2  # the floor
    looks(0, 4)
    assert floor.limit == CEILING


def test_without_a_slowdown_others_are_nobodys_business() -> None:
    floor = Floor(slowdown=0.0)
    floor.want()
    limit = floor.limit
    for _ in range(5):
        floor.now += 0.5
        floor.admission.engine_load(ONE, EngineLoad(running=500, waiting=0))
    assert floor.limit == limit


def test_a_page_whose_tokens_take_no_time_says_nothing() -> None:
    """If this fails, one page with nonsense on it ends the looks at all pages, for good."""
    floor = Floor(ceiling=8)
    floor.want()
    for look in range(10):
        floor.now += 0.5
        for name in floor.workers:
            floor.report(name)
        running = sum(worker.in_flight for worker in floor.workers.values())
        load = EngineLoad(running=running, waiting=0, gaps=look * 1e15, gap_s=look * 1e-300)
        floor.admission.engine_load(ONE, load)
        floor.settle()
    assert floor.limit == 8


def test_the_places_of_the_engine_are_the_ceiling() -> None:
    floor = Floor()
    floor.want()
    for _ in range(20):
        for name in floor.workers:
            floor.report(name, answers=100)
            floor.settle()
    assert floor.limit == CEILING
    floor.admission.set_places(ONE, 10)
    assert floor.limit == 10
    floor.settle()
    assert sum(worker.permits for worker in floor.workers.values()) == 10
    for _ in range(20):
        for name in floor.workers:
            floor.report(name, answers=100)
            floor.settle()
    assert floor.limit == 10
    floor.admission.set_places(ONE, 1)
    assert floor.limit == 2  # the floor
    floor.admission.set_places(ONE, None)
    for _ in range(60):
        floor.now += 1.0
        for name in floor.workers:
            floor.report(name, answers=100)
            floor.settle()
    assert floor.limit > 10


STEPS = ("report", "look", "shed", "deliver", "give_back", "leave", "come", "die", "places")


@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 100)), max_size=120))
def test_whatever_is_heard_and_whenever_no_more_is_in_flight_than_the_ceiling(
    steps: list[tuple[str, int]],
) -> None:
    floor = Floor()
    floor.want()
    chance = random.Random(str(steps))  # noqa: S311  # a test's dice
    for step, number in steps:
        name = chance.choice(sorted(floor.workers))
        floor.now += number / 100
        match step:
            case "report":
                floor.report(name, answers=number, token_s=chance.uniform(0.001, 0.1))
            case "look":
                load = EngineLoad(running=number, waiting=chance.randrange(3))
                floor.admission.engine_load(ONE, load)
            case "shed":
                floor.shed(name)
            case "deliver":
                floor.deliver()
            case "give_back":
                floor.give_back(name)
            case "leave":
                floor.admission.set_wanting(name, [])
            case "come":
                floor.admission.set_wanting(name, [ONE])
            case "places":
                floor.admission.set_places(ONE, number % (CEILING + 1) or None)
            case _:  # it dies
                floor.workers[name].in_flight = 0
                floor.admission.worker_gone(name)
                floor.told = [told for told in floor.told if told[0] != name]
                floor.workers[name].permits = floor.workers[name].order = 0
        assert 2 <= floor.limit <= CEILING
        assert sum(worker.in_flight for worker in floor.workers.values()) <= CEILING
