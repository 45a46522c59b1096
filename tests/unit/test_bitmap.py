"""One bit an entry: what is marked is found again, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchline.domain import bitmap
from batchline.domain.plan import SHARD_ENTRIES

modest = settings(max_examples=100, deadline=None)

sizes = st.integers(0, SHARD_ENTRIES + 9)


@st.composite
def shards(draw: st.DrawFn) -> tuple[int, set[int]]:
    """A number of entries, and which of them are settled."""
    entries = draw(sizes)
    marks = draw(st.sets(st.integers(0, entries - 1))) if entries else set()
    return entries, marks


def marked(entries: int, indexes: set[int]) -> bytearray:
    made = bitmap.empty(entries)
    for index in indexes:
        bitmap.mark(made, index)
    return made


def test_a_shard_of_a_thousand_takes_125_bytes() -> None:
    assert len(bitmap.empty(1_000)) == 125
    assert [len(bitmap.empty(n)) for n in (0, 1, 8, 9)] == [0, 1, 1, 2]


def test_the_bits_are_stored_least_significant_first() -> None:
    """The store keeps these bytes: another order would un-settle lines of older data."""
    assert marked(17, {0, 1, 7, 8, 16}) == bytes([0b1000_0011, 0b0000_0001, 0b0000_0001])


@given(shards())
@modest
def test_what_is_marked_is_marked_and_counted(shard: tuple[int, set[int]]) -> None:
    entries, indexes = shard
    made = marked(entries, indexes)
    assert {i for i in range(entries) if bitmap.is_marked(made, i)} == indexes
    assert bitmap.count(made) == bitmap.count(bytes(made)) == len(indexes)


@given(shards())
@modest
def test_the_clear_indexes_are_the_others_in_order(shard: tuple[int, set[int]]) -> None:
    entries, indexes = shard
    clear = list(bitmap.clear_indexes(marked(entries, indexes), entries))
    assert clear == [i for i in range(entries) if i not in indexes]


@given(shards())
@modest
def test_marking_twice_is_marking_once(shard: tuple[int, set[int]]) -> None:
    entries, indexes = shard
    once = marked(entries, indexes)
    twice = bytearray(once)
    for index in indexes:
        bitmap.mark(twice, index)
    assert twice == once


@given(
    st.integers(1, 64).flatmap(
        lambda n: st.tuples(st.just(n), *[st.sets(st.integers(0, n - 1))] * 2)
    )
)
@modest
def test_one_contains_another_when_all_its_bits_are_set(
    pair: tuple[int, set[int], set[int]],
) -> None:
    entries, outer, inner = pair
    contained = bitmap.contains(marked(entries, outer), bytes(marked(entries, inner)))
    assert contained is (inner <= outer)
    both = marked(entries, outer | inner)
    assert bitmap.contains(both, marked(entries, outer))
    assert bitmap.contains(both, marked(entries, inner))


def test_an_entry_past_the_last_byte_is_an_error_not_another_shards_bit() -> None:
    made = bitmap.empty(8)
    with pytest.raises(IndexError):
        bitmap.mark(made, 8)
    with pytest.raises(IndexError):
        bitmap.is_marked(made, 8)
