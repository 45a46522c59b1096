"""Compressed answers: whole, in members, cut, and larger than they look."""

from __future__ import annotations

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchline.domain.errors import SentUnanswered
from batchline.executor.transport.decoding import decoded

LIMIT = 100_000


def bare(body: bytes) -> bytes:
    deflating = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return deflating.compress(body) + deflating.flush()


@given(st.lists(st.binary(max_size=40_000), min_size=1, max_size=4).filter(any))
def test_it_is_what_it_was(parts: list[bytes]) -> None:
    body = b"".join(parts)[:LIMIT]
    assert decoded(b"".join(map(gzip.compress, parts)), "gzip", limit_bytes=200_000) == b"".join(
        parts
    )
    assert decoded(zlib.compress(body), " Deflate", limit_bytes=LIMIT) == body
    assert decoded(bare(body), "deflate", limit_bytes=LIMIT) == body
    assert decoded(body, "identity", limit_bytes=0) == body


@pytest.mark.parametrize(
    ("body", "encoding", "reason"),
    [
        (gzip.compress(b"x" * (LIMIT + 1)), "gzip", "too_large"),
        (gzip.compress(b"x" * LIMIT) + gzip.compress(b"x"), "gzip", "too_large"),
        (gzip.compress(b"x" * 100)[:-1], "gzip", "malformed"),
        (gzip.compress(b"x" * 100) + b"more", "gzip", "malformed"),
        (zlib.compress(b"x") + b"more", "deflate", "malformed"),
        (b"nonsense", "gzip", "malformed"),
        (b"x", "br", "malformed"),
        (gzip.compress(b"x"), "gzip, gzip", "malformed"),
    ],
    ids=[
        *("too large", "too large together", "cut", "followed by text", "two of zlib"),
        *("nonsense", "unknown", "twice"),
    ],
)
def test_what_cannot_be_had_has_a_reason(body: bytes, encoding: str, reason: str) -> None:
    with pytest.raises(SentUnanswered) as caught:
        decoded(body, encoding, limit_bytes=LIMIT)
    assert caught.value.reason == reason


def test_a_body_of_many_small_members_is_quickly_read() -> None:
    """Copied whole for each member it would be 25 GB."""
    assert decoded(gzip.compress(b"") * 50_000, "gzip", limit_bytes=LIMIT) == b""
