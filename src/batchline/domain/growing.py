"""JSON values that grow by the pieces they come in, as streamed answers have them.

Texts are joined as they were spelled, token by token and without being decoded; what no rule here
knows is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec import Raw

decode_object: Final = msgspec.json.Decoder(dict[str, Raw]).decode
decode_whole: Final = msgspec.json.Decoder(int).decode
_decode_array: Final = msgspec.json.Decoder(list[Raw]).decode
_encode: Final = msgspec.json.encode

NULL: Final = b"null"
EMPTY: Final = frozenset((NULL, b'""'))
# Texts that name something: some servers repeat them in each piece, so they are not joined.
_NAMES: Final = frozenset({"role", "id", "type", "call_id"})


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
        self.items: dict[int, GrowingObject] = {}
        self.drops_index = drops_index

    def render(self) -> bytes:
        shown = []
        for _, item in sorted(self.items.items()):
            if self.drops_index:
                item.members.pop("index", None)
            shown.append(item.render())
        return b"[%b]" % b",".join(shown)


class GrowingObject:
    """An object whose members grow."""

    __slots__ = ("members",)

    def __init__(self) -> None:
        self.members: dict[str, Value] = {}

    def render(self) -> bytes:
        return object_of({key: _rendered(value) for key, value in self.members.items()})


Value = bytes | _Text | _Array | _Numbered | GrowingObject


def object_of(members: Mapping[str, bytes]) -> bytes:
    """The JSON object of these members, whose values are JSON already."""
    return b"{%b}" % b",".join(b"%b:%b" % (_encode(key), v) for key, v in members.items())


def _rendered(value: Value) -> bytes:
    return value if isinstance(value, bytes) else value.render()


def _index_of(raw: bytes) -> int | None:
    """The `index` of an object; None when this is no object with one."""
    if raw[:1] != b"{":
        return None
    index = decode_object(raw).get("index")
    try:
        return None if index is None else decode_whole(index)
    except msgspec.DecodeError:
        return None


class Merge:
    """Merges raw values into growing ones. `size` is what they hold, in bytes."""

    __slots__ = ("size",)

    def __init__(self) -> None:
        self.size = 0

    def into(self, target: GrowingObject, raw: bytes, *, joins_texts: bool) -> None:
        """Merge the members of the object `raw` into `target`."""
        for key, value in decode_object(raw).items():
            self.member(target, key, bytes(value), joins_texts=joins_texts)

    def member(self, target: GrowingObject, key: str, raw: bytes, *, joins_texts: bool) -> None:
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
            if not isinstance(before, GrowingObject):
                before = target.members[key] = GrowingObject()
            self.into(before, raw, joins_texts=joins_texts)
        elif first == b"[":
            self._array(target, key, before, raw, joins_texts=joins_texts)
        elif raw != NULL or before is None:
            self._replace(target, key, before, raw)

    def _text(
        self, target: GrowingObject, key: str, before: Value | None, raw: bytes, *, joins: bool
    ) -> None:
        if not joins:
            if raw not in EMPTY or before is None or before == NULL:
                self._replace(target, key, before, raw)
        elif not isinstance(before, _Text):
            self.size += len(raw)
            target.members[key] = _Text(raw)
        elif key != "name" or before.content != raw[1:-1]:  # a function's name may be repeated
            self.size += len(raw)
            before.content += raw[1:-1]

    def _array(
        self,
        target: GrowingObject,
        key: str,
        before: Value | None,
        raw: bytes,
        *,
        joins_texts: bool,
    ) -> None:
        items = [bytes(item) for item in _decode_array(raw)]
        indexes = [_index_of(item) for item in items] if joins_texts else []
        numbered = [(i, item) for i, item in zip(indexes, items, strict=False) if i is not None]
        if items and len(numbered) == len(items):
            if not isinstance(before, _Numbered):
                before = target.members[key] = _Numbered(drops_index=key == "tool_calls")
            for index, item in numbered:
                self.into(before.items.setdefault(index, GrowingObject()), item, joins_texts=True)
            return
        if isinstance(before, _Numbered) and not items:
            return
        if not isinstance(before, _Array):
            before = target.members[key] = _Array()
        before.items += items
        self.size += len(raw)

    def _replace(self, target: GrowingObject, key: str, before: Value | None, raw: bytes) -> None:
        old = len(before) if isinstance(before, bytes) else 0
        self.size += max(0, len(raw) - old)
        target.members[key] = raw
