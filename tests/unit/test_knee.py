"""Where requests begin to wait for each other, from what a ramp saw."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchline.executor.knee import Rate, knee_of


def seen(levels: Sequence[int], token_s: Callable[[int], float]) -> list[Rate]:
    return [Rate(level, level / token_s(level)) for level in levels]


@pytest.mark.parametrize(("knee", "drag"), [(40, 0.0002), (64, 0.0), (100, 1 / 300)])
def test_one_level_beyond_it_is_enough(knee: int, drag: float) -> None:
    def token_s(level: int) -> float:
        return 0.02 * (1 + drag * level) * max(1.0, level / knee)

    levels = [8, 16, 32, 64]
    while levels[-1] < 1.2 * knee:
        levels.append(2 * levels[-1])
    found = knee_of(seen(levels, token_s))
    assert found is not None
    assert abs(found / knee - 1) < 0.12
    assert knee_of(seen([level for level in levels if level < knee], token_s)) is None


def test_by_two_numbers_less_of_a_bend_is_one_than_by_a_single_one() -> None:
    """A single one does not tell how steep the line is: that of an engine without a knee would seem
    bent. By two it is known; and to try twice as many would take as long as the slowest answers."""

    def bent(by: float, *before: int) -> list[Rate]:
        return seen([*before, 32], lambda level: 0.05 * (by if level == 32 else 1.0))

    assert knee_of(bent(1.14, 8, 16)) == pytest.approx(28, rel=0.02)
    assert knee_of(bent(1.10, 8, 16)) is None
    assert knee_of(bent(1.14, 8)) is None
    assert knee_of(bent(1.16, 8)) == pytest.approx(28, rel=0.02)


def test_a_line_however_steep_has_none() -> None:
    levels = [8, 16, 32, 64, 90, 126, 177, 248, 348]
    for count in range(1, len(levels) + 1):
        assert knee_of(seen(levels[:count], lambda n: 0.02 * (1 + n / 64))) is None


def test_an_engine_that_reads_for_a_third_of_its_time_has_its_knee_where_its_formula_says() -> None:
    """The line rises with each request that is read beside it; noise of a few in a hundred."""
    rates = [398.1, 773.5, 1489.7, 2827.8, 4929.8, 7028.1, 6839.0]  # of a run
    levels = [8, 16, 32, 64, 128, 256, 359]
    found = knee_of([Rate(n, rate) for n, rate in zip(levels, rates, strict=True)])
    assert found == pytest.approx(200, rel=0.1)


@given(st.lists(st.tuples(st.integers(1, 5_000), st.floats(1e-3, 1e6)), min_size=1, max_size=12))
def test_whatever_was_seen_a_knee_is_above_nothing(points: list[tuple[int, float]]) -> None:
    found = knee_of([Rate(in_hand, rate) for in_hand, rate in points])
    assert found is None or found >= 0
