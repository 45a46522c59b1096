"""Which requests are one request: the digest of a body that any other spelling of it has too.

White space, the order of keys and the escapes in texts make no difference. Everything else does:
numbers are compared as they are spelled, since a backend may read 1.0 and 1 as two things.
"""

from __future__ import annotations

import json
from hashlib import blake2b
from typing import Any, Final

import msgspec
from msgspec import Raw

from batchline.domain.model import Endpoint

DIGEST_BYTES: Final = 16

# What these compute depends on nothing but the request.
_DETERMINISTIC: Final[frozenset[str]] = frozenset(
    {Endpoint.EMBEDDINGS, Endpoint.MODERATIONS, Endpoint.RERANK, Endpoint.SCORE}
)
# A request for a video starts a job of its own, which is more than its answer.
_NEVER: Final[frozenset[str]] = frozenset({Endpoint.VIDEOS})


class _Line(msgspec.Struct, gc=False):
    body: dict[str, Any]


class _RawLine(msgspec.Struct, gc=False):
    body: Raw


_decode: Final = msgspec.json.Decoder(_Line, float_hook=lambda text: Raw(text.encode())).decode
_decode_raw: Final = msgspec.json.Decoder(_RawLine).decode
_encode: Final = msgspec.json.Encoder(order="sorted").encode

# msgspec.DecodeError and UnicodeDecodeError are both ValueErrors.
_UNREADABLE: Final = (ValueError, RecursionError)


def digest_of(raw: bytes, endpoint: str) -> bytes | None:
    """The DIGEST_BYTES that all spellings of a validated line's body share, other bodies do not.

    None: the line has to run by itself, because it may be answered in another way each time, does
    more than to answer, or cannot be compared. About 5 us for 600 bytes.
    """
    try:
        body = _decode(raw).body
        if not _has_one_answer(body, endpoint):
            return None
        spelled = _encode(body)
        # Of keys that are there twice only the last is in `body`, and a backend may take another.
        if len(spelled) != _compact_bytes(raw) and _repeats_a_key(raw):
            return None
    except _UNREADABLE:
        return None
    return blake2b(spelled, digest_size=DIGEST_BYTES).digest()


def _has_one_answer(body: dict[str, Any], endpoint: str) -> bool:
    """Whether asking once is as good as asking again.

    A number of choices is not: they are to differ. `background`, `conversation` and tools that the
    server runs by itself leave something behind at each call.
    """
    if endpoint in _NEVER:
        return False
    if endpoint in _DETERMINISTIC:
        return True
    if any(body.get(key) not in (None, 1) for key in ("n", "best_of")):
        return False
    if body.get("background") or body.get("conversation") is not None:
        return False
    if endpoint == Endpoint.RESPONSES and not _only_functions(body.get("tools")):
        return False
    return _is_zero(body.get("temperature")) or type(body.get("seed")) is int


def _only_functions(tools: object) -> bool:
    if tools is None:
        return True
    return isinstance(tools, list) and all(
        isinstance(tool, dict) and tool.get("type") == "function" for tool in tools
    )


def _is_zero(value: object) -> bool:
    if isinstance(value, Raw):  # a number with a point or an exponent, as it is spelled
        return float(bytes(value)) == 0.0
    return type(value) is int and value == 0


def _compact_bytes(raw: bytes) -> int:
    """How long the body is without white space: as long as its sorted spelling, or longer where it
    has escapes that are not needed or keys that are there twice."""
    return len(msgspec.json.format(bytes(_decode_raw(raw).body), indent=-1))


class _Repeated(ValueError):
    """An object has a key twice."""


def _repeats_a_key(raw: bytes) -> bool:
    """The exact way, some 20 us: for the few bodies whose lengths differ."""
    try:
        json.loads(
            raw,
            object_pairs_hook=_distinct,
            parse_int=lambda _: 0,
            parse_float=lambda _: 0.0,
        )
    except _Repeated:
        return True
    return False


def _distinct(pairs: list[tuple[str, object]]) -> None:
    if len({key for key, _ in pairs}) != len(pairs):
        raise _Repeated
