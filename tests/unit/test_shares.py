"""Who is given the next shard: projects by weight, batches in turns, dangers first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchline.domain.ids import ProjectId
from batchline.domain.model import DAY_S
from batchline.domain.shares import CROWDED, PER_PROJECT, READY, RESTING, Charge, Shares, Turn
from batchline.domain.wanting import Member

NOW = 1_000_000
SHARD = 1_000


class Room:
    """A book, and batches of some shards each."""

    def __init__(self) -> None:
        self.shares = Shares()
        self.left: dict[tuple[int, str], int] = {}
        self.projects: dict[int, str] = {}
        self.now = float(NOW)

    def batch(
        self,
        number: int,
        project: str = "p",
        *,
        shards: int = 1_000_000,
        weight: float = 1.0,
        model: str = "m",
        window_s: int = DAY_S,
        lines: int = SHARD,
    ) -> None:
        now = int(self.now)
        member = Member(number, ProjectId(project), now, now + window_s, lines)
        self.shares.add(member, weight=weight)
        self.also(number, project, model, shards)

    def also(self, number: int, project: str, model: str, shards: int) -> None:
        self.left[number, model] = shards
        self.projects[number] = project
        self.shares.waits(number, model)

    def give(
        self,
        *,
        backend: str = "b",
        models: Iterable[str] = ("m",),
        lines: int = SHARD,
        beside: dict[ProjectId, list[int]] | None = None,
    ) -> Charge | None:
        chosen = self.shares.choose(backend, models, now=self.now, beside=beside)
        if chosen is None:
            return None
        self.left[chosen] -= 1
        if not self.left[chosen]:
            self.shares.rests(*chosen)
        return self.shares.take(
            *chosen, backend=backend, place="w", done=0, failed=0, tokens=0, lines=lines
        )

    def turn(self, number: int, *, place: str = "w") -> Turn:
        return self.shares.turn(number, "m", backend="b", place=place)

    def given(self, times: int, *, backend: str = "b", models: Iterable[str] = ("m",)) -> list[int]:
        """The batches of the next shards."""
        charges = [self.give(backend=backend, models=models) for _ in range(times)]
        return [one.member.sequence for one in charges if one is not None]

    def by_project(self, times: int) -> Counter[str]:
        return Counter(self.projects[number] for number in self.given(times))


def test_nobody_waits_nobody_is_next() -> None:
    assert Room().give() is None


def test_projects_share_by_weight_whatever_number_of_batches_they_have() -> None:
    room = Room()
    for number in range(10):
        room.batch(number, "many")
    room.batch(10, "one", weight=2.0)
    assert room.by_project(300) == {"one": 200, "many": 100}


def test_batches_of_one_project_take_turns_and_equal_ones_go_by_deadline_and_age() -> None:
    room = Room()
    room.batch(3)
    room.batch(1)
    room.batch(2, window_s=DAY_S - 1)
    assert room.given(6) == [2, 1, 3, 2, 1, 3]


def test_a_small_batch_behind_a_huge_one_is_next_but_one() -> None:
    room = Room()
    room.batch(1)
    room.given(500)
    room.batch(2, shards=2)
    assert sorted(room.given(4)) == [1, 1, 2, 2]
    assert room.given(2) == [1, 1]


def test_a_small_batch_of_another_project_is_not_held_up_by_many_of_the_first() -> None:
    room = Room()
    for number in range(100):
        room.batch(number)
    room.given(1_000)
    room.batch(100, "q", shards=3)
    assert Counter(room.given(6))[100] == 3


def test_an_idle_project_saves_up_nothing() -> None:
    room = Room()
    room.batch(1, "busy")
    room.batch(2, "idle", shards=1)
    room.given(1_000)
    room.also(2, "idle", "m", 1_000)
    assert room.by_project(100) == {"busy": 50, "idle": 50}


def test_a_batch_that_ended_is_not_next_and_its_project_neither() -> None:
    room = Room()
    room.batch(1, "p")
    room.batch(2, "q")
    room.shares.remove(1)
    room.shares.remove(1)
    assert room.given(3) == [2, 2, 2]
    room.shares.remove(2)
    assert room.give() is None
    assert room.shares.waiting_models() == []


def test_each_backend_is_shared_by_itself() -> None:
    """Who alone can use one backend gets nothing less of another for it."""
    room = Room()
    room.batch(1, "both", model="here")
    room.batch(2, "other", model="there")
    room.also(1, "both", "there", 1_000_000)
    assert set(room.given(100, backend="first", models=("here",))) == {1}
    assert Counter(room.given(100, backend="second", models=("there",))) == {1: 50, 2: 50}


def test_two_models_of_one_backend_are_one_share_of_a_project() -> None:
    room = Room()
    room.batch(1, "two", model="m")
    room.batch(2, "two", model="n")
    room.batch(3, "one", model="n")
    served = [room.projects[n] for n in room.given(100, models=("m", "n"))]
    assert Counter(served) == {"two": 50, "one": 50}


def test_a_model_that_the_backend_does_not_serve_is_not_chosen() -> None:
    room = Room()
    room.batch(1, model="m")
    assert room.given(1, models=("n",)) == []
    assert room.given(1, models=("n", "m")) == [1]


# -- beside what is open --------------------------------------------------------------------------


def test_beside_what_is_open_come_projects_without_and_batches_without() -> None:
    room = Room()
    room.batch(1, "p")
    room.batch(2, "p")
    room.batch(3, "q")
    full = {ProjectId("p"): [1] * READY}
    charge = room.give(beside=full)
    assert charge is not None
    assert charge.member.sequence in (2, 3)
    room.shares.remove(2)
    room.shares.remove(3)
    assert room.give(beside=full) is None
    assert room.give(beside={ProjectId("p"): [1] * (READY - 1)}) is not None


def test_one_project_has_so_many_batches_open_at_one_place_and_no_more() -> None:
    room = Room()
    for number in range(PER_PROJECT + 1):
        room.batch(number)
    assert room.give(beside={ProjectId("p"): list(range(PER_PROJECT - 1))}) is not None
    assert room.give(beside={ProjectId("p"): list(range(PER_PROJECT))}) is None


def test_where_it_is_crowded_nobody_has_a_second_shard_ready() -> None:
    room = Room()
    room.batch(1)
    beside = {ProjectId(f"q{n}"): [100 + n] for n in range(CROWDED - 1)}
    assert room.give(beside={**beside, ProjectId("p"): [1]}) is None
    assert room.give(beside=beside) is not None


# -- what is paid ----------------------------------------------------------------------------------


def run(room: Room, charge: Charge, tokens: int) -> None:
    room.shares.settled(charge, done=charge.lines, failed=0, tokens=tokens)
    room.shares.returned(charge)


def test_tokens_count_and_not_lines() -> None:
    room = Room()
    room.batch(1, "long")
    room.batch(2, "short")
    served: Counter[int] = Counter()
    for _ in range(400):
        charge = room.give()
        assert charge is not None
        number = charge.member.sequence
        run(room, charge, SHARD * (300 if number == 1 else 100))
        served[number] += 1
    assert served[2] / served[1] == pytest.approx(3, rel=0.1)


def test_a_shard_that_came_back_is_paid_for_as_far_as_it_ran() -> None:
    room = Room()
    room.batch(1, "p")
    room.batch(2, "q")
    charge = room.give()
    assert charge is not None
    assert charge.member.sequence == 1
    assert room.given(1) == [2]
    room.shares.settled(charge, done=10, failed=0, tokens=10)
    room.shares.returned(charge)
    more = [room.give(lines=100) for _ in range(9)]
    assert [one.member.sequence for one in more if one is not None] == [1] * 9


def test_lines_that_nobody_tells_tokens_of_count_one_each() -> None:
    room = Room()
    room.batch(1, "p")
    room.batch(2, "q")
    for _ in range(10):
        charge = room.give()
        assert charge is not None
        room.shares.settled(charge, done=SHARD - 100, failed=100, tokens=0)
        room.shares.returned(charge)
    assert room.by_project(100) == {"p": 50, "q": 50}


def test_results_of_a_batch_that_was_stopped_are_counted_for_its_project() -> None:
    room = Room()
    room.batch(1, "p")
    charge = room.give()
    assert charge is not None
    room.shares.remove(1)
    run(room, charge, 5)
    assert room.give() is None


def test_long_lines_go_less_often_beside_short_ones() -> None:
    room = Room()
    room.batch(1, "long")
    room.batch(2, "short")
    for _ in range(2):
        charge = room.give()
        assert charge is not None
        run(room, charge, SHARD * (300 if charge.member.sequence == 1 else 100))
    long, short = room.turn(1), room.turn(2)
    assert short.weight / long.weight == pytest.approx(3)


def test_lines_go_by_the_weight_of_their_project_which_has_a_part_of_it_at_each_worker() -> None:
    """Else a project that is at all workers had more of all of them than one that is at one."""
    room = Room()
    room.batch(1, "heavy", weight=3)
    room.batch(2, "light")
    charge = room.give()
    assert charge is not None
    assert charge.member.sequence == 1
    alone, light = room.turn(1, place="w"), room.turn(2, place="w")
    assert alone.weight == pytest.approx(3 * light.weight)
    assert room.turn(1, place="another").weight == pytest.approx(alone.weight / 2)
    room.shares.returned(charge)
    assert room.turn(1, place="another").weight == pytest.approx(alone.weight)


# -- dangers ---------------------------------------------------------------------------------------


def at_a_rate(room: Room, lines_a_second: int, *, seconds: int = 20) -> None:
    """Have it be known how fast things go."""
    for _ in range(seconds):
        charge = room.give(lines=lines_a_second)
        assert charge is not None
        room.now += 1.0
        run(room, charge, 0)
    room.shares.choose("b", ["m"], now=room.now)


def test_a_batch_that_would_be_late_goes_first_and_leaves_a_quarter() -> None:
    room = Room()
    for number in range(4):
        room.batch(number, lines=1_000_000)
    at_a_rate(room, 100)
    room.batch(9, lines=65_000, window_s=1_000)
    room.now += 2
    assert Counter(room.given(400))[9] == pytest.approx(300, abs=10)
    assert room.turn(9).first


def test_a_project_that_needs_more_than_its_share_gets_some_and_the_others_keep_theirs() -> None:
    room = Room()
    for number in range(4):
        room.batch(number, f"p{number}", lines=10_000)
    at_a_rate(room, 100)
    room.batch(9, "late", lines=60_000, window_s=1_000)
    room.now += 2
    served = room.by_project(1_000)
    assert served["late"] == pytest.approx(1_000 * (0.8 / 5 + 0.2), abs=20)
    for number in range(4):
        assert served[f"p{number}"] == pytest.approx(1_000 * 0.8 / 5, abs=20)
    assert room.turn(9).urgent == 0.2
    assert room.turn(0).urgent == 0.0


def test_dangers_are_looked_for_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand batches at once would hold up the control process for tens of milliseconds."""
    room = Room()
    for number in range(10_000):
        room.batch(number, f"p{number % 1_000}")
    looked = []
    monkeypatch.setattr(room.shares._review, "_look", lambda *seen: looked.append(seen))
    looks = []
    for _ in range(60):
        before = len(looked)
        room.give()
        room.give()
        looks.append(len(looked) - before)
        room.now += 0.1
    assert max(looks) <= 20
    assert sum(looks) == 1_000


