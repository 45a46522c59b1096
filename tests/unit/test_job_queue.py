"""Which job runs next: shares of projects, small beside large, nobody waits for ever."""

from __future__ import annotations

import math
import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from batchline.domain.job_queue import (
    BESIDE,
    FAR_SMALLER,
    LEAST_WORK,
    JobQueue,
    JobTerms,
    _Place,
    hurried_at,
)

MIB = 1024.0 * 1024.0
NOW = 1_000.0


class Queue:
    """A queue whose jobs have names."""

    def __init__(self, places: int = 1) -> None:
        self.queue = JobQueue(places=places)
        self.names: dict[int, str] = {}
        self.tickets: dict[str, int] = {}

    def enter(
        self,
        name: str,
        mib: float,
        project: str = "a",
        *,
        weight: float = 1.0,
        urgent: bool = False,
        hurried: float = math.inf,
    ) -> None:
        terms = JobTerms(
            project=project, weight=weight, work=mib * MIB, urgent=urgent, hurried_at=hurried
        )
        ticket = self.queue.enter(terms)
        self.names[ticket], self.tickets[name] = name, ticket

    def begin(self, now: float = NOW) -> list[str]:
        """Everything that may begin now, in order."""
        begun = []
        while (ticket := self.queue.begin_next(now)) is not None:
            begun.append(self.names[ticket])
        return begun

    def over(self, name: str) -> None:
        self.queue.leave(self.tickets[name])

    def one_by_one(self) -> list[str]:
        """All that waits, in the order in which it begins when each ends before the next."""
        order: list[str] = []
        while begun := self.begin():
            order += begun
            for name in begun:
                self.over(name)
        return order


def test_a_project_with_many_large_files_waits_for_itself() -> None:
    it = Queue()
    for number in range(50):
        it.enter(f"large{number}", 200, "many")
    it.enter("small", 1, "other")
    it.enter("large", 200, "third")
    assert it.one_by_one()[:3] == ["large0", "small", "large"]


def test_projects_share_by_work_and_weight_and_not_by_jobs() -> None:
    it = Queue()
    for number in range(400):
        it.enter(f"heavy{number}", 8, "heavy", weight=3.0)
        it.enter(f"small{number}", 2, "light")
    done: Counter[str] = Counter()
    for name in it.one_by_one()[:300]:
        done[name[:5]] += 8 if name.startswith("heavy") else 2
    assert abs(done["heavy"] / 3 - done["small"]) <= 8


def test_whoever_comes_later_gets_its_share_from_then_on_and_nothing_for_before() -> None:
    it = Queue()
    for number in range(40):
        it.enter(f"a{number}", 10, "a")
    for _ in range(10):
        (name,) = it.begin()
        it.over(name)
    for number in range(10):
        it.enter(f"b{number}", 10, "b")
    assert Counter(name[0] for name in it.one_by_one()[:20]) == {"a": 10, "b": 10}


def test_a_small_job_of_a_project_goes_before_its_large_ones_that_wait() -> None:
    it = Queue()
    for number in range(5):
        it.enter(f"large{number}", 100)
    it.enter("small", 50)
    assert it.one_by_one()[:2] == ["small", "large0"]


def test_a_large_job_waits_for_a_bounded_number_of_small_ones() -> None:
    it = Queue()
    it.enter("large", 100)
    it.enter("small0", 10)
    waited = 0
    while "large" not in (begun := it.begin()):
        waited += 1
        it.enter(f"small{waited}", 10)  # there is always one that waits
        it.over(begun[0])
        assert waited < 30
    # The two share: the large one is through when as much went to either.
    assert waited >= 10


def test_equal_jobs_go_by_their_deadline_and_a_hurried_one_before_all_of_its_project() -> None:
    it = Queue()
    it.enter("later", 10, hurried=NOW + 2)
    it.enter("sooner", 10, hurried=NOW + 1)
    it.enter("hurried", 500, hurried=NOW)
    assert it.one_by_one() == ["hurried", "sooner", "later"]
    assert hurried_at(created_at=1_000, expires_at=1_400) == 1_300.0


def test_a_hurried_job_takes_nothing_from_another_project() -> None:
    it = Queue()
    it.enter("first", 100, "hasty")
    for number in range(3):
        it.enter(f"hasty{number}", 100, "hasty", hurried=NOW)
    it.enter("patient", 100, "patient")
    assert it.one_by_one()[:2] == ["hasty0", "patient"]


def test_a_small_job_runs_beside_large_ones_and_an_equal_one_waits() -> None:
    it = Queue(places=2)
    for name in ("one", "two", "three"):
        it.enter(name, 200)
    assert it.begin() == ["one", "two"]
    it.enter("less", 200 / FAR_SMALLER + 1, "b")
    assert it.begin() == []
    it.enter("small", 200 / FAR_SMALLER, "c")
    assert it.begin() == ["small"]
    it.over("one")
    assert it.begin() == ["less"]  # its project has had nothing yet


