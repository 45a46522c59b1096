"""Results gathered into few pieces."""

from __future__ import annotations

import google_crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchline.executor.blocks import BLOCK_BYTES, LARGE_BYTES, gathered

SIZES = st.sampled_from([0, 1, 7, LARGE_BYTES - 1, LARGE_BYTES, BLOCK_BYTES + 1])


@given(st.lists(SIZES, max_size=12))
def test_the_pieces_are_the_bytes_in_order_and_their_checksum(sizes: list[int]) -> None:
    results = [bytes([n % 251]) * size for n, size in enumerate(sizes)]
    whole = b"".join(results)
    blocks = gathered(results)
    assert b"".join(blocks.pieces) == whole
    assert (blocks.size, blocks.crc()) == (len(whole), google_crc32c.value(whole))
    assert all(blocks.pieces)
    assert results == []


def test_a_large_result_is_not_copied() -> None:
    large = bytes(LARGE_BYTES)
    pieces = gathered([b"a", b"b", large, b"c", large]).pieces
    assert [len(piece) for piece in pieces] == [2, LARGE_BYTES, 1, LARGE_BYTES]
    assert pieces[1] is large
    assert pieces[3] is large


@pytest.mark.parametrize("count", [1, 1000])
def test_small_results_are_one_piece(count: int) -> None:
    assert len(gathered([b"x" * 600] * count).pieces) == 1
