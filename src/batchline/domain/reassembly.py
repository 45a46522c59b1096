"""From the events of a streamed answer to the body that the same request has without streaming.

Three shapes: chat, completions, responses. Texts are joined as they were spelled, token by token
and without being decoded; what no rule here knows is kept. Pure: no socket, no clock.
"""

from __future__ import annotations

from typing import Final, Protocol

import msgspec
from msgspec import UNSET, Raw, UnsetType

from batchline.domain.growing import (
    EMPTY,
    NULL,
    GrowingObject,
    Merge,
    Value,
    decode_object,
    decode_whole,
    object_of,
)
from batchline.domain.model import Endpoint

DONE: Final = b"[DONE]"

# msgspec.DecodeError and UnicodeDecodeError are both ValueErrors.
_UNREADABLE: Final = (ValueError, RecursionError)


class NotAStream(ValueError):
    """An event does not belong to a stream of this shape. The message quotes nothing of it."""


class Reassembler(Protocol):
    """Puts one answer together.

    `failure` is the event in which the backend said that it failed, as JSON. `has_end`: the stream
    said that it is whole.
    """

    failure: bytes | None
    has_end: bool

    @property
    def size(self) -> int:
        """About how many bytes are held."""

    @property
    def may_end(self) -> bool:
        """Whether an orderly end of the connection would make it whole as well."""

    def add(self, name: bytes, data: bytes) -> None:
        """Take one event.

        Raises:
            NotAStream: it is none of this shape.
        """

    def body(self) -> bytes | None:
        """The body of what came so far, None when nothing of one has come. Not validated."""


def reassembler_for(endpoint: str) -> Reassembler | None:
    """A new one for an endpoint's answers; None where answers are not streamed."""
    match endpoint:
        case Endpoint.CHAT_COMPLETIONS:
            return Choices(chat=True)
        case Endpoint.COMPLETIONS:
            return Choices(chat=False)
        case Endpoint.RESPONSES:
            return Responses()
        case _:
            return None


# -- chat and completions ----------------------------------------------------------------------


class _Chunk(msgspec.Struct, gc=False):
    choices: list[Raw] | UnsetType | None = UNSET
    error: object = None


_decode_chunk: Final = msgspec.json.Decoder(_Chunk).decode


class Choices:
    """Chat and completions: chunks with pieces of choices, then `[DONE]`."""

    def __init__(self, *, chat: bool) -> None:
        self._chat = chat
        self._top: dict[str, bytes] = {}  # members of the body but its choices, as last told
        self._choices: dict[int, GrowingObject] = {}
        self._merge = Merge()
        self._top_size = 0
        self.failure: bytes | None = None
        self.has_end = False

    @property
    def size(self) -> int:
        return self._merge.size + self._top_size

    @property
    def may_end(self) -> bool:
        """Some servers end without `[DONE]`: then each choice has to say why it ended."""
        finished = [one.members.get("finish_reason", NULL) for one in self._choices.values()]
        return bool(finished) and all(reason != NULL for reason in finished)

    def add(self, name: bytes, data: bytes) -> None:
        """See `Reassembler.add`."""
        if data.strip() == DONE:
            if not self._top:
                raise NotAStream("a stream without a chunk")
            self.has_end = True
            return
        try:
            self._chunk(name, data)
        except NotAStream:
            raise
        except _UNREADABLE:
            raise NotAStream("an event that is no chunk of this endpoint") from None

    def _chunk(self, name: bytes, data: bytes) -> None:
        chunk = _decode_chunk(data)
        if name == b"error" or chunk.error is not None:
            self.failure = data
        elif chunk.choices is UNSET:
            raise NotAStream("an event without choices")
        else:
            self._take_top(data)
            for raw in chunk.choices or ():
                self._choice(bytes(raw))

    def _take_top(self, data: bytes) -> None:
        for key, value in decode_object(data).items():
            raw = bytes(value)
            before = self._top.get(key)
            if key == "choices":
                self._top.setdefault(key, b"[]")
            elif before is None or raw not in EMPTY:
                self._top_size += max(0, len(raw) - len(before or b"")) + len(key)
                self._top[key] = raw

    def _choice(self, raw: bytes) -> None:
        members = decode_object(raw)
        index = decode_whole(members.get("index", b"0"))
        choice = self._choices.get(index)
        if choice is None:
            choice = self._choices[index] = GrowingObject()
            self._merge.size += 16
        for key, value in members.items():
            piece = bytes(value)
            if key == "delta" and self._chat:
                message = choice.members.get("message")
                if not isinstance(message, GrowingObject):
                    message = choice.members["message"] = GrowingObject()
                if piece != NULL:
                    self._merge.into(message, piece, joins_texts=True)
            else:
                joins = key == "text" and not self._chat
                self._merge.member(choice, key, piece, joins_texts=joins)

    def body(self) -> bytes | None:
        """See `Reassembler.body`."""
        if not self._top:
            return None
        top = dict(self._top)
        if self._chat and top.get("object") == b'"chat.completion.chunk"':
            top["object"] = b'"chat.completion"'
        for choice in self._choices.values():
            if self._chat:
                choice.members["message"] = _message(choice.members.get("message"))
            choice.members.setdefault("finish_reason", NULL)
        choices = [choice.render() for _, choice in sorted(self._choices.items())]
        top["choices"] = b"[%b]" % b",".join(choices)
        return object_of(top)


