"""Permits: whatever is on its way, the workers together may use no more than the limit."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from batchline.executor.permits import PermitPool

WORKERS = ("a", "b", "c")
ORDERS = ("want", "leave", "rebalance", "pass on", "obey", "send", "end", "hear", "die")


@dataclass(slots=True)
class Worker:
    """A worker's side: it obeys in order, and answers once no more is in flight than it may.

    `inbox` and `outbox` are the two directions of its socket; what is in them is on its way.
    """

    inbox: deque[tuple[int, int]] = field(default_factory=deque)  # permits, number of the order
    outbox: deque[tuple[int, int]] = field(default_factory=deque)
    permits: int = 0
    order: int = 0
    in_flight: int = 0
    owes: bool = False

    @property
    def may_use(self) -> int:
        return max(self.permits, self.in_flight)

    def obey(self) -> None:
        if self.inbox:
            (self.permits, self.order), self.owes = self.inbox.popleft(), True
            self._answer()

    def send(self) -> None:
        self.in_flight = max(self.permits, self.in_flight)

    def end(self) -> None:
        self.in_flight = max(0, self.in_flight - 1)
        self._answer()

    def _answer(self) -> None:
        if self.owes and self.in_flight <= self.permits:
            self.owes = False
            self.outbox.append((self.permits, self.order))


class World:
    """A pool, its workers and everything that is on its way between them."""

    def __init__(self, limit: int, names: Sequence[str] = WORKERS) -> None:
        self.pool = PermitPool(limit)
        self.workers = {name: Worker() for name in names}
        self.wanting: set[str] = set()

    def rebalance(self) -> None:
        self.tell(self.pool.rebalance(self.wanting))

    def pass_on(self) -> None:
        self.tell(self.pool.pass_on(self.wanting))

    def tell(self, orders: Mapping[str, int]) -> None:
        for name, permits in orders.items():
            self.workers[name].inbox.append((permits, self.pool.orders[name]))

    def do(self, order: str, name: str) -> None:
        worker = self.workers[name]
        match order:
            case "want":
                self.wanting.add(name)
                self.rebalance()
            case "leave":
                self.wanting.discard(name)
                self.rebalance()
            case "rebalance":
                self.rebalance()
            case "pass on":
                self.pass_on()
            case "obey":
                worker.obey()
            case "send":
                worker.send()
            case "end":
                worker.end()
            case "hear":
                self.hear(name)
            case _:  # its successor has the same name here, to make mixing them up possible
                self.workers[name] = Worker()
                self.wanting.discard(name)
                self.pool.gone(name)
                self.rebalance()

    def hear(self, name: str) -> None:
        if self.workers[name].outbox:
            permits, order = self.workers[name].outbox.popleft()
            self.pool.given_back(name, permits, order=order)
            self.rebalance()

    def come_to_rest(self, *, but: Collection[str] = ()) -> None:
        """Every request ends, except for those of some workers, and every message arrives."""
        self.rebalance()
        others = {name: one for name, one in self.workers.items() if name not in but}
        while any(w.inbox or w.outbox or w.in_flight for w in others.values()):
            for name, worker in others.items():
                worker.obey()
                while worker.in_flight:
                    worker.end()
                self.hear(name)
        for name in but:
            self.workers[name].obey()

    def having(self) -> set[str]:
        return {name for name, worker in self.workers.items() if worker.permits}

    @property
    def may_be_used(self) -> int:
        return sum(worker.may_use for worker in self.workers.values())


@settings(deadline=None)  # a shared machine may stop for longer than an example takes
@example(
    limit=2,
    orders=[
        *[("want", "a"), ("obey", "a"), ("send", "a"), ("hear", "a")],
        # Down to one, up to two, down to one: the answer to the first is not one to the last.
        *[("want", "b"), ("leave", "b"), ("want", "b"), ("obey", "a"), ("end", "a"), ("hear", "a")],
        *[("obey", "b"), ("obey", "b"), ("obey", "b"), ("obey", "a")],
    ],
)
@given(
    limit=st.integers(1, 9),
    orders=st.lists(
        st.tuples(st.sampled_from(ORDERS), st.sampled_from(WORKERS)), min_size=1, max_size=60
    ),
)
def test_the_workers_together_never_hold_more_than_the_limit_and_share_it_in_the_end(
    limit: int, orders: Sequence[tuple[str, str]]
) -> None:
    """If this fails, `max_in_flight` does not hold for a moment, or permits were lost for good."""
    world = World(limit)
    for order, name in orders:
        world.do(order, name)
        assert world.may_be_used <= limit
    world.come_to_rest()
    shares = {name: world.workers[name].permits for name in world.wanting}
    assert sum(shares.values()) == (limit if shares else 0)
    assert not shares or max(shares.values()) - min(shares.values()) <= 1
    assert world.may_be_used <= limit


def test_a_limit_is_split_evenly_and_the_rest_goes_to_the_first() -> None:
    assert PermitPool(8).rebalance(["b", "a", "c"]) == {"a": 3, "b": 3, "c": 2}


def test_with_more_workers_than_permits_some_have_none() -> None:
    assert PermitPool(2).rebalance(["a", "b", "c"]) == {"a": 1, "b": 1}


def test_too_few_permits_go_round_after_a_turn_each() -> None:
    world = World(2)
    had = []
    for name in WORKERS:
        world.do("want", name)
    for _ in range(7):
        world.come_to_rest()
        had.append(world.having())
        world.pass_on()
    # A turn is whole when it has seen two of these, and the first of the three was none.
    assert had == [
        {"a", "b"},
        {"a", "b"},
        {"b", "c"},
        {"a", "c"},
        {"a", "b"},
        {"b", "c"},
        {"a", "c"},
    ]


@pytest.mark.parametrize(("limit", "workers"), [(1, 2), (1, 5), (2, 5), (3, 4), (4, 5)])
def test_turns_are_of_one_length_for_all(limit: int, workers: int) -> None:
    names = "abcde"[:workers]
    world = World(limit, names)
    turns: Counter[str] = Counter()
    for name in names:
        world.do("want", name)
    for _ in range(60 * workers):
        world.come_to_rest()
        turns.update(world.having())
        assert len(world.having()) == limit
        world.pass_on()
    had = [turns[name] for name in names]
    assert max(had) - min(had) <= 4


def test_a_long_request_holds_up_its_own_permit_and_no_other() -> None:
    """If this fails, one answer that takes an hour gives the other permit to one worker for it."""
    names = "abcd"
    world = World(2, names)
    turns: Counter[str] = Counter()
    for name in names:
        world.do("want", name)
    world.come_to_rest()
    assert "a" in world.having()
    world.do("send", "a")
    for _ in range(60):
        world.pass_on()
        world.come_to_rest(but="a")
        assert world.may_be_used <= 2
        assert len(world.having() - {"a"}) == 1  # nothing is idle
        turns.update(world.having() - {"a"})
    assert min(turns[name] for name in "bcd") >= 15


def test_who_has_none_is_first_when_a_long_request_ends() -> None:
    world = World(1, "ab")
    world.do("want", "a")
    world.come_to_rest()
    world.do("send", "a")
    world.do("want", "b")
    world.do("obey", "a")
    for _ in range(5):
        world.pass_on()
        world.do("obey", "a")
    assert world.having() == set()
    world.come_to_rest()
    assert world.having() == {"b"}


def test_enough_permits_stay_where_they_are() -> None:
    world = World(3)
    for name in WORKERS:
        world.do("want", name)
    for _ in range(3):
        world.come_to_rest()
        assert not world.pool.pass_on(WORKERS)


def test_nothing_is_told_twice() -> None:
    pool = PermitPool(8)
    assert pool.rebalance(["a"]) == {"a": 8}
    assert pool.rebalance(["a"]) == {}


def test_a_newcomer_gets_only_what_was_given_back() -> None:
    pool = PermitPool(8)
    pool.rebalance(["a"])
    pool.given_back("a", 8, order=pool.orders["a"])
    assert pool.rebalance(["a", "b"]) == {"a": 4}
    assert pool.rebalance(["a", "b"]) == {}
    pool.given_back("a", 4, order=pool.orders["a"])
    assert pool.rebalance(["a", "b"]) == {"b": 4}


def test_a_share_that_was_lowered_and_raised_again_is_counted_once() -> None:
    pool = PermitPool(8)
    pool.rebalance(["a"])
    pool.given_back("a", 8, order=pool.orders["a"])
    assert pool.rebalance(["a", "b"]) == {"a": 4}
    pool.rebalance(["a"])
    assert sum(pool.held.values()) == 8


@pytest.mark.parametrize("gave_back", [False, True])
def test_the_permits_of_a_dead_worker_are_free(gave_back: bool) -> None:
    pool = PermitPool(8)
    pool.rebalance(["a"])
    pool.given_back("a", 8, order=pool.orders["a"])
    pool.rebalance(["a", "b"])
    if gave_back:
        pool.given_back("a", 4, order=pool.orders["a"])
    pool.gone("a")
    pool.gone("never-had-any")
    assert pool.rebalance(["b"]) == {"b": 8}


def test_who_wants_no_more_keeps_its_permits_until_it_gave_them_back() -> None:
    pool = PermitPool(8)
    pool.rebalance(["a"])
    pool.given_back("a", 8, order=pool.orders["a"])
    assert pool.rebalance([]) == {"a": 0}
    assert pool.rebalance(["b"]) == {}
    pool.given_back("a", 0, order=pool.orders["a"])
    assert pool.rebalance(["b"]) == {"b": 8}


def test_who_can_use_one_permit_only_gets_one_and_first() -> None:
    pool = PermitPool(8)
    assert pool.rebalance(["a", "q", "b"], single=["q"]) == {"q": 1, "a": 4, "b": 3}


def test_who_can_use_one_permit_only_takes_turns_where_there_is_not_one_for_each() -> None:
    """If this fails, a suspect line of one batch holds up all others for as long as it runs."""
    pool = PermitPool(1)
    assert pool.rebalance(["a", "q"], single=["q"]) == {"a": 1}
    pool.given_back("a", 1, order=pool.orders["a"])
    assert pool.pass_on(["a", "q"]) == {}
    assert pool.pass_on(["a", "q"]) == {"a": 0}
    pool.given_back("a", 0, order=pool.orders["a"])
    assert pool.rebalance(["a", "q"], single=["q"]) == {"q": 1}