def test_beside_a_middling_job_there_is_still_a_place_for_a_small_one() -> None:
    assert BESIDE == 2
    it = Queue(places=1)
    it.enter("huge", 10_000)
    assert it.begin() == ["huge"]
    it.enter("middling", 1_000)
    assert it.begin() == ["middling"]
    it.enter("small", 10)
    it.enter("small2", 10)
    assert it.begin() == ["small"]
    it.over("small")
    assert it.begin() == ["small2"]


def test_among_those_that_fit_beside_projects_take_turns() -> None:
    it = Queue(places=1)
    it.enter("huge", 1_000, "a")
    assert it.begin() == ["huge"]
    for number in range(3):
        it.enter(f"a{number}", 10, "a")
        it.enter(f"b{number}", 10, "b")
    order = []
    for _ in range(6):
        (name,) = it.begin()
        order.append(name)
        it.over(name)
    assert order == ["b0", "b1", "b2", "a0", "a1", "a2"]  # a has had the huge one


def test_an_urgent_job_waits_for_none_that_is_not() -> None:
    it = Queue(places=2)
    for number in range(4):
        it.enter(f"v{number}", 100)
    assert it.begin() == ["v0", "v1"]
    it.enter("end0", 100, "b", urgent=True)
    it.enter("end1", 100, "b", urgent=True)
    assert it.begin() == ["end0"]
    it.over("v0")
    assert it.begin() == ["v2"]  # the second end does not take what validations wait for
    it.over("end0")
    assert it.begin() == ["end1"]


def test_urgent_jobs_use_what_is_free_and_small_ones_of_them_run_beside() -> None:
    it = Queue(places=1)
    for number in range(3):
        it.enter(f"end{number}", 1_000, "a", urgent=True)
    assert it.begin() == ["end0", "end1"]
    it.enter("small", 1, "b", urgent=True)
    assert it.begin() == ["small"]


def test_the_ends_of_one_projects_batches_do_not_hold_up_anothers() -> None:
    it = Queue(places=1)
    it.enter("validation", 100, "c")
    it.begin()
    for number in range(20):
        it.enter(f"a{number}", 100, "a", urgent=True)
    it.enter("b", 100, "b", urgent=True)
    assert it.begin() == ["a0"]
    it.over("a0")
    assert it.begin() == ["b"]


def test_a_job_that_gives_up_waiting_is_passed_over() -> None:
    it = Queue()
    for name in ("one", "two", "three"):
        it.enter(name, 10)
    assert it.begin() == ["one"]
    it.over("two")
    assert len(it.queue) == 1
    it.over("one")
    assert it.begin() == ["three"]
    it.over("three")
    assert (len(it.queue), it.begin()) == (0, [])


def test_projects_that_are_gone_are_forgotten() -> None:
    it = Queue()
    it.enter("always0", 1, "always")
    for number in range(200):
        it.enter(f"p{number}", 1, f"p{number}")
        it.enter(f"always{number + 1}", 1, "always")
        for _ in range(2):
            (name,) = it.begin()
            it.over(name)
    assert len(it.queue._ordinary._queue.tags.of) < 10


jobs = st.tuples(
    st.sampled_from("abc"),
    st.floats(0, 2_000),
    st.booleans(),
    st.sampled_from([NOW - 1, NOW + 1, math.inf]),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(jobs, max_size=40), st.integers(1, 3), st.randoms())
def test_whatever_comes_everything_runs_once_in_few_places_and_no_place_is_left_empty(
    asked: list[tuple[str, float, bool, float]], places: int, chance: random.Random
) -> None:
    it = Queue(places)
    running: list[str] = []
    begun: list[str] = []
    left = [(f"j{number}", *one) for number, one in enumerate(asked)]
    while left or running or len(it.queue):
        if left and chance.random() < 0.6:
            name, project, mib, urgent, hurried = left.pop()
            it.enter(name, mib, project, urgent=urgent, hurried=hurried)
        elif running:
            it.over(running.pop(chance.randrange(len(running))))
        now = it.begin()
        running += now
        begun += now
        assert len(running) <= places + 1 + BESIDE
        if len(it.queue):  # work-conserving: who waits, waits for somebody
            assert len(running) >= 1
        if it.queue._ordinary.jobs:
            assert it.queue._taken(_Place.ORDINARY) == places
    assert sorted(begun) == sorted(f"j{number}" for number in range(len(asked)))


def test_the_smallest_jobs_cost_something_too() -> None:
    assert LEAST_WORK == MIB
    it = Queue()
    for number in range(20):
        it.enter(f"a{number}", 0, "a")
        it.enter(f"b{number}", 1, "b")
    assert Counter(name[0] for name in it.one_by_one()[:10]) == {"a": 5, "b": 5}