def _message(found: Value | None) -> GrowingObject:
    """A message with what every message has, whether a piece of it came or not."""
    message = found if isinstance(found, GrowingObject) else GrowingObject()
    role = message.members.pop("role", b'"assistant"')
    content = message.members.pop("content", NULL)
    message.members = {"role": role, "content": content, **message.members}
    return message


# -- responses ---------------------------------------------------------------------------------


class _Typed(msgspec.Struct, gc=False):
    type: str | UnsetType = UNSET
    response: Raw | UnsetType = UNSET
    item: Raw | UnsetType = UNSET
    delta: Raw | UnsetType = UNSET
    output_index: int = 0
    content_index: int = 0


_decode_typed: Final = msgspec.json.Decoder(_Typed).decode
_ENDS: Final = frozenset({"response.completed", "response.incomplete", "response.failed"})


class Responses:
    """The Responses API: typed events, the last of which has the whole response."""

    def __init__(self) -> None:
        self._last: bytes | None = None  # the response as it was last told
        self._items: dict[int, bytes] = {}
        self._texts: dict[int, dict[int, bytearray]] = {}  # of items that are not done
        self._arguments: dict[int, bytearray] = {}  # likewise
        self.size = 0
        self.failure: bytes | None = None
        self.has_end = False

    @property
    def may_end(self) -> bool:
        return False

    def add(self, name: bytes, data: bytes) -> None:
        """See `Reassembler.add`."""
        if data.strip() == DONE:
            return  # some servers end with it here too; the whole response has come before
        try:
            self._add(name, _decode_typed(data), data)
        except NotAStream:
            raise
        except _UNREADABLE:
            raise NotAStream("an event that is no event of a response") from None

    def _add(self, name: bytes, event: _Typed, data: bytes) -> None:
        kind = name.decode() if event.type is UNSET else event.type
        if kind == "error":
            self.failure = data
        elif kind in _ENDS:
            if event.response is UNSET:
                raise NotAStream("a response ended without being told")
            self._last, self.has_end = bytes(event.response), True
            self._texts.clear()
            self._items.clear()
            self._arguments.clear()
            self.size = len(self._last)
        elif event.response is not UNSET:
            self._last = bytes(event.response)
            self.size = max(self.size, len(self._last))
        elif event.item is not UNSET:
            self._items[event.output_index] = bytes(event.item)
            self.size += len(self._items[event.output_index])
            if kind == "response.output_item.done":
                self._texts.pop(event.output_index, None)
                self._arguments.pop(event.output_index, None)
        elif event.delta is not UNSET:
            self._delta(kind, event, bytes(event.delta))

    def _delta(self, kind: str, event: _Typed, token: bytes) -> None:
        if token[:1] != b'"':
            return
        if kind == "response.output_text.delta":
            parts = self._texts.setdefault(event.output_index, {})
            parts.setdefault(event.content_index, bytearray()).extend(token[1:-1])
        elif kind == "response.function_call_arguments.delta":
            self._arguments.setdefault(event.output_index, bytearray()).extend(token[1:-1])
        self.size += len(token)

    def body(self) -> bytes | None:
        """See `Reassembler.body`; before its end, the response with the items as far as they came.

        Of an item that is not done its text and the arguments of a call are kept, not more.
        """
        if self._last is None or self.has_end:
            return self._last
        top = decode_object(self._last)
        items = [self._item(index) for index in sorted(self._items)]
        shown = {key: bytes(value) for key, value in top.items()}
        shown["output"] = b"[%b]" % b",".join(items)
        return object_of(shown)

    def _item(self, index: int) -> bytes:
        members = {key: bytes(value) for key, value in decode_object(self._items[index]).items()}
        if index in self._arguments:
            members["arguments"] = b'"%b"' % bytes(self._arguments[index])
        if index in self._texts:
            parts = [
                b'{"type":"output_text","annotations":[],"text":"%b"}' % bytes(text)
                for _, text in sorted(self._texts[index].items())
            ]
            members["content"] = b"[%b]" % b",".join(parts)
        return object_of(members)