# -- properties ------------------------------------------------------------------------------------

loads = st.lists(
    st.tuples(
        st.integers(0, 3),  # project
        st.integers(1, 5),  # shards
        st.sampled_from([60, 3_600, DAY_S]),  # window
    ),
    min_size=1,
    max_size=12,
)


@given(loads, st.data())
@settings(max_examples=60, deadline=None)
def test_a_place_is_never_left_empty_and_everything_is_given_out_once(
    batches: list[tuple[int, int, int]], data: st.DataObject
) -> None:
    room = Room()
    for number, (project, shards, window_s) in enumerate(batches):
        room.batch(number, f"p{project}", shards=shards, window_s=window_s, weight=project + 0.5)
    out: list[Charge] = []
    while any(room.left.values()):
        room.now += data.draw(st.sampled_from([0.0, 0.5, 40.0]))
        charge = room.give()
        assert charge is not None, "something waits, and nothing is chosen"
        out.append(charge)
        if data.draw(st.booleans()):
            run(room, out.pop(0), data.draw(st.sampled_from([0, 500, 50_000])))
    assert room.give() is None
    assert all(left == 0 for left in room.left.values())


@given(st.integers(0, 3), st.integers(2, 30), st.integers(1, 20))
@settings(max_examples=40, deadline=None)
def test_nobody_starves_whatever_is_in_danger(first: int, others: int, seconds: int) -> None:
    """Everybody who waits is served before the others have had many rounds."""
    room = Room()
    for number in range(others):
        room.batch(number, f"p{number % 4}", lines=10**6)
    at_a_rate(room, 10)
    room.batch(1_000, f"p{first}", lines=7 * seconds, window_s=seconds)
    room.batch(1_001, "q", lines=9 * seconds, window_s=seconds)
    served = Counter(room.given(50 * (others + 2)))
    assert all(served[number] > 0 for number in [*range(others), 1_000, 1_001])


def test_models_that_nobody_runs_are_let_go_of_and_the_last_ones_remembered() -> None:
    """Callers name models as they like, where a backend does not say which it has."""
    room = Room()
    room.batch(0, model="kept")
    for number in range(1, 1_000):
        model = f"model-{number}"
        room.batch(number, model=model, shards=1)
        charge = room.give(models=(model,))
        assert charge is not None
        room.shares.settled(charge, done=SHARD, failed=0, tokens=3 * SHARD)
        ending = (room.shares.remove, [number]), (room.shares.returned, [charge])
        for step, arguments in ending if number % 2 else reversed(ending):
            step(*arguments)
    book = room.shares
    assert set(book._models) == {"kept"}
    assert len(book._resting) == RESTING
    assert [len(one.queues) for one in book._backends.values()] == [0]
    assert room.given(2, models=("kept",)) == [0, 0]
    room.batch(1_000, model="model-999", shards=1)
    remembered = room.give(models=("model-999",))
    assert remembered is not None
    assert remembered.each == 3
