"""How long a token takes by how many are in hand: what is made of looks that are rough."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchline.executor.token_curve import TokenCurve

LOOK_S = 0.5


def knee_at(knee: float) -> Callable[[float], float]:
    return lambda in_hand: 0.02 * max(1.0, in_hand / knee)


def looked(
    curve: TokenCurve,
    numbers: Sequence[int],
    token_s: Callable[[float], float],
    *,
    rough: float = 0.0,
    since: float = 0.0,
) -> float:
    """Look at these numbers one after the other, each off by about `rough`; the time after it."""
    chance = random.Random(7)  # noqa: S311  # no secret
    now = since
    for in_hand in numbers:
        now += LOOK_S
        curve.note(now, in_hand, token_s(in_hand) * (1 + chance.gauss(0.0, rough)))
    return now


def by_itself(middle: int, looks: int) -> list[int]:
    """Numbers about `middle`, as others come and go."""
    chance = random.Random(3)  # noqa: S311  # no secret
    return [round(middle * chance.uniform(0.6, 1.6)) for _ in range(looks)]


@pytest.mark.parametrize("rough", [0.0, 0.05])
def test_the_number_from_which_on_more_bring_nothing_is_found_among_rough_looks(
    rough: float,
) -> None:
    curve = TokenCurve()
    looked(curve, by_itself(64, 150), knee_at(64), rough=rough)
    best = curve.best()
    assert best is not None
    assert best == pytest.approx(64, rel=0.15)


def test_where_more_still_bring_more_the_next_number_is_beyond_all_that_was_seen() -> None:
    curve = TokenCurve()
    looked(curve, [30] * 4, knee_at(100))
    assert curve.best() == pytest.approx(30 * 1.15)


def test_two_looks_are_too_few_to_go_on_from() -> None:
    curve = TokenCurve()
    looked(curve, [30, 30], knee_at(100))
    assert curve.best() is None


def test_between_two_numbers_it_is_a_straight_line_and_beyond_them_the_last_one() -> None:
    curve = TokenCurve()
    looked(curve, [10, 20], lambda in_hand: in_hand / 1000)
    assert [curve.at(n) for n in (5, 10, 15, 20, 40)] == pytest.approx(
        [0.01, 0.01, 0.015, 0.02, 0.02]
    )
    assert curve.most_at(0.015) == pytest.approx(15)
    assert curve.most_at(0.005) == pytest.approx(5)
    assert curve.most_at(0.02) == math.inf


def test_an_engine_that_became_slower_is_known_after_three_looks_and_fewer_are_no_faster() -> None:
    curve = TokenCurve()
    now = looked(curve, [16, 24, 32, 48, 64, 72] * 4, knee_at(64))
    now = looked(curve, [64] * 2, knee_at(32), since=now)
    assert curve.at(64) < 0.03  # it may have been a moment
    now = looked(curve, [64], knee_at(32), since=now)
    assert curve.at(64) == pytest.approx(0.04)
    for _ in range(12):
        best = curve.best()
        assert best is not None
        now = looked(curve, [round(best)], knee_at(32), since=now)
    assert best == pytest.approx(32, rel=0.15)


def test_what_more_came_to_is_forgotten_so_that_it_is_tried_again() -> None:
    curve = TokenCurve()
    now = looked(curve, [30, 60] * 6, knee_at(30))
    best = curve.best()
    assert best is not None
    assert best <= 33
    looked(curve, [30] * 22, knee_at(30), since=now)  # and for eleven seconds no 60
    assert curve.best() == pytest.approx(30 * 1.15)


def test_what_fewer_came_to_is_kept() -> None:
    curve = TokenCurve()
    now = looked(curve, [8] * 3, lambda _: 0.02)
    looked(curve, [100] * 200, lambda _: 0.023, since=now)
    assert curve.at(8) == pytest.approx(0.02)


def test_when_all_that_is_known_is_old_and_of_more_it_begins_anew() -> None:
    """The first look of a batch after an idle minute. If this fails, it raises."""
    curve = TokenCurve()
    now = looked(curve, [60] * 3, knee_at(30))
    looked(curve, [8], knee_at(30), since=now + 60.0)
    assert curve.at(60) == pytest.approx(0.02)


@given(
    st.lists(
        st.tuples(st.integers(1, 5_000), st.floats(1e-4, 10.0), st.sampled_from([LOOK_S, 11.0])),
        min_size=1,
        max_size=60,
    ),
    st.floats(1e-4, 10.0),
)
def test_more_in_hand_are_never_faster(
    looks: list[tuple[int, float, float]], most_s: float
) -> None:
    curve = TokenCurve()
    now = 0.0
    for in_hand, token_s, later_s in looks:
        now += later_s
        curve.note(now, in_hand, token_s)
    numbers = sorted({in_hand for in_hand, _, _ in looks} | {1, 10_000})
    all_s = [curve.at(n) for n in numbers]
    assert all(a <= b * (1 + 1e-9) for a, b in pairwise(all_s))
    assert curve.most_at(most_s) > 0
    best = curve.best()
    assert best is None or 0 < best <= 1.15 * max(numbers)
