"""Edits of a validated body that leave every other byte as it came in."""

from __future__ import annotations

import re
from functools import cache
from typing import Any, Final

import msgspec
from msgspec import UNSET, Raw, UnsetType

from batchline.domain.errors import BlobUnreadable


class _Model(msgspec.Struct, gc=False):
    model: Raw


class _Streaming(msgspec.Struct, gc=False):
    """What a body may have that speaks of streaming, or that no backend does while streaming."""

    stream: Raw | UnsetType = UNSET
    stream_options: Raw | UnsetType = UNSET
    background: Raw | UnsetType = UNSET
    best_of: Raw | UnsetType = UNSET
    use_beam_search: Raw | UnsetType = UNSET


_decode_streaming: Final = msgspec.json.Decoder(_Streaming).decode
_NO_STREAMING: Final = _Streaming()
_decode_model: Final = msgspec.json.Decoder(_Model).decode
_decode_text: Final = msgspec.json.Decoder(str).decode
_encode: Final = msgspec.json.encode

# What follows is matched against valid JSON only. Possessive (`++`, `*+`): a text of megabytes is
# walked once and leaves nothing to come back to.
_STRING: Final = rb'"(?:[^"\\]++|\\.)*+"'
_KEY: Final = re.compile(rb"[{,\s]*+(" + _STRING + rb")\s*+:\s*+").match
_SCALAR: Final = re.compile(_STRING + rb'|[^][{}",\s]++').match
_TO_BRACKET: Final = re.compile(rb'(?:[^][{}"]++|' + _STRING + rb")*+([][{}])").match

# msgspec.DecodeError and UnicodeDecodeError are both ValueErrors.
_UNREADABLE: Final = (ValueError, RecursionError)


def with_model(body: bytes, model: str) -> bytes:
    """`body` with `model` as the value of its top-level key `model`, which is there exactly once.

    About 1 us where the value's spelling occurs once in the body, as it nearly always does;
    otherwise the members before it are walked, 0.2 us for each bracket.

    Raises:
        BlobUnreadable: it is not the body that was validated; the input is damaged.
    """
    try:
        value = bytes(_decode_model(body).model)
    except _UNREADABLE:
        # Without the cause: its message may quote what the user sent.
        raise BlobUnreadable("the input no longer holds a request body here") from None
    start = body.find(value)
    if body.find(value, start + 1) != -1:
        start = _start_of_model(body)
    rest = memoryview(body)
    return b"".join((rest[:start], _encode(model), rest[start + len(value) :]))


def with_stream(body: bytes, *, usage: bool) -> bytes | None:
    """`body` asking for a stream, with its usage at the end where `usage` says so.

    None when it has a word of its own on streaming (`"stream": false` is one), asks for what is
    not streamed, or is no object. Otherwise nothing has to be cut out: the new keys come first.
    """
    try:
        if _decode_streaming(body) != _NO_STREAMING:
            return None
    except _UNREADABLE:
        return None
    inside = body.index(b"{") + 1
    wanted = b'"stream":true,"stream_options":{"include_usage":true}' if usage else b'"stream":true'
    # It has a `model` at least, so there is something behind the comma.
    return b"".join((body[:inside], wanted, b",", memoryview(body)[inside:]))


def with_member(body: bytes, name: str, value: str | int) -> bytes | None:
    """`body` with the top-level member `name`, of value `value`, before all others.

    None when it has a member of that name already.

    Raises:
        BlobUnreadable: as `with_model`.
    """
    try:
        found = _decoder_of(name).decode(body).value
    except _UNREADABLE:
        raise BlobUnreadable("the input no longer holds a request body here") from None
    if found is not UNSET:
        return None
    inside = body.index(b"{") + 1
    # It has a `model` at least, so there is something behind the comma.
    member = (_encode(name), b":", _encode(value), b",")
    return b"".join((body[:inside], *member, memoryview(body)[inside:]))


@cache
def _decoder_of(name: str) -> msgspec.json.Decoder[Any]:
    """Decodes objects whose member `name`, if they have it, is `value`."""
    member = ("value", Raw | UnsetType, UNSET)
    return msgspec.json.Decoder(msgspec.defstruct("Member", [member], rename={"value": name}))


def _start_of_model(body: bytes) -> int:
    """Where the value of the top-level key `model` begins."""
    at = 0
    while (key := _KEY(body, at)) is not None:
        at = key.end()
        if _decode_text(key[1]) == "model":
            return at
        at = _end_of_value(body, at)
    raise BlobUnreadable("the input no longer holds a request body here")


def _end_of_value(body: bytes, at: int) -> int:
    """Where the value that begins at `at` ends."""
    scalar = _SCALAR(body, at)
    if scalar is not None:
        return scalar.end()
    depth = 0
    while (bracket := _TO_BRACKET(body, at)) is not None:
        at = bracket.end()
        depth += 1 if bracket[1] in b"[{" else -1
        if depth == 0:
            return at
    raise BlobUnreadable("the input no longer holds a request body here")
