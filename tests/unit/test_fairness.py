"""Whose shard next: turns for all, deadlines first when they press, and nobody idle."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchline.domain.fairness import URGENT_FRACTION, Waiting, next_batch
from batchline.domain.model import DAY_S

modest = settings(max_examples=100, deadline=None)

NOW = 1_000_000


def waiting(
    sequence: int, *, running: int = 0, left_s: int = DAY_S, window_s: int = DAY_S
) -> Waiting:
    """A batch whose window closes `left_s` from NOW."""
    expires_at = NOW + left_s
    return Waiting(
        sequence=sequence,
        created_at=expires_at - window_s,
        expires_at=expires_at,
        running_shards=running,
    )


def chosen(*batches: Waiting) -> int:
    found = next_batch(batches, now=NOW)
    assert found is not None
    return found.sequence


def test_nobody_waits_nobody_is_next() -> None:
    assert next_batch([], now=NOW) is None


def test_whoever_waits_alone_is_next_however_much_it_has() -> None:
    assert chosen(waiting(1, running=10_000)) == 1


def test_the_batch_with_the_fewest_running_shards_is_next() -> None:
    assert chosen(waiting(1, running=3), waiting(2, running=1), waiting(3, running=2)) == 2


def test_equal_shares_go_by_the_deadline_and_then_by_age() -> None:
    assert chosen(waiting(1, left_s=DAY_S), waiting(2, left_s=DAY_S - 1)) == 2
    assert chosen(waiting(2), waiting(1)) == 1


def test_a_small_batch_behind_a_huge_one_is_served_in_turns() -> None:
    running = Counter({1: 0, 2: 0})
    served = []
    for _ in range(6):
        served.append(chosen(*(waiting(n, running=running[n]) for n in running)))
        running[served[-1]] += 1
    assert served == [1, 2, 1, 2, 1, 2]


@pytest.mark.parametrize("window_s", [60, 3_600, DAY_S])
def test_a_batch_is_urgent_in_the_last_tenth_of_its_window(window_s: int) -> None:
    last = int(window_s * URGENT_FRACTION)
    calm = waiting(1, running=0)
    assert chosen(calm, waiting(2, running=9, left_s=last - 1, window_s=window_s)) == 2
    assert chosen(calm, waiting(2, running=9, left_s=last, window_s=window_s)) == 1


def test_among_urgent_batches_the_earliest_deadline_is_first_whatever_runs() -> None:
    assert chosen(waiting(1, running=0, left_s=20), waiting(2, running=9, left_s=10)) == 2
    assert chosen(waiting(1, running=1, left_s=10), waiting(2, running=0, left_s=10)) == 2
    assert chosen(waiting(2, left_s=10), waiting(1, left_s=10)) == 1


def test_a_batch_whose_window_has_closed_is_urgent_not_an_error() -> None:
    assert chosen(waiting(1), waiting(2, running=9, left_s=-5)) == 2


several = st.lists(
    st.builds(
        waiting,
        st.integers(1, 50),
        running=st.integers(0, 5),
        left_s=st.integers(-10, DAY_S),
        window_s=st.sampled_from([60, 3_600, DAY_S]),
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda batch: batch.sequence,
)


@given(several)
@modest
def test_the_choice_does_not_depend_on_the_order_of_asking(
    batches: list[Waiting],
) -> None:
    assert next_batch(batches, now=NOW) == next_batch(reversed(batches), now=NOW)
    assert next_batch(batches, now=NOW) in batches


@given(several)
@modest
def test_running_less_never_costs_a_batch_its_turn(batches: list[Waiting]) -> None:
    first = next_batch(batches, now=NOW)
    assert first is not None
    lighter = replace(first, running_shards=max(0, first.running_shards - 1))
    others = [batch for batch in batches if batch is not first]
    assert next_batch([*others, lighter], now=NOW) == lighter
