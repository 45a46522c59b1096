"""The body of an answer as it was before a server compressed it, within a limit."""

from __future__ import annotations

import zlib
from typing import Final

from batchline.domain.errors import SentUnanswered

_GZIP: Final = 16 + zlib.MAX_WBITS
_GZIP_NAMES: Final = frozenset({"gzip", "x-gzip"})
# What follows a member is copied: a body of the smallest ones costs this times their number.
_PIECE_BYTES: Final = 16 * 1024
_ZLIB_CMF: Final = 8  # the low half of a zlib stream's first byte: deflate (RFC 1950, 2.2)


def decoded(body: bytes, encoding: str, *, limit_bytes: int) -> bytes:
    """`body` without its `encoding`, a Content-Encoding of RFC 9110: gzip, deflate or identity.

    Raises:
        SentUnanswered: `malformed`, or `too_large` for more than `limit_bytes`, which is found
            before more than that is in memory.
    """
    name = encoding.strip().lower()
    if name in ("", "identity") or not body:
        return body
    if name in _GZIP_NAMES:
        bits = _GZIP
    elif name == "deflate":
        # Meant is the zlib format; some servers send the bare stream (RFC 9110, 8.4.1.2).
        bits = zlib.MAX_WBITS if body[0] & 0x0F == _ZLIB_CMF else -zlib.MAX_WBITS
    else:
        raise SentUnanswered("a content encoding that was not asked for", reason="malformed")
    pieces, size, at, inflating = [], 0, 0, zlib.decompressobj(wbits=bits)
    while at < len(body):
        if inflating.eof:  # gzip may come in several members (RFC 1952, 2.2)
            inflating = zlib.decompressobj(wbits=bits)
        piece = body[at : at + _PIECE_BYTES]
        try:
            pieces.append(inflating.decompress(piece, limit_bytes + 1 - size))
        except zlib.error as exc:
            raise SentUnanswered("broken compression", reason="malformed") from exc
        size += len(pieces[-1])
        if size > limit_bytes:
            raise SentUnanswered(f"more than {limit_bytes} bytes", reason="too_large")
        at += len(piece) - len(inflating.unused_data)
    if not inflating.eof:
        raise SentUnanswered("compression that ends too early", reason="malformed")
    return b"".join(pieces)
