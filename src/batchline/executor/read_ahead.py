"""The lines of one shard from its input: many with one system call where they lie side by side."""

from __future__ import annotations

import os
from typing import Final

_WINDOW_BYTES: Final = 64 * 1024  # 100 lines of 600 bytes: a read for each costs 2.5 µs a line
_MOST_IN_VAIN: Final = 4  # windows that served no second line: the order is not the file's


class ReadAhead:
    """Reads from `fd`, which stays its owner's. Holds at most one window of 64 KiB."""

    __slots__ = ("_data", "_fd", "_in_vain", "_served", "_start")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._data = b""
        self._start = 0
        self._served = False  # the window gave more than the line that it was read for
        self._in_vain = 0

    def read(self, offset: int, length: int) -> bytes:
        """The bytes there; fewer than `length` where the file ends.

        Raises:
            OSError: it cannot be read.
        """
        at = offset - self._start
        if at >= 0 and at + length <= len(self._data):
            self._served = True
            return self._data[at : at + length]
        if length * 4 > _WINDOW_BYTES or self._in_vain >= _MOST_IN_VAIN:
            return os.pread(self._fd, length, offset)
        if self._data and not self._served:
            self._in_vain += 1
        self._data = os.pread(self._fd, _WINDOW_BYTES, offset)
        self._start = offset
        self._served = False
        return self._data[:length]

    def forget(self) -> None:
        """No line will be read for the first time any more: give the memory back."""
        self._data = b""
        self._in_vain = _MOST_IN_VAIN
