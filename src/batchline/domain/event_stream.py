"""Server-sent events, cut out of bytes that come in pieces of any size."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

_LINE_END: Final = re.compile(rb"\r\n|\n|\r")
_BOM: Final = b"\xef\xbb\xbf"


class Event(NamedTuple):
    """One event that has data; `name` is empty where the stream gives none."""

    name: bytes
    data: bytes


class EventStream:
    """A parser of the HTML standard's event streams, but for two things that it does not need
    (ids, the time to reconnect) and one that it forgives: a last event without its blank line."""

    __slots__ = ("_at_start", "_begun", "_begun_bytes", "_data", "_data_bytes", "_name")

    def __init__(self) -> None:
        self._begun: list[bytes] = []  # a line whose end has not come yet
        self._begun_bytes = 0
        self._at_start = True
        self._name = b""
        self._data: list[bytes] = []
        self._data_bytes = 0

    @property
    def held_bytes(self) -> int:
        """How much is held of an event that is not whole."""
        return self._begun_bytes + self._data_bytes

    def feed(self, piece: bytes) -> Iterator[Event]:
        """The events that `piece` completes."""
        if not piece:
            return
        if b"\n" not in piece and b"\r" not in piece and self._begun[-1:] != [b"\r"]:
            self._begun.append(piece)  # joined once, or a long event costs its square
            self._begun_bytes += len(piece)
            return
        *lines, rest = _LINE_END.split(b"".join((*self._begun, piece)))
        # A carriage return may be half of a line end: its line waits for the next byte.
        self._begun = [lines.pop(), b"\r"] if piece.endswith(b"\r") else [rest]
        self._begun_bytes = sum(map(len, self._begun))
        for line in lines:
            event = self._line(line)
            if event is not None:
                yield event

    def end(self) -> Iterator[Event]:
        """The event that the end of the stream completes, if there is one."""
        line = b"".join(self._begun).removesuffix(b"\r")
        self._begun, self._begun_bytes = [], 0
        for last in (line, b""):
            event = self._line(last)
            if event is not None:
                yield event

    def _line(self, line: bytes) -> Event | None:
        if self._at_start:
            self._at_start = False
            line = line.removeprefix(_BOM)
        if not line:
            name, data, self._name, self._data = self._name, self._data, b"", []
            self._data_bytes = 0
            return Event(name, b"\n".join(data)) if data else None
        field, _, value = line.partition(b":")  # a comment has an empty field
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
            self._data_bytes += len(value)
        elif field == b"event":
            self._name = value
        return None
