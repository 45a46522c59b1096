"""Rate and time left: what is said when, and that the band holds."""

from __future__ import annotations

import random

import pytest

from batchline.cli import wording
from batchline.domain.forecast import ENOUGH_S, Pace
from bench.progress import HOLDS, SENT_AGAIN, SHAPES, held, looked_at


def steady(lines_per_s: int, seconds: float, *, begin_s: float = 0.0) -> Pace:
    pace = Pace()
    for tick in range(int(seconds * 10) + 1):
        pace.settled(begin_s + tick / 10, lines_per_s // 10, 10 * lines_per_s)
    return pace


def test_nothing_is_said_before_there_is_enough_to_tell() -> None:
    assert Pace().left(5.0, 10) is None
    pace = steady(100, ENOUGH_S - 0.1)
    assert pace.rates(ENOUGH_S) is None
    assert pace.left(ENOUGH_S, 10) is None
    once = Pace()
    once.settled(0.0, 500)
    assert once.rates(60.0) is None


def test_what_took_how_long_before_the_first_result_does_not_count() -> None:
    """A model that is loaded for a minute, and 500 answers that came at once."""
    pace = Pace()
    pace.settled(60.0, 500)
    for second in range(1, 11):
        pace.settled(60.0 + second, 10)
    rates = pace.rates(70.0)
    assert rates is not None
    assert rates.lines_per_s == pytest.approx(10)


def test_a_steady_pace_has_a_narrow_band_around_the_truth_once_it_was_seen_for_long() -> None:
    pace = steady(1000, 600)
    rates, left = pace.rates(600.0), pace.left(600.0, 60_000)
    assert rates is not None
    assert left is not None
    assert (rates.lines_per_s, rates.tokens_per_s) == pytest.approx((1000, 100_000), rel=0.01)
    assert left.likely == pytest.approx(60, rel=0.01)
    assert 45 < left.least < 59
    assert 61 < left.most < 80


def test_the_rate_is_that_of_the_last_minute_or_of_enough_lines() -> None:
    pace = steady(1000, 600)
    for second in range(1, 61):
        pace.settled(600.0 + second, 10)
    rates = pace.rates(660.0)
    assert rates is not None
    assert rates.lines_per_s == pytest.approx(10, rel=0.02)

    slow = Pace()
    for minute in range(31):
        slow.settled(60.0 * minute, 1)
    rates = slow.rates(1800.0)
    assert rates is not None
    assert rates.lines_per_s == pytest.approx(1 / 60, rel=0.1)


def test_while_nothing_comes_the_rate_falls_and_the_band_grows() -> None:
    pace = steady(1000, 120)
    usual, silent = pace.left(120.0, 10_000), pace.left(180.0, 10_000)
    assert usual is not None
    assert silent is not None
    assert silent.most > usual.most + 180
    assert silent.least == usual.least  # it may go on in this moment
    rates = pace.rates(180.0)
    assert rates is not None
    assert rates.lines_per_s < 20


def test_the_last_lines_are_given_the_time_that_the_last_lines_of_shards_took() -> None:
    pace = steady(100, 300)
    without = pace.left(300.0, 1000)
    for tail_s in (80.0, 100.0, 90.0):
        pace.tail(tail_s)
    sending, sent = pace.left(300.0, 1000), pace.left(300.0, 10, all_sent_at_s=240.0)
    assert without is not None
    assert sending is not None
    assert sent is not None
    assert sending.likely == without.likely + 90
    assert sending.most > without.most + 100
    assert 20 <= sent.likely <= 40 < sent.most


def test_lines_that_are_alone_may_take_as_long_again_or_four_times() -> None:
    left = steady(100, 10).left(70.0, 1, all_sent_at_s=10.0)
    assert left is not None
    assert left.least < 8
    assert left.most >= 240


def test_nothing_left_takes_no_time() -> None:
    left = Pace().left(0.0, 0)
    assert left is not None
    assert (left.least, left.likely, left.most) == (0, 0, 0)


def test_what_is_kept_does_not_grow_with_the_time() -> None:
    pace = Pace()
    rng = random.Random(7)  # noqa: S311  # the same every time
    now, lines = 0.0, 0
    for _ in range(100_000):
        now += rng.uniform(0.05, 20)
        lines += (some := rng.randrange(1, 100))
        pace.settled(now, some)
    assert len(pace._points) <= 401
    assert now > 10 * 86_400
    rates = pace.rates(now)
    assert rates is not None
    assert rates.lines_per_s == pytest.approx(lines / now, rel=0.7)


@pytest.mark.parametrize(
    ("shape", "restart"),
    [(name, False) for name in SHAPES]
    + [(name, True) for name in SHAPES if name not in SENT_AGAIN],
)
def test_the_end_is_inside_the_band_in_four_looks_of_five(shape: str, restart: bool) -> None:
    """If this fails, `make bench args=progress` shows what the band costs at every shape."""
    found = held(SHAPES[shape], runs=6, restart=restart)
    assert found.share >= HOLDS
    assert found.told >= 0.85 * found.looks


def test_a_look_is_never_of_what_is_to_come() -> None:
    """The simulation itself: cut off after a look, a run is looked at in the same way."""
    run = SHAPES["bursts"](random.Random(3))  # noqa: S311  # the same every time
    every = list(looked_at(run, looks=10))
    assert sum(look is not None for look in every) >= 9
    assert all(look is None or look[0] <= look[1] <= look[2] for look in every)


def test_the_time_left_is_said_with_its_band() -> None:
    left = steady(1000, 3600).left(3600.0, 600_000)
    assert left is not None
    assert wording.time_left(left).startswith("10 min left (")


@pytest.mark.parametrize("pause_h", [8, 30, 24 * 365])
def test_after_hours_without_a_result_the_time_left_can_still_be_said(pause_h: int) -> None:
    """A million lines, a backend that is away for long, and one line again."""
    pace = steady(10_000, 100.0)
    back_s = 100.0 + pause_h * 3600
    pace.settled(back_s, 1)
    for lines in (1, 1000, 10**7):
        left = pace.left(back_s, lines)
        assert left is not None
        assert 0 <= left.least <= left.likely <= left.most < 2**31 * 10


def test_whatever_was_seen_the_end_lies_in_its_band() -> None:
    rng = random.Random(5)  # noqa: S311  # cases, not secrets
    for _ in range(2000):
        pace, now_s = Pace(), 0.0
        for _ in range(rng.randint(2, 12)):
            now_s += rng.choice([0, 1e-9, 0.1, 0.25, 1, 2, 100, 1e4, 1e6]) * rng.random()
            pace.settled(now_s, rng.choice([1, 2, 1000, 10**6]))
            if rng.random() < 0.2:
                pace.tail(rng.choice([0, 3, 1e5]))
        sent_at_s = rng.choice([None, now_s])
        left = pace.left(now_s + rng.choice([0, 5, 1e8]), 10**5, all_sent_at_s=sent_at_s)
        assert left is None or 0 <= left.least <= left.likely <= left.most < 2**31 * 10
