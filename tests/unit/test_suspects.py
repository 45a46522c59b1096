"""Whose fault it was: what was common to the deaths is suspected, what died alone twice is lost."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from batchline.domain.ids import BatchId
from batchline.domain.model import ShardKey
from batchline.service.suspects import (
    ANNOUNCED_DEATHS,
    LOST_AFTER_DEATHS,
    SUSPECT_AFTER_DEATHS,
    Suspects,
)

KEY = ShardKey(batch_id=BatchId("batch_one"), number=3)


def test_before_the_third_death_nothing_is_suspected() -> None:
    suspects = Suspects()
    suspects.died(KEY, [1, 2], quarantined=False)
    suspects.died(KEY, [1, 2], quarantined=False)
    assert list(suspects.suspects(KEY, deaths=2)) == []
    assert list(suspects.suspects(KEY, deaths=3)) == [1, 2]


def test_a_line_that_was_not_under_way_at_a_death_is_no_suspect() -> None:
    suspects = Suspects()
    suspects.died(KEY, range(10), quarantined=False)
    suspects.died(KEY, [7, 30, 31], quarantined=False)
    assert list(suspects.suspects(KEY, deaths=3)) == [7]


def test_deaths_with_nothing_in_common_begin_anew() -> None:
    suspects = Suspects()
    suspects.died(KEY, [1], quarantined=False)
    suspects.died(KEY, [2, 3], quarantined=False)
    assert list(suspects.suspects(KEY, deaths=3)) == []
    suspects.died(KEY, [3, 4], quarantined=False)
    assert list(suspects.suspects(KEY, deaths=4)) == [3]


def test_a_server_that_knows_only_the_count_suspects_nobody() -> None:
    assert list(Suspects().suspects(KEY, deaths=50)) == []


def test_two_deaths_alone_and_the_line_is_lost() -> None:
    suspects = Suspects()
    for _ in range(ANNOUNCED_DEATHS):
        suspects.died(KEY, [1, 2], quarantined=False)
    suspects.died(KEY, [2], quarantined=True)
    assert list(suspects.lost(KEY)) == []
    suspects.died(KEY, [], quarantined=True)  # between two lines: nobody's
    suspects.died(KEY, [2], quarantined=True)
    assert list(suspects.lost(KEY)) == [2]
    assert list(suspects.suspects(KEY, deaths=6)) == [1, 2]
    suspects.cleared(KEY)
    assert list(suspects.lost(KEY)) == []


def test_a_batch_that_ended_is_forgotten() -> None:
    suspects = Suspects()
    other = ShardKey(batch_id=BatchId("batch_two"), number=3)
    for key in (KEY, other):
        for _ in range(LOST_AFTER_DEATHS):
            suspects.died(key, [5], quarantined=True)
    suspects.forget(KEY.batch_id)
    assert list(suspects.lost(KEY)) == []
    assert list(suspects.lost(other)) == [5]


@settings(deadline=None)
@given(seed=st.integers(0, 2**32), killer=st.integers(0, 99), window=st.integers(1, 64))
def test_one_killer_is_always_among_the_suspects_from_the_third_death_on(
    seed: int, killer: int, window: int
) -> None:
    """If this fails, a line that kills workers does so for ever."""
    chance = random.Random(seed)  # noqa: S311  # who is under way, not secrets
    suspects = Suspects()
    for death in range(2, SUSPECT_AFTER_DEATHS + 3):  # the first one was not announced
        under_way = {killer, *chance.sample(range(100), window)}
        suspects.died(KEY, under_way, quarantined=False)
        found = suspects.suspects(KEY, deaths=death)
        assert (killer in found) == (death >= SUSPECT_AFTER_DEATHS)
