"""From the events of a streamed answer to the body that the same request has without streaming.

Three shapes: chat, completions, responses. Texts are joined as they were spelled, token by token
and without being decoded; what no rule here knows is kept. Pure: no socket, no clock.
"""

from __future__ import annotations

from typing import Final, Protocol

import msgspec
from msgspec import UNSET, Raw, UnsetType

from batchline.domain.model import Endpoint

DONE: Final = b"[DONE]"

_decode_object: Final = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_array: Final = msgspec.json.Decoder(list[Raw]).decode
_decode_whole: Final = msgspec.json.Decoder(int).decode
_encode: Final = msgspec.json.encode

# msgspec.DecodeError and UnicodeDecodeError are both ValueErrors.
_UNREADABLE: Final = (ValueError, RecursionError)

_NULL: Final = b"null"
_EMPTY: Final = frozenset((_NULL, b'""'))
# Texts that name something: some servers repeat them in each piece, so they are not joined.
_NAMES: Final = frozenset({"role", "id", "type", "call_id"})


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


# -- values that grow --------------------------------------------------------------------------


class _Text:
    """A JSON string that grows: its content as it was spelled, without the quotes."""

    __slots__ = ("content",)

    def __init__(self, token: bytes) -> None:
        self.content = bytearray(token[1:-1])

    def render(self) -> bytes:
        return b'"%b"' % bytes(self.content)


class _Array:
    __slots__ = ("items",)

    def __init__(self) -> None:
        self.items: list[bytes] = []

    def render(self) -> bytes:
        return b"[%b]" % b",".join(self.items)


class _Numbered:
    """An array whose items come in pieces, each with the `index` of the item that it belongs to."""

    __slots__ = ("drops_index", "items")

    def __init__(self, *, drops_index: bool) -> None:
        self.items: dict[int, _Object] = {}
        self.drops_index = drops_index

    def render(self) -> bytes:
        shown = []
        for _, item in sorted(self.items.items()):
            if self.drops_index:
                item.members.pop("index", None)
            shown.append(item.render())
        return b"[%b]" % b",".join(shown)


class _Object:
    __slots__ = ("members",)

    def __init__(self) -> None:
        self.members: dict[str, _Value] = {}

    def render(self) -> bytes:
        parts = [b"%b:%b" % (_encode(key), _rendered(v)) for key, v in self.members.items()]
        return b"{%b}" % b",".join(parts)


_Value = bytes | _Text | _Array | _Numbered | _Object


def _rendered(value: _Value) -> bytes:
    return value if isinstance(value, bytes) else value.render()


def _index_of(raw: bytes) -> int | None:
    """The `index` of an object; None when this is no object with one."""
    if raw[:1] != b"{":
        return None
    index = _decode_object(raw).get("index")
    try:
        return None if index is None else _decode_whole(index)
    except msgspec.DecodeError:
        return None


