"""The requests of one shard, read from its input: many at once where they lie side by side."""

from __future__ import annotations

import os
from typing import Final

from batchline.domain import plan
from batchline.domain.errors import BlobUnreadable
from batchline.domain.lines import RequestLine, read_line, read_lines
from batchline.domain.splices import with_model

_BLOCK_BYTES: Final = 64 * 1024  # 100 lines of 600 bytes: a read for each costs 2.5 us a line
_FIRST_LINES: Final = 16
_MOST_LINES: Final = 128
_MOST_BETWEEN: Final = 16  # bytes between two lines of a block: line ends, blank lines


class Requests:
    """Of the shard whose part of the plan `entries` are, read from `fd`, which stays its owner's.

    A block of lines is cut up with the first of them. The plan says which lines follow and where
    they are. How many are cut depends on how many of the last block were asked for, so that lanes
    that take turns at distant places do not have whole blocks cut up for one line each. At most one
    block is held.

    `send_as`: the backends' name of the model, where the file has an alias.
    """

    __slots__ = ("_ahead", "_cut", "_entries", "_fd", "_seen", "_send_as")

    def __init__(self, fd: int, entries: bytes, *, send_as: str | None = None) -> None:
        self._fd = fd
        self._entries = entries
        self._send_as = send_as
        self._ahead: dict[int, RequestLine] = {}
        self._cut = 0  # lines in the last block
        self._seen = bytearray(len(entries) // plan.ENTRY_BYTES)  # 1: was in a block

    def read(self, index: int) -> RequestLine | None:
        """The request of an entry, as its backends are to get it.

        None where the input does not hold the line any more.
        """
        request = self._ahead.pop(index, None)
        return self._read(index) if request is None else request

    def peek(self, index: int) -> RequestLine | None:
        """As `read`, of a line that is read again soon."""
        request = self.read(index)
        if request is not None:
            self._ahead[index] = request
        return request

    def _read(self, index: int) -> RequestLine | None:
        try:
            if not self._seen[index]:
                self._cut_block(index)
                request = self._ahead.pop(index, None)
                if request is not None:
                    return request
            return self._read_alone(index)
        except (OSError, BlobUnreadable):
            return None

    def _cut_block(self, first: int) -> None:
        """Cut up the lines from this one on that lie side by side."""
        asked_for = self._cut - len(self._ahead)
        most = max(1, min(2 * asked_for, _MOST_LINES)) if self._cut else _FIRST_LINES
        self._ahead = {}
        start = stop = 0
        after = first
        block = self._entries[first * plan.ENTRY_BYTES : (first + most) * plan.ENTRY_BYTES]
        for index, (offset, length, _, _) in enumerate(plan.ENTRY.iter_unpack(block), first):
            if index == first:
                start = offset
            elif not (
                0 < offset - stop <= _MOST_BETWEEN and offset + length - start <= _BLOCK_BYTES
            ):
                break
            stop = offset + length
            after = index + 1
        self._cut = count = after - first
        self._seen[first:after] = b"\1" * count
        if count == 1:
            return
        try:
            lines = read_lines(os.pread(self._fd, stop - start, start))
            if len(lines) == count:
                if self._send_as is not None:
                    lines = [self._as_sent(line) for line in lines]
                self._ahead = dict(zip(range(first, after), lines, strict=True))
        except BlobUnreadable:
            pass  # of one of them; read alone, each shows which

    def _read_alone(self, index: int) -> RequestLine | None:
        offset, length, _, _ = plan.ENTRY.unpack_from(self._entries, index * plan.ENTRY_BYTES)
        raw = os.pread(self._fd, length, offset)
        return self._as_sent(read_line(raw)) if len(raw) == length else None

    def _as_sent(self, request: RequestLine) -> RequestLine:
        if self._send_as is None:
            return request
        return RequestLine(request.custom_id_raw, with_model(request.body, self._send_as))
