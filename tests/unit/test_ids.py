"""The shapes of ids: those of the recorded traffic, and the same line id after every retry."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchline.domain import ids
from batchline.domain.ids import RANDOM_BYTES, BatchId

modest = settings(max_examples=100, deadline=None)

instants = st.integers(0, 2**32 - 1)
randoms = st.binary(min_size=RANDOM_BYTES, max_size=RANDOM_BYTES)
line_numbers = st.integers(1, 2**32 - 1)


@pytest.mark.rule("B2")
def test_a_batch_id_tells_when_it_was_created() -> None:
    made = ids.batch_id(0x67D3F1A2, bytes(range(12)))
    assert made == "batch_67d3f1a2000102030405060708090a0b"


@pytest.mark.rule("B2")
@given(instants, randoms)
@modest
def test_a_batch_id_has_the_shape_of_the_services(created_at: int, random: bytes) -> None:
    made = ids.batch_id(created_at, random)
    assert re.fullmatch(r"batch_[0-9a-f]{32}", made)
    assert int(made[6:14], 16) == created_at


@given(instants, instants, randoms, randoms)
@modest
def test_batch_ids_sort_by_their_second(a: int, b: int, one: bytes, other: bytes) -> None:
    if a != b:
        assert (ids.batch_id(a, one) < ids.batch_id(b, other)) is (a < b)


def test_a_clock_past_2106_still_makes_ids_of_the_right_length() -> None:
    assert ids.batch_id(2**32 + 5, bytes(12)) == "batch_00000005" + "0" * 24


@given(randoms)
@modest
def test_a_file_id_has_a_hyphen_and_24_characters(random: bytes) -> None:
    assert re.fullmatch(r"file-[0-9a-f]{24}", ids.file_id(random))


@given(instants, randoms, line_numbers)
@modest
def test_a_line_id_is_built_from_its_batch_and_number(
    created_at: int, random: bytes, number: int
) -> None:
    batch = ids.batch_id(created_at, random)
    made = ids.line_id(batch, number)
    assert made == f"batch_req_{random.hex()}{number:08x}"
    assert re.fullmatch(r"batch_req_[0-9a-f]{32}", made)
    assert made.startswith(ids.line_id_prefix(batch))


@given(st.lists(randoms, min_size=2, max_size=2, unique=True), line_numbers, line_numbers)
@modest
def test_no_two_lines_share_an_id(two: list[bytes], a: int, b: int) -> None:
    one, other = (ids.batch_id(1, random) for random in two)
    assert ids.line_id(one, a) != ids.line_id(other, b)
    assert (ids.line_id(one, a) == ids.line_id(one, b)) is (a == b)


def test_an_id_is_cut_from_the_end_and_never_parsed() -> None:
    """A batch id of another make (an imported one, say) gives line ids of the same shape."""
    assert ids.line_id(BatchId("batch_" + "z" * 24), 255) == "batch_req_" + "z" * 24 + "000000ff"
