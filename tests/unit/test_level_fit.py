"""Speeds at levels, told by answers that lived through several."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchline.executor.level_fit import LevelFit

SPEEDS = {1: 20.0, 2: 19.0, 3: 10.0}
BEGINS = {1: 0.0, 2: 8.0, 3: 14.0}


def lived(began: float, ended: float) -> tuple[dict[int, float], dict[int, int]]:
    """How long an answer spent at each level, and before which it had begun."""
    until, seconds, before = ended, {}, {}
    for level, since in sorted(BEGINS.items(), reverse=True):
        if since >= ended:
            continue
        seconds[level] = until - max(since, began)
        if since <= began:
            break
        before[level] = 1
        until = since
    return seconds, before


def fit_of(lives: list[tuple[float, float]], *, noise: float = 0.0, burst: float = 0.0) -> LevelFit:
    """Answers with tokens by SPEEDS; off by a part of them, and less by `burst` for each level
    that began meanwhile."""
    chance = random.Random(3)  # noqa: S311  # no secret
    fit = LevelFit()
    for began, ended in lives:
        seconds, before = lived(began, ended)
        tokens = sum(SPEEDS[level] * spent for level, spent in seconds.items())
        tokens = (tokens - burst * len(before)) * (1 + chance.gauss(0, noise))
        fit.add(1, tokens, seconds, before)
    return fit


FIRST = [(0.0, 6.0), (0.0, 7.0), (0.5, 9.0), (0.0, 11.0)]
SOON = [*FIRST, (9.0, 14.5), (8.0, 15.0), (8.0, 15.5), (7.0, 16.0), (9.0, 17.0)]
SOON += [(9.0, 17.5), (9.5, 18.0), (10.0, 18.5), (10.5, 19.0)]


def test_answers_that_began_before_a_level_tell_its_speed() -> None:
    found = fit_of(SOON).speeds(3)
    for level, speed in SPEEDS.items():
        assert found[level].tokens_per_s == pytest.approx(speed, rel=0.02)
    assert found[3].error < 0.15


def test_the_first_two_answers_tell_the_first_speed() -> None:
    assert fit_of(FIRST[:1]).speeds(1) == {}
    assert fit_of(FIRST[:2]).speeds(1)[1].tokens_per_s == pytest.approx(20.0)


def test_what_a_levels_begin_cost_is_not_taken_for_its_speed() -> None:
    """32 prompts that are read at once, say, while those that run get nothing."""
    found = fit_of(SOON, burst=30.0).speeds(3)
    assert found[3].tokens_per_s == pytest.approx(10.0, rel=0.05)
    as_slow = LevelFit()  # the same, not told who was there before
    for began, ended in SOON:
        seconds, before = lived(began, ended)
        tokens = sum(SPEEDS[level] * spent for level, spent in seconds.items())
        as_slow.add(1, tokens - 30.0 * len(before), seconds, {})
    assert as_slow.speeds(3)[3].tokens_per_s < 9.0


def test_answers_that_do_not_agree_are_less_sure() -> None:
    sure = fit_of(SOON).speeds(3)[3]
    unsure = fit_of(SOON, noise=0.3).speeds(3)[3]
    assert unsure.error > 2 * sure.error


def test_nothing_is_told_of_fast_answers_or_of_a_level_that_none_has_lived_at() -> None:
    fast = fit_of([(start, start + 3.0) for start in (0.0, 1.0, 2.0, 3.0)])
    assert fast.speeds(1) == {}
    assert fit_of(FIRST).speeds(3) == {}


_level = st.integers(1, 5)


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(
            st.integers(1, 1_000),
            st.floats(1, 1e15),
            st.dictionaries(_level, st.floats(0, 1e9), max_size=5),
            st.dictionaries(_level, st.integers(0, 1_000), max_size=5),
        ),
        max_size=12,
    )
)
def test_whatever_is_said_every_speed_that_is_told_is_a_number(
    said: list[tuple[int, float, dict[int, float], dict[int, int]]],
) -> None:
    fit = LevelFit()
    for one in said:
        fit.add(*one)
    for level in range(1, 6):
        for speed in fit.speeds(level).values():
            assert 0 < speed.tokens_per_s < math.inf
            assert speed.error >= 0
