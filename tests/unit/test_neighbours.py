"""Others at an engine: seen, made way for, and not slowed down by more than is allowed."""

from __future__ import annotations

import math

import pytest

from batchline.executor.neighbours import Neighbours
from batchline.executor.steering import PageAge
from bench.interactive import (
    ALONE,
    FIRST_KEPT_BACK,
    KEPT_BACK,
    OURS,
    SLOWDOWN,
    STAGES,
    Stage,
    felt,
)
from bench.interactive import SPARE as SHARE_OF_SPARE

STEP_S = 0.5


def look(
    neighbours: Neighbours, now: float, *, ours: int, theirs: int, token_s: float | None = None
) -> None:
    neighbours.look(now, ours=ours, in_hand=ours + theirs, token_s=token_s)


@pytest.mark.parametrize(
    "stage", [STAGES[0], STAGES[2], FIRST_KEPT_BACK[0], KEPT_BACK[0]], ids=lambda s: s.shape.name
)
def test_interactive_requests_hardly_feel_a_batch_that_takes_what_is_spare(stage: Stage) -> None:
    one = felt(stage, OURS, seed=5)
    assert one.times_alone < SLOWDOWN
    assert one.share > SHARE_OF_SPARE
    if stage in STAGES:
        assert one.limit_s <= 2.0


def test_without_a_batch_nothing_is_taken() -> None:
    one = felt(STAGES[2], ALONE, seed=5)
    assert (one.times_alone, one.share) == (1.0, 0.0)


def test_room_is_given_at_once_and_taken_a_look_later() -> None:
    neighbours = Neighbours(1.3)
    seen = []
    for number, theirs in enumerate([0, 10, 30, 30, 5, 0, 0]):
        look(neighbours, number * STEP_S, ours=20, theirs=theirs)
        seen.append(neighbours.others(number * STEP_S))
    assert seen == [0, 10, 30, 30, 30, 5, 0]


def test_what_a_page_said_long_ago_is_forgotten() -> None:
    neighbours = Neighbours(1.3)
    look(neighbours, 0.0, ours=0, theirs=10)
    assert (neighbours.others(9.0), neighbours.are_there(9.0)) == (10, True)
    assert (neighbours.others(11.0), neighbours.are_there(11.0)) == (0, False)


def test_a_token_may_take_longer_by_so_much_and_only_while_others_wait_for_theirs() -> None:
    neighbours = Neighbours(1.5)
    look(neighbours, 0.0, ours=0, theirs=10, token_s=0.02)  # what it takes without us
    for number in (1, 2):
        look(neighbours, number * STEP_S, ours=50, theirs=10, token_s=0.06)
    # The first of these looks was of 10 to 60: with 35 it is too long, and so in between.
    assert neighbours.cap(2 * STEP_S) == pytest.approx(10 + 25 / 4)
    for number in range(3, 30):  # they are gone
        look(neighbours, number * STEP_S, ours=60, theirs=0, token_s=0.06)
    assert neighbours.cap(29 * STEP_S) == math.inf


def test_one_slow_moment_is_none() -> None:
    neighbours = Neighbours(1.5)
    for number, token_s in enumerate([0.02, 0.06, 0.02, 0.02]):
        look(neighbours, number * STEP_S, ours=10, theirs=10, token_s=token_s)
        assert neighbours.cap(number * STEP_S) == math.inf


def test_others_who_slow_themselves_down_are_not_our_doing() -> None:
    neighbours = Neighbours(1.3)
    look(neighbours, 0.0, ours=0, theirs=2, token_s=0.02)
    for number in range(1, 10):
        look(neighbours, number * STEP_S, ours=5, theirs=60, token_s=0.05)
    assert neighbours.cap(9 * STEP_S) == math.inf


def test_what_others_would_take_without_us_is_less_than_they_take_beside_us() -> None:
    """Beside us each of theirs takes longer, so that they have more in hand: our doing too."""
    neighbours, now = Neighbours(1.3), 0.0

    for in_hand in range(10, 101, 5):
        now += STEP_S
        token_s = 0.02 * (1 + (in_hand - 2.5) / 100)  # from the look before on
        look(neighbours, now, ours=0, theirs=in_hand, token_s=token_s)
    for _ in range(10):
        now += STEP_S
        look(neighbours, now, ours=50, theirs=50, token_s=0.04)
    # 50 beside 50 of ours make 1,250 tokens a second; alone 33 do that, and one of these takes
    # 26.7 ms. 1.3 times as long is what it takes with 73.
    assert neighbours.cap(now) == pytest.approx(73, rel=0.05)


def test_of_an_old_page_the_most_of_a_longer_time_counts() -> None:
    def others_after(age_s: float) -> int:
        neighbours = Neighbours(1.3)
        for number, theirs in enumerate([30, 0, 0]):
            neighbours.look(number * STEP_S, ours=5, in_hand=5 + theirs, token_s=None, age_s=age_s)
        return neighbours.others(2 * STEP_S)

    assert (others_after(0.0), others_after(1.0)) == (0, 30)


def test_with_no_slowdown_nobody_is_looked_at() -> None:
    neighbours = Neighbours(0.0)
    look(neighbours, 0.0, ours=5, theirs=60, token_s=0.05)
    assert (neighbours.others(0.0), neighbours.cap(0.0)) == (0, math.inf)


# -- pages that lag behind -------------------------------------------------------------------------


def test_a_fresh_page_is_compared_with_what_was_in_flight_a_look_ago() -> None:
    age = PageAge()
    age.note(0.0, ours=50, in_hand=50)
    age.note(0.5, ours=20, in_hand=50)
    assert age.most_ours(0.5) == 50
    age.note(1.0, ours=20, in_hand=20)
    assert age.most_ours(1.0) == 20


def test_how_old_a_page_is_shows_when_more_of_ours_come() -> None:
    age = PageAge()
    for number, in_hand in enumerate([8, 8, 8, 8, 30]):  # it knows of the 32 after one and a half s
        age.note(number * STEP_S, ours=8 if number == 0 else 32, in_hand=in_hand)
    for number in range(5, 9):  # of which many end
        age.note(number * STEP_S, ours=10, in_hand=32)
    assert age.most_ours(6 * STEP_S) == 32
    assert age.most_ours(8 * STEP_S) == 32
    for number in range(9, 13):
        age.note(number * STEP_S, ours=10, in_hand=10)
    assert age.most_ours(12 * STEP_S) == 10
