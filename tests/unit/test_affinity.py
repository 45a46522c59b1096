"""Which backend each group of lines prefers."""

from __future__ import annotations

import math
import random
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchline.executor.affinity import LOAD, Preferences, Seat, groups, preferences, without

NAMES = ("gpu-a", "gpu-b", "gpu-c", "gpu-d")
SEATS = [Seat(name) for name in NAMES]


def hashes_of(count: int, *, lines: int = 1, seed: int = 1) -> list[int]:
    """`count` groups of `lines` lines each."""
    draw = random.Random(seed)  # noqa: S311  # the same groups in every run
    return [one for _ in range(count) for one in [draw.getrandbits(64) | 1] * lines]


def owners(hashes: list[int], seats: list[Seat]) -> dict[int, str]:
    """Whom each group goes to; none of them may be split."""
    found = preferences(hashes, seats)
    owned = {
        hashes[first]: seat.name
        for seat, ranges in zip(seats, found.own, strict=True)
        for first, _ in ranges
    }
    assert sum(len(ranges) for ranges in found.own) == len(owned)
    return owned


def entries_of(found: Preferences) -> list[int]:
    return [
        entry
        for ranges in [*found.own, found.free]
        for first, stop in ranges
        for entry in range(first, stop)
    ]


@given(
    st.lists(st.integers(0, 5), max_size=200),
    st.lists(st.floats(0.1, 10), min_size=2, max_size=5),
)
def test_every_line_is_preferred_once_or_free_and_no_backend_has_too_many(
    hashes: list[int], weights: list[float]
) -> None:
    seats = [Seat(f"b{n}", weight) for n, weight in enumerate(weights)]
    found = preferences(hashes, seats)
    assert sorted(entries_of(found)) == list(range(len(hashes)))
    assert {hashes[entry] for first, stop in found.free for entry in range(first, stop)} <= {0}
    for seat, ranges in zip(seats, found.own, strict=True):
        most = math.ceil(LOAD * len(hashes) * seat.weight / sum(weights))
        assert sum(stop - first for first, stop in ranges) <= most


def test_shards_agree_whatever_else_they_hold_and_in_whatever_order_backends_are_listed() -> None:
    some = hashes_of(40)
    alone = owners(some + [0] * 960, SEATS)
    beside_others = owners([0] * 900 + hashes_of(30, seed=2) + some[::-1], SEATS[::-1])
    assert alone.items() <= beside_others.items()


def test_when_a_backend_goes_only_its_own_groups_move() -> None:
    hashes = hashes_of(200) + [0] * 800
    before, after = owners(hashes, SEATS), owners(hashes, SEATS[:-1])
    moved = {one for one in before if before[one] != after[one]}
    assert moved == {one for one in before if before[one] == "gpu-d"}


def test_a_restart_does_not_change_what_is_preferred() -> None:
    """Names are hashed by a function that is the same in every process."""
    assert owners([7, 8, 9] + [0] * 97, SEATS) == {7: "gpu-d", 8: "gpu-d", 9: "gpu-c"}


@pytest.mark.parametrize("weights", [(1, 1, 1, 1), (4, 2, 1, 1)])
def test_groups_fall_to_backends_by_their_weights(weights: tuple[int, ...]) -> None:
    seats = [Seat(name, weight) for name, weight in zip(NAMES, weights, strict=True)]
    count = 4_000
    got = Counter(owners(hashes_of(count) + [0] * 16_000, seats).values())
    for seat in seats:
        assert got[seat.name] == pytest.approx(count * seat.weight / sum(weights), rel=0.1)


def test_a_group_that_is_too_big_for_one_backend_spills_over_to_the_next() -> None:
    found = preferences([5] * 1_000, SEATS)
    sizes = sorted(sum(stop - first for first, stop in ranges) for ranges in found.own)
    assert sizes == [61, 313, 313, 313]


@given(st.lists(st.integers(0, 2), max_size=50))
def test_groups_are_the_runs_of_equal_hashes(hashes: list[int]) -> None:
    found = list(groups(hashes))
    assert [one for one, first, stop in found for _ in range(first, stop)] == hashes
    assert all(a[0] != b[0] and a[2] == b[1] for a, b in pairwise(found))


@given(st.sets(st.integers(0, 30)))
def test_what_is_settled_is_in_no_range(settled: set[int]) -> None:
    left = without([[0, 10], [12, 30]], settled)
    wanted = [n for n in range(30) if n not in settled and n not in (10, 11)]
    assert [n for first, stop in left for n in range(first, stop)] == wanted
