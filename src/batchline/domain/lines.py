"""The bytes of one request line: what a good line holds, and what is wrong with a bad one.

Two readers. `LineChecker` is validation's: it refuses what section 3.2 of the contract lists and
nothing else, since deeper mistakes in a body are the backend's to judge. `read_line` is the
worker's: it trusts that validation has passed and only cuts the line into its parts.

Bytes of a body are never re-serialised: what the user wrote is what the backend gets.
"""

from __future__ import annotations

import json
import re
from typing import Final, Literal, NoReturn

import msgspec
from msgspec import UNSET, Raw, UnsetType

from batchline.domain.errors import BlobUnreadable
from batchline.domain.model import Endpoint, LineProblem

# msgspec and json both give up at the interpreter's recursion limit, less the frames already there:
# a line that just passed in validation could then fail in a worker, whose stack is deeper. A limit
# of our own, well below the default of 1,000, means the same everywhere.
MAX_DEPTH: Final = 512

# Values from the file that go into a message are cut here; a custom_id may be megabytes long.
_QUOTED_CHARS: Final = 256

_KEYS: Final = ("custom_id", "method", "url", "body")

_STREAMING_API: Final = {
    Endpoint.CHAT_COMPLETIONS: "Chat Completions",
    Endpoint.COMPLETIONS: "Completions",
    Endpoint.EMBEDDINGS: "Embeddings",
    Endpoint.RESPONSES: "Responses",
}


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


# Each `object` field is handed to `LineChecker._note`, once per *occurrence* of its key. msgspec by
# itself takes the last of two equal keys in silence; counting the calls makes the check for
# duplicates exact, escapes included, for 0.3 us a line (searching the bytes took 1.5).
class _Body(msgspec.Struct, gc=False):
    model: object
    stream: object = UNSET


class _ChatBody(_Body, gc=False):
    messages: Raw | UnsetType = UNSET


class _EmbeddingsBody(_Body, gc=False):
    input: Raw | UnsetType = UNSET


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


_decode_parts: Final = msgspec.json.Decoder(_Parts).decode
_decode_model: Final = msgspec.json.Decoder(_Model).decode
_decode_custom_id: Final = msgspec.json.Decoder(_CustomId).decode
_decode_any_raw: Final = msgspec.json.Decoder(Raw).decode
_decode_array: Final = msgspec.json.Decoder(list[Raw]).decode

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


def custom_id_of(raw: bytes) -> str | None:
    """The decoded `custom_id` of a line that may be bad in any other way; None when it has none."""
    try:
        return _decode_custom_id(raw).custom_id
    except _UNREADABLE:
        return None


class LineChecker:
    """Checks lines against one batch's `endpoint`. Not to be shared between threads."""

    __slots__ = ("_counts_inputs", "_decode", "_endpoint", "_needs_messages", "_noted")

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._needs_messages = endpoint == Endpoint.CHAT_COMPLETIONS
        self._counts_inputs = endpoint == Endpoint.EMBEDDINGS
        self._noted = 0  # occurrences of the six watched keys in the line being decoded
        shape: type[_Line | _ChatLine | _EmbeddingsLine] = _Line
        if self._needs_messages:
            shape = _ChatLine
        elif self._counts_inputs:
            shape = _EmbeddingsLine
        self._decode = msgspec.json.Decoder(shape, dec_hook=self._note).decode

    def _note(self, _type: type, value: object) -> object:
        self._noted += 1
        return value

    def check(self, raw: bytes, line_number: int) -> CheckedLine | LineProblem:
        """The line, or the first thing that is wrong with it in the order of the contract's keys.

        `raw` has no line ending. Never raises, whatever the bytes.
        """
        return self.accept(raw) or self.explain(raw, line_number)

    def accept(self, raw: bytes) -> CheckedLine | None:
        """The line when it is good in the usual way; None means: ask `explain`."""
        self._noted = 0
        try:
            line = self._decode(raw)
            if not raw.isascii():
                raw.decode()  # what msgspec skips (`Raw`, unknown keys) it does not check for UTF-8
        except _UNREADABLE:
            return None
        body = line.body
        custom_id = line.custom_id
        model = body.model
        if (
            # custom_id, method, url and model are there at least once, so 4 means exactly once.
            self._noted != (4 if body.stream is UNSET else 5)
            or line.url != self._endpoint
            or line.method != "POST"
            or not isinstance(custom_id, str)
            or not custom_id
            or not isinstance(model, str)
            or not model
            or body.stream is True
            or (len(raw) > 2 * MAX_DEPTH and too_deep(raw))
        ):
            return None
        if isinstance(body, _ChatBody):
            return None if body.messages is UNSET else CheckedLine(custom_id, model, 0)
        if isinstance(body, _EmbeddingsBody):
            return CheckedLine(custom_id, model, _inputs(body.input))
        return CheckedLine(custom_id, model, 0)

    def explain(self, raw: bytes, line_number: int) -> CheckedLine | LineProblem:
        """As `check`, by the slow and exact way (about 15 us); the line may turn out to be good."""
        try:
            pairs = _object_of(raw)
            values = {key: _only(pairs, key) for key in _KEYS}
            custom_id = _text(values["custom_id"], "custom_id")
            method = _text(values["method"], "method")
            if method != "POST":
                _refuse("invalid_value", _quoting("Invalid value: '{}'. Only 'POST' works.", method), "method")
        except _Refused as refused:
            return refused.at(line_number)
        return CheckedLine(custom_id, "", 0)
