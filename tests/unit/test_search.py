"""How many an engine should have in hand: what is made of what was seen, step by step."""

from __future__ import annotations

import pytest

from batchline.executor.search import FIRST, Search


def rate_with_knee(level: float, knee: float) -> float:
    return min(level, knee) / 0.02


def found(search: Search, knee: float, *, looks: int = 40, start: float = 0.0) -> list[int]:
    """The levels that it goes through on an engine with that knee, a second apart."""
    levels = []
    for number in range(looks):
        levels.append(search.level)
        rate = rate_with_knee(search.level, knee)
        search.seen(start + number, in_hand=search.level, rate=rate)
    return levels


@pytest.mark.parametrize("knee", [8, 20, 64, 100, 512])
def test_it_doubles_to_beyond_the_knee_and_is_at_it_in_one_step(knee: int) -> None:
    search = Search(least=1, most=1024)
    levels = found(search, knee)
    top = max(levels)
    assert FIRST <= top <= 2.9 * knee
    assert abs(levels[levels.index(top) + 1] / knee - 1) <= 0.05
    assert all(0.85 * knee <= level <= 1.15 * knee for level in levels[levels.index(top) + 1 :])


def test_it_goes_no_higher_than_it_may() -> None:
    assert max(found(Search(least=1, most=50), 100)) == 50
    assert set(found(Search(least=5, most=5), 100)) == {5}


def settled_at(knee: float) -> Search:
    search = Search(least=1, most=1024)
    found(search, knee)
    while abs(search.level / knee - 1) > 0.02:
        search.seen(50.0, in_hand=search.level, rate=rate_with_knee(search.level, knee))
    return search


def test_a_fall_of_the_rate_takes_the_level_down_by_as_much() -> None:
    search = settled_at(100)
    search.seen(51.0, in_hand=search.level, rate=rate_with_knee(search.level, 60))
    assert abs(search.level / 60 - 1) < 0.05
    search.seen(52.0, in_hand=search.level, rate=rate_with_knee(search.level, 60))
    assert max(found(search, 60, start=53.0)) <= 1.15 * 60


def test_of_a_greater_fall_a_half_is_believed_and_the_rest_looked_into() -> None:
    search = settled_at(100)
    search.seen(51.0, in_hand=search.level, rate=rate_with_knee(search.level, 20))
    assert search.level in (49, 50)
    levels = found(search, 20, start=52.0, looks=12)
    assert abs(levels[-1] / 20 - 1) < 0.25


def test_where_fewer_bring_less_it_is_not_the_capacity_that_fell() -> None:
    """Other lines run now, whose prompts are long: each request brings a third of the tokens. If
    this fails, two batches of different kinds that take turns keep the level far too low."""
    search = settled_at(100)
    level = search.level
    search.seen(51.0, in_hand=level, rate=rate_with_knee(level, 100) / 3)
    assert search.level < level
    search.seen(52.0, in_hand=search.level, rate=rate_with_knee(search.level, 100) / 3)
    assert search.level == level


def test_where_others_may_have_come_what_was_given_up_is_not_taken_back_at_once() -> None:
    """Nobody sees them: there is no page. They take a third of the tokens."""
    search = settled_at(90)
    search.yields = True
    level = search.level
    search.seen(51.0, in_hand=level, rate=rate_with_knee(level, 60))
    assert abs(search.level / 60 - 1) < 0.05
    search.seen(52.0, in_hand=search.level, rate=rate_with_knee(search.level, 40))
    assert search.level < 70


@pytest.mark.parametrize("yields", [False, True])
def test_one_measurement_of_nonsense_costs_a_few_others(yields: bool) -> None:
    """A backend may tell any usage. If this fails, one answer takes the level to its floor."""
    search = settled_at(100)
    search.yields = yields
    level = search.level
    search.seen(51.0, in_hand=level, rate=rate_with_knee(level, 100) * 1e12)
    levels = found(search, 100, looks=10, start=52.0)
    assert min(levels) >= level // 2 / 1.15
    assert abs(levels[-1] / 100 - 1) < 0.25


def test_a_moment_in_which_nothing_came_costs_a_half_for_a_while() -> None:
    search = settled_at(100)
    level = search.level
    search.seen(51.0, in_hand=level, rate=rate_with_knee(level, 100) * 1e-12)
    levels = found(search, 100, looks=10, start=52.0)
    assert min(levels) >= level // 2 / 1.15
    assert abs(levels[-1] / 100 - 1) < 0.25


def test_a_knee_that_moved_up_is_climbed_to_by_growing_steps() -> None:
    search = Search(least=1, most=1024)
    found(search, 32)
    levels = found(search, 128, looks=30, start=100.0)
    assert abs(levels[-1] / 128 - 1) < 0.15


def test_every_change_of_the_level_is_another_measure() -> None:
    search = Search(least=1, most=1024)
    before = (search.measure, search.level)
    for number in range(30):
        search.seen(number, in_hand=search.level, rate=rate_with_knee(search.level, 50))
        after = (search.measure, search.level)
        assert (after[0] != before[0]) == (after[1] != before[1])
        before = after


def test_a_step_that_cannot_be_looked_at_is_taken_back() -> None:
    search = Search(least=1, most=1024)
    found(search, 50)
    search.go(50)
    search.seen(100.0, in_hand=50, rate=rate_with_knee(50, 50))
    assert search.level != 50
    search.give_up(101.0)
    assert search.level == 50
    search.give_up(102.0)  # there is nothing to take back
    assert search.level == 50


def test_where_others_would_suffer_it_does_not_double() -> None:
    search = Search(least=1, most=1024)
    search.gentle = True
    levels = found(search, 64)
    assert max(levels) <= 1.5 * 64
    assert abs(levels[-1] / 64 - 1) < 0.15


def test_a_knee_that_was_passed_is_not_doubled_past() -> None:
    """With 64 a token takes 1.6 times what it takes with 32: the next level would teach no more."""
    assert found(Search(least=1, most=1024), 40, looks=5) == [8, 16, 32, 64, 40]