class _Merge:
    """Merges raw values into growing ones. `size` is what they hold, in bytes."""

    __slots__ = ("size",)

    def __init__(self) -> None:
        self.size = 0

    def into(self, target: _Object, raw: bytes, *, joins_texts: bool) -> None:
        """Merge the members of the object `raw` into `target`."""
        for key, value in _decode_object(raw).items():
            self.member(target, key, bytes(value), joins_texts=joins_texts)

    def member(self, target: _Object, key: str, raw: bytes, *, joins_texts: bool) -> None:
        """Merge one value into the member `key` of `target`.

        With `joins_texts` (inside a delta) texts are joined and items that have an `index` are
        merged with their like; without it (logprobs, what servers add) the last text stands and
        arrays are joined.
        """
        before = target.members.get(key)
        if before is None:
            self.size += len(key) + 4
        first = raw[:1]
        if first == b'"':
            self._text(target, key, before, raw, joins=joins_texts and key not in _NAMES)
        elif first == b"{":
            if not isinstance(before, _Object):
                before = target.members[key] = _Object()
            self.into(before, raw, joins_texts=joins_texts)
        elif first == b"[":
            self._array(target, key, before, raw, joins_texts=joins_texts)
        elif raw != _NULL or before is None:
            self._replace(target, key, before, raw)

    def _text(
        self, target: _Object, key: str, before: _Value | None, raw: bytes, *, joins: bool
    ) -> None:
        if not joins:
            if raw not in _EMPTY or before is None or before == _NULL:
                self._replace(target, key, before, raw)
        elif not isinstance(before, _Text):
            self.size += len(raw)
            target.members[key] = _Text(raw)
        elif key != "name" or before.content != raw[1:-1]:  # a function's name may be repeated
            self.size += len(raw)
            before.content += raw[1:-1]

    def _array(
        self, target: _Object, key: str, before: _Value | None, raw: bytes, *, joins_texts: bool
    ) -> None:
        items = [bytes(item) for item in _decode_array(raw)]
        indexes = [_index_of(item) for item in items] if joins_texts else []
        numbered = [(i, item) for i, item in zip(indexes, items, strict=False) if i is not None]
        if items and len(numbered) == len(items):
            if not isinstance(before, _Numbered):
                before = target.members[key] = _Numbered(drops_index=key == "tool_calls")
            for index, item in numbered:
                self.into(before.items.setdefault(index, _Object()), item, joins_texts=True)
            return
        if isinstance(before, _Numbered) and not items:
            return
        if not isinstance(before, _Array):
            before = target.members[key] = _Array()
        before.items += items
        self.size += len(raw)

    def _replace(self, target: _Object, key: str, before: _Value | None, raw: bytes) -> None:
        old = len(before) if isinstance(before, bytes) else 0
        self.size += max(0, len(raw) - old)
        target.members[key] = raw


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
        self._choices: dict[int, _Object] = {}
        self._merge = _Merge()
        self._top_size = 0
        self.failure: bytes | None = None
        self.has_end = False

    @property
    def size(self) -> int:
        return self._merge.size + self._top_size

    @property
    def may_end(self) -> bool:
        """Some servers end without `[DONE]`: then each choice has to say why it ended."""
        finished = [one.members.get("finish_reason", _NULL) for one in self._choices.values()]
        return bool(finished) and all(reason != _NULL for reason in finished)

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
        for key, value in _decode_object(data).items():
            raw = bytes(value)
            before = self._top.get(key)
            if key == "choices":
                self._top.setdefault(key, b"[]")
            elif before is None or raw not in _EMPTY:
                self._top_size += max(0, len(raw) - len(before or b"")) + len(key)
                self._top[key] = raw

    def _choice(self, raw: bytes) -> None:
        members = _decode_object(raw)
        index = _decode_whole(members.get("index", b"0"))
        choice = self._choices.get(index)
        if choice is None:
            choice = self._choices[index] = _Object()
            self._merge.size += 16
        for key, value in members.items():
            piece = bytes(value)
            if key == "delta" and self._chat:
                message = choice.members.get("message")
                if not isinstance(message, _Object):
                    message = choice.members["message"] = _Object()
                if piece != _NULL:
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
            choice.members.setdefault("finish_reason", _NULL)
        choices = [choice.render() for _, choice in sorted(self._choices.items())]
        top["choices"] = b"[%b]" % b",".join(choices)
        return b"{%b}" % b",".join(b"%b:%b" % (_encode(k), v) for k, v in top.items())


def _message(found: _Value | None) -> _Object:
    """A message with what every message has, whether a piece of it came or not."""
    message = found if isinstance(found, _Object) else _Object()
    role = message.members.pop("role", b'"assistant"')
    content = message.members.pop("content", _NULL)
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
        top = _decode_object(self._last)
        items = [self._item(index) for index in sorted(self._items)]
        shown = {key: bytes(value) for key, value in top.items()}
        shown["output"] = b"[%b]" % b",".join(items)
        return b"{%b}" % b",".join(b"%b:%b" % (_encode(k), v) for k, v in shown.items())

    def _item(self, index: int) -> bytes:
        members = {key: bytes(value) for key, value in _decode_object(self._items[index]).items()}
        if index in self._arguments:
            members["arguments"] = b'"%b"' % bytes(self._arguments[index])
        if index in self._texts:
            parts = [
                b'{"type":"output_text","annotations":[],"text":"%b"}' % bytes(text)
                for _, text in sorted(self._texts[index].items())
            ]
            members["content"] = b"[%b]" % b",".join(parts)
        return b"{%b}" % b",".join(b"%b:%b" % (_encode(k), v) for k, v in members.items())
