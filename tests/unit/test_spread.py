"""Who takes which line of a shard, and what is taken over from whom."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from batchline.executor.affinity import Preferences, Range, Seat, groups, preferences
from batchline.executor.spread import Spread

THREE = [Seat(name) for name in "abc"]


def spread(*own: list[Range], free: list[Range] | None = None) -> Spread:
    return Spread.of(Preferences(own=list(own), free=free or []))


def take_all(one: Spread, seat: int) -> list[int]:
    taken = []
    while (entry := one.take(seat)) is not None:
        taken.append(entry)
    return taken


@given(
    st.lists(st.integers(0, 6), max_size=120),
    st.sets(st.integers(0, 119)),
    st.lists(st.integers(0, 2), min_size=400, max_size=400),
)
def test_every_line_goes_once_whoever_asks_and_nobody_is_refused_while_there_is_one(
    hashes: list[int], settled: set[int], asking: list[int]
) -> None:
    one = Spread.of(preferences(hashes, THREE), settled)
    wanted = [n for n in range(len(hashes)) if n not in settled]
    taken = []
    for seat in asking:
        left = one.left
        entry = one.take(seat)
        if entry is None:
            entry = one.take_divided(seat)
        assert (entry is None) == (left == 0)
        if entry is not None:
            taken.append(entry)
            assert one.left == left - 1
    assert sorted(taken) == wanted
    assert one.counts == [0, 0, 0]


@given(st.lists(st.integers(1, 40), max_size=120), st.lists(st.integers(0, 2), max_size=300))
def test_no_group_is_divided_as_long_as_somebody_can_have_a_whole_one(
    hashes: list[int], asking: list[int]
) -> None:
    """`take` alone: all lines of a range go to the seat that got the first of them."""
    one = Spread.of(preferences(hashes, THREE))
    whole = {
        entry: first
        for first, stop in [tuple(part) for ranges in one.own for part in ranges]
        for entry in range(first, stop)
    }
    taker: dict[int, int] = {}
    for seat in asking:
        entry = one.take(seat)
        if entry is not None:
            assert taker.setdefault(whole[entry], seat) == seat


def test_own_lines_go_first_then_free_ones_then_those_of_others() -> None:
    one = spread([[0, 2]], [[2, 4], [6, 8]], free=[[4, 6]])
    assert take_all(one, 0) == [0, 1, 4, 5, 6, 7]
    assert one.take_divided(0) == 3
    assert take_all(one, 1) == [2]
    assert one.left == 0


def test_the_longest_list_is_taken_from_at_its_end() -> None:
    one = spread([], [[0, 4], [4, 6], [6, 8]], [[8, 9], [9, 10]])
    assert [one.take(0) for _ in range(5)] == [6, 7, 4, 5, 9]
    assert one.take(0) is None  # what is left are groups that others are at
    assert one.take(1) == 0


def test_half_of_a_group_is_taken_over_rather_than_nothing() -> None:
    one = spread([], [[0, 8]])
    assert one.take(1) == 0
    assert one.take(0) is None
    assert [one.take_divided(0) for _ in range(7)] == [4, 5, 6, 7, 2, 3, 1]
    assert one.take_divided(0) is None


def test_a_big_group_is_halved_among_the_idle() -> None:
    one = spread([[0, 900]], [], [])
    for _ in range(300):
        assert None not in [one.take_divided(seat) for seat in range(3)]
    assert one.left == 0


def test_groups_stay_whole_over_a_whole_shard_of_them() -> None:
    """A thousand lines in groups of four, three backends that take turns: hardly any is divided."""
    hashes = [1 + n // 4 for n in range(1_000)]
    one = Spread.of(preferences(hashes, THREE))
    seen: dict[int, set[int]] = {prefix: set() for prefix, _, _ in groups(hashes)}
    while one.left:
        for seat in range(3):
            entry = one.take(seat)
            if entry is None:
                entry = one.take_divided(seat)
            if entry is not None:
                seen[hashes[entry]].add(seat)
    assert sum(len(seats) for seats in seen.values()) <= len(seen) + 3
