"""The rate and the time left, with its band."""

from __future__ import annotations

import pytest

from batchline.cli.pace import Pace
from batchline.cli.progress import time_left


def seen(*sights: tuple[float, int]) -> Pace:
    pace = Pace()
    for at_s, finished in sights:
        pace.saw(at_s, finished)
    return pace


def test_nothing_is_said_before_there_is_enough_to_tell() -> None:
    assert seen().lines_per_s is None
    assert seen((0.0, 0), (0.5, 50)).left(10) is None
    assert seen((0.0, 7), (9.0, 7)).left(10) is None  # it stands


def test_a_steady_pace_has_a_narrow_band_around_the_truth() -> None:
    left = seen(*((float(n), n * 1000) for n in range(30))).left(60_000)
    assert left is not None
    assert left.likely == pytest.approx(60)
    assert left.most is not None
    assert 58 < left.least < 60 < left.most < 62


def test_an_uneven_pace_has_a_wide_band() -> None:
    left = seen((0.0, 0), (10.0, 1000), (20.0, 1000), (30.0, 2000)).left(2000)
    assert left is not None
    assert left.most is None or left.most - left.least > 15
    assert left.least < 30


def test_only_the_last_minute_counts() -> None:
    pace = seen(*((float(n), 100 * n) for n in range(100)))
    for n in range(1, 70):
        pace.saw(99.0 + n, 9900 + 10 * n)
    assert pace.lines_per_s == pytest.approx(10, rel=0.01)


def test_the_time_left_is_said_with_its_band() -> None:
    left = seen(*((float(n), n * 1000) for n in range(30))).left(600_000)
    assert left is not None
    assert time_left(left).startswith("10 min left (9 min ")
