"""Who will be late: the order by deadline is taken when it is needed, and only then."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchline.domain.model import DAY_S
from batchline.domain.urgency import (
    CAREFUL,
    FIRST_PART,
    URGENT_FRACTION,
    Danger,
    Demand,
    danger,
    first_part,
    raised_weight,
)

NOW = 1_000_000


def demand(batch: int, work: float, left_s: int, *, waits: bool = True) -> Demand:
    return Demand(batch, NOW + left_s - DAY_S, NOW + left_s, work, waits)


def look(*demands: Demand, rate: float | None = 1.0, most: float | None = 10.0) -> Danger:
    return danger(sorted(demands, key=lambda one: one.expires_at), now=NOW, rate=rate, most=most)


def test_with_time_enough_nobody_is_in_danger() -> None:
    assert look(demand(1, 100.0, 1_000), demand(2, 100.0, 2_000)) == Danger()


def test_a_batch_that_needs_most_of_its_projects_rate_goes_first() -> None:
    assert look(demand(1, 1_000 * FIRST_PART * CAREFUL + 1, 1_000)).first == 1
    assert look(demand(1, 1_000 * FIRST_PART * CAREFUL - 1, 1_000)).first is None


def test_it_is_beyond_its_share_when_going_first_would_not_do() -> None:
    assert look(demand(1, 1_000 * FIRST_PART + 1, 1_000)) == Danger(first=1, beyond=True)


def test_the_earliest_deadline_goes_first_though_a_later_one_is_in_danger() -> None:
    found = look(demand(1, 300.0, 1_000), demand(2, 1_000.0, 1_800))
    assert found.first == 1


def test_batches_add_up_though_each_would_be_in_time_alone() -> None:
    assert look(*(demand(n, 100.0, 1_000) for n in range(7))).first == 0
    assert look(*(demand(n, 100.0, 1_000) for n in range(5))).first is None


def test_one_that_has_nothing_to_give_out_is_not_put_first_but_counts() -> None:
    found = look(demand(1, 600.0, 1_000, waits=False), demand(2, 100.0, 1_100))
    assert found.first == 2


def test_one_that_nothing_would_save_takes_nobodys_place() -> None:
    assert look(demand(1, 10_001.0, 1_000)) == Danger()
    assert look(demand(1, 10.0, -5)) == Danger()
    assert look(demand(1, 10_001.0, 1_000), demand(2, 950.0, 1_001)).first == 2


@pytest.mark.parametrize("window_s", [60, 3_600, DAY_S])
def test_without_a_rate_the_last_tenth_of_a_window_is_a_danger(window_s: int) -> None:
    def at(left_s: int) -> Danger:
        one = Demand(7, NOW + left_s - window_s, NOW + left_s, 1.0, waits=True)
        return danger([one], now=NOW, rate=None, most=None)

    last = int(window_s * URGENT_FRACTION)
    assert at(last - 1) == Danger(first=7)
    assert at(last) == Danger()


weights = st.lists(st.floats(0.1, 100), min_size=1, max_size=6)


@given(weights, weights, st.floats(0, 0.9))
@settings(max_examples=100, deadline=None)
def test_whoever_is_not_urgent_keeps_all_but_that_part_of_its_share(
    calm: Sequence[float], urgent: Sequence[float], part: float
) -> None:
    of_all, of_urgent = sum(calm) + sum(urgent), sum(urgent)
    raised = [
        raised_weight(one, of_all=of_all, of_urgent=of_urgent, urgent_share=part) for one in urgent
    ]
    everything = sum(calm) + sum(raised)
    for one in calm:
        assert one / everything == pytest.approx((1 - part) * one / of_all)
    for one, more in zip(urgent, raised, strict=True):
        share = one / of_all
        assert more / everything == pytest.approx((1 - part) * share + part * one / of_urgent)
        assert more / everything >= share - 1e-9


def test_the_first_of_a_project_leaves_its_siblings_a_quarter() -> None:
    for others in (1, 3, 1_000):
        first = first_part(others)
        assert first / (first + others) == pytest.approx(FIRST_PART)
    assert first_part(0) == 1.0
