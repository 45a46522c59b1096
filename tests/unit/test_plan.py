"""The plan's bytes: a header that another version cannot be taken for, and entries of one size."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchline.domain import plan
from batchline.domain.plan import ENTRY, ENTRY_BYTES, HEADER_BYTES, PlanEntry

modest = settings(max_examples=100, deadline=None)

entries = st.builds(
    PlanEntry,
    offset=st.integers(0, 2**64 - 1),
    length=st.integers(0, 2**32 - 1),
    line_number=st.integers(1, 2**32 - 1),
    prefix_hash=st.integers(0, 2**64 - 1),
)


def test_a_header_of_this_version_is_read_whatever_follows_it() -> None:
    plan.check_header(plan.header())
    assert plan.models_known(plan.header())
    assert not plan.models_known(plan.header(models_known=False, followers=True))
    assert plan.check_header(plan.header(models_known=False, followers=True))
    assert plan.models_known(b"")  # whoever runs it finds out
    plan.check_header(plan.header() + b"\x00" * ENTRY_BYTES)


def test_the_layout_is_fixed() -> None:
    """Plans outlive an upgrade: if this fails, raise the version in MAGIC and read both."""
    assert plan.header() == b"BLPLAN\x00\x01" + (24).to_bytes(4, "little") + bytes(4)
    packed = ENTRY.pack(*PlanEntry(offset=1, length=2, line_number=3, prefix_hash=4))
    assert packed == b"".join(
        n.to_bytes(size, "little") for n, size in ((1, 8), (2, 4), (3, 4), (4, 8))
    )
    assert (HEADER_BYTES, ENTRY_BYTES) == (16, 24)


def test_a_plan_says_whether_entries_follow_others() -> None:
    """Plans of programs that knew of no such entries are read as ever."""
    assert plan.header() == b"BLPLAN\x00\x01\x18\x00\x00\x00\x00\x00\x00\x00"
    assert not plan.check_header(plan.header())
    assert plan.check_header(plan.header(followers=True))


def test_who_follows_has_the_hash_of_whom_it_follows() -> None:
    given = [7, plan.FOLLOWS, plan.FOLLOWS, 0, plan.FOLLOWS, 9]
    raw = b"".join(ENTRY.pack(0, 1, 1, one) for one in given)
    assert plan.prefix_hashes(raw) == [7, 7, 7, 0, 0, 9]


@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        (b"", "shorter than its header"),
        (plan.header()[:-1], "shorter than its header"),
        (b"BLPLAN\x00\x03" + plan.header()[8:], "not a plan of this version"),
        (b"\x00" * HEADER_BYTES, "not a plan of this version"),
        (plan.HEADER.pack(plan.MAGIC, ENTRY_BYTES + 8, 0), "not a plan of this version"),
    ],
)
def test_anything_else_is_refused(raw: bytes, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        plan.check_header(raw)


@given(st.lists(entries, max_size=20))
@modest
def test_entries_come_back_as_they_were_packed(planned: list[PlanEntry]) -> None:
    assert list(plan.unpack(b"".join(ENTRY.pack(*entry) for entry in planned))) == planned


@given(st.lists(entries, min_size=1, max_size=20), st.data())
@modest
def test_a_span_is_where_a_shards_entries_are(
    planned: list[PlanEntry], data: st.DataObject
) -> None:
    whole = plan.header() + b"".join(ENTRY.pack(*entry) for entry in planned)
    first = data.draw(st.integers(0, len(planned) - 1))
    count = data.draw(st.integers(0, len(planned) - first))
    offset, length = plan.span(first, count)
    assert list(plan.unpack(whole[offset : offset + length])) == planned[first : first + count]


@given(st.integers(0, 10_000), st.integers(1, 3_000))
@modest
def test_the_shards_of_a_plan_hold_every_entry_once(count: int, shard_entries: int) -> None:
    spans = list(plan.shard_spans(count, shard_entries))
    covered = [entry for first, size in spans for entry in range(first, first + size)]
    assert covered == list(range(count))
    assert all(size == shard_entries for _, size in spans[:-1])
    assert all(0 < size <= shard_entries for _, size in spans)


def test_a_shard_has_at_most_a_thousand_lines() -> None:
    assert list(plan.shard_spans(2_001)) == [(0, 1_000), (1_000, 1_000), (2_000, 1)]
    assert list(plan.shard_spans(0)) == []
