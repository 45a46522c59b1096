"""The bytes of one request line: what a good line holds, and what is wrong with a bad one.

Two readers. `LineChecker` is validation's: it refuses what section 3.2 of the contract lists and
nothing else, since deeper mistakes in a body are the backend's to judge. `read_line` is the
worker's: it trusts that validation has passed and only cuts the line into its parts.

Bytes of a body are never re-serialised: what the user wrote is what the backend gets.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

import msgspec
from msgspec import UNSET, Raw, UnsetType

from batchline.domain.errors import BlobUnreadable
from batchline.domain.line_faults import MAX_DEPTH, problem_of, too_deep
from batchline.domain.model import Endpoint, LineProblem


# msgspec structs, not dataclasses: created once per line, at a fifth of the cost.
class CheckedLine(msgspec.Struct, frozen=True, gc=False):
    """What validation keeps of a good line; `inputs` counts the inputs of an embeddings request."""

    custom_id: str
    model: str
    inputs: int


class RequestLine(msgspec.Struct, frozen=True, gc=False):
    """A validated line, cut up. `custom_id_raw` is a JSON string token, quotes and escapes as they
    came in; `body` is the JSON object as it came in."""

    custom_id_raw: bytes
    body: bytes

    @property
    def model(self) -> str:
        """`body.model`, decoded at each call (0.4 us for 500 bytes); a shard knows it already."""
        return _decode_model(self.body).model


class _Parts(msgspec.Struct, gc=False):
    custom_id: Raw
    body: Raw


class _Model(msgspec.Struct, gc=False):
    model: str


class _CustomId(msgspec.Struct, gc=False):
    custom_id: str


class _GoodBody(msgspec.Struct, gc=False):
    model: str
    input: Raw | UnsetType = UNSET


class _GoodLine(msgspec.Struct, gc=False):
    custom_id: str
    body: _GoodBody


# Each `object` field is handed to the decoder's hook, once per *occurrence* of its key. msgspec by
# itself takes the last of two equal keys in silence; counting the calls makes the check for
# duplicates exact, escapes included, for 0.3 us a line (searching the bytes took 1.5).
class _Body(msgspec.Struct, gc=False):
    model: object
    stream: object = UNSET


class _ChatBody(_Body, gc=False):
    messages: Raw | UnsetType = UNSET


_NotArray = str | int | float | bool | None | dict[str, Raw]
_InputItem = _NotArray | list[Raw]


class _EmbeddingsBody(_Body, gc=False):
    # Any JSON value: what it should be is the backend's to judge. Spelled out, because a
    # second look at Raw, for its inputs to be counted, costs another microsecond.
    input: _NotArray | list[_InputItem] | UnsetType = UNSET


class _Line(msgspec.Struct, gc=False):
    custom_id: object
    method: object
    url: object
    body: _Body


class _ChatLine(msgspec.Struct, gc=False):
    custom_id: object
    method: object
    url: object
    body: _ChatBody


class _EmbeddingsLine(msgspec.Struct, gc=False):
    custom_id: object
    method: object
    url: object
    body: _EmbeddingsBody


_NUMBERS: Final = (int, float)  # bool is neither here

_decode_parts: Final = msgspec.json.Decoder(_Parts).decode
_decode_all_parts: Final = msgspec.json.Decoder(_Parts).decode_lines
_decode_model: Final = msgspec.json.Decoder(_Model).decode
_decode_custom_id: Final = msgspec.json.Decoder(_CustomId).decode
_decode_good: Final = msgspec.json.Decoder(_GoodLine).decode
_decode_array: Final = msgspec.json.Decoder(list[Raw]).decode

_LEADING_CUSTOM_ID: Final = re.compile(
    rb'[ \t]*\{[ \t]*"custom_id"[ \t]*:[ \t]*("[^"\\\x00-\x1f]*")[ \t]*,'
).match

# msgspec.DecodeError and UnicodeDecodeError are both ValueErrors.
_UNREADABLE: Final = (ValueError, RecursionError)


def read_line(raw: bytes) -> RequestLine:
    """Cut a validated line into its parts, in about 1 us for 600 bytes.

    Raises:
        BlobUnreadable: these bytes are not the line that was validated; the input is damaged.
    """
    try:
        parts = _decode_parts(raw)
    except _UNREADABLE:
        # Without the cause: its message may quote what the user sent.
        raise BlobUnreadable("the input no longer holds a request line here") from None
    return RequestLine(bytes(parts.custom_id), bytes(parts.body))


def read_lines(raw: bytes) -> list[RequestLine]:
    """`read_line` of each line in `raw`, blank ones apart, at two thirds of its cost.

    Raises:
        BlobUnreadable: as `read_line`, of any of them.
    """
    try:
        return [
            RequestLine(bytes(parts.custom_id), bytes(parts.body))
            for parts in _decode_all_parts(raw)
        ]
    except _UNREADABLE:
        raise BlobUnreadable("the input no longer holds request lines here") from None


def custom_id_raw_at(data: bytes, start: int, stop: int) -> bytes:
    """`read_line(data[start:stop]).custom_id_raw`, three times as fast where custom_id comes first.

    Raises:
        BlobUnreadable: as `read_line`.
    """
    # A validated line has each key once, so what is matched at its start is the key itself.
    match = _LEADING_CUSTOM_ID(data, start, stop)
    return match[1] if match else read_line(data[start:stop]).custom_id_raw


def custom_id_of(raw: bytes) -> str | None:
    """The decoded `custom_id` of a line that may be bad in any other way; None when it has none."""
    try:
        return _decode_custom_id(raw).custom_id
    except _UNREADABLE:
        return None


class LineChecker:
    """Checks lines against one batch's `endpoint`. Not to be shared between threads."""

    __slots__ = ("_endpoint", "accept")

    accept: Callable[[bytes], CheckedLine | None]
    """The line when it is good in the usual way (2 us for 600 bytes); None means: ask `explain`."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self.accept = _acceptor(endpoint)

    def check(self, raw: bytes, line_number: int) -> CheckedLine | LineProblem:
        """The line, or the first thing that is wrong with it in the order of the contract's keys.

        `raw` has no line ending. Never raises, whatever the bytes.
        """
        return self.accept(raw) or self.explain(raw, line_number)

    def explain(self, raw: bytes, line_number: int) -> CheckedLine | LineProblem:
        """As `check`, the slow and exact way (about 15 us); the line may turn out to be good."""
        problem = problem_of(raw, line_number, self._endpoint)
        if problem is not None:
            return problem
        line = _decode_good(raw)
        counts_inputs = self._endpoint == Endpoint.EMBEDDINGS
        inputs = _inputs(line.body.input) if counts_inputs else 0
        return CheckedLine(line.custom_id, line.body.model, inputs)


def _acceptor(endpoint: str) -> Callable[[bytes], CheckedLine | None]:
    """The fast check. A closure: its variables cost half of what attributes of `self` do."""
    seen: list[object] = []  # a value for each occurrence of a watched key in the line
    see, forget = seen.append, seen.clear

    def note(_type: type, value: object) -> object:
        see(value)
        return value

    shape: type[_Line | _ChatLine | _EmbeddingsLine] = _Line
    if endpoint == Endpoint.CHAT_COMPLETIONS:
        shape = _ChatLine
    elif endpoint == Endpoint.EMBEDDINGS:
        shape = _EmbeddingsLine
    decode = msgspec.json.Decoder(shape, dec_hook=note).decode

    def accept(raw: bytes) -> CheckedLine | None:
        forget()
        try:
            line = decode(raw)
            if not raw.isascii():
                raw.decode()  # what msgspec skips (`Raw`, unknown keys) it does not check for UTF-8
        except _UNREADABLE:
            return None
        body = line.body
        custom_id, model = line.custom_id, body.model
        if (
            # custom_id, method, url and model are there at least once, so 4 means exactly once.
            len(seen) != (4 if body.stream is UNSET else 5)
            or body.stream is True
            or line.url != endpoint
            or line.method != "POST"
            or type(custom_id) is not str
            or type(model) is not str
            or not custom_id
            or not model
            or (len(raw) > 2 * MAX_DEPTH and too_deep(raw))
        ):
            return None
        if isinstance(body, _ChatBody):
            return None if body.messages is UNSET else CheckedLine(custom_id, model, 0)
        if not isinstance(body, _EmbeddingsBody):
            return CheckedLine(custom_id, model, 0)
        given = body.input
        if not isinstance(given, list) or (given and type(given[0]) in _NUMBERS):
            return CheckedLine(custom_id, model, 1)
        return CheckedLine(custom_id, model, len(given))

    return accept


def _inputs(value: Raw | UnsetType) -> int:
    """How many inputs an embeddings request has: one, or as many as its array has strings."""
    if value is UNSET or not (raw := bytes(value)).startswith(b"["):
        return 1
    items = _decode_array(raw)
    # An array of numbers is one input that is already cut into tokens.
    return 1 if items and bytes(items[0])[:1] in b"-0123456789" else len(items)
