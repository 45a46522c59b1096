"""An input file as children read it: in blocks of lines, or one line by its place."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final, NamedTuple, Self

import google_crc32c

from batchline.domain.errors import BlobUnreadable

# 256 KiB stay in the cache while they are cut up: 1 MiB is 8 % slower, 4 MiB 15 %.
BLOCK_BYTES: Final = 256 * 1024

_BOM: Final = b"\xef\xbb\xbf"


class Block(NamedTuple):
    r"""Consecutive lines: the first begins at `offset`, each is followed by one b"\n".

    `lines` None stands for one line that is longer than allowed: its bytes were skipped. A list is
    the caller's until it asks for the next block, and is emptied then.
    """

    offset: int
    lines: list[bytes] | None


class InputFile:
    """The bytes of an input blob, `expected_bytes` of them.

    Raises (every method):
        BlobUnreadable: the file is gone, unreadable, or not as long as its row promises.
    """

    def __init__(self, path: str, expected_bytes: int) -> None:
        self.size = expected_bytes
        self._crc = 0  # of the bytes that `blocks` has read so far, from the beginning
        self._read_bytes = 0  # how many those are
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as exc:
            raise BlobUnreadable(f"the input cannot be opened: {exc.strerror}") from exc
        if os.fstat(self._fd).st_size != expected_bytes:
            self.close()
            raise BlobUnreadable(f"the input is not the promised {expected_bytes} bytes long")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._fd)

    def at(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes at `offset`."""
        data = self._read(offset, length)
        while len(data) < length:  # one read gives at most 2 GiB on Linux
            more = self._read(offset + len(data), length - len(data))
            if not more:
                raise BlobUnreadable(f"the input ends before byte {offset + length}")
            data += more
        return data

    def blocks(self, max_line_bytes: int) -> Iterator[Block]:
        r"""Every line of the file, holding at most one block and one line of it.

        A line ends at b"\n", which is not part of it; the last line may lack one. One byte-order
        mark at the start is skipped. After a final newline comes no empty line.
        """
        # No line inside one block may exceed the limit, so that only a joined one has to be asked.
        step = min(BLOCK_BYTES, max_line_bytes)
        held: list[bytes] = []  # the beginning of a line whose end is not read yet
        held_bytes = 0  # its length; grows on when the line is too long and `held` is dropped
        position = len(_BOM) if self._read(0, len(_BOM)) == _BOM else 0
        self._crc, self._read_bytes = google_crc32c.value(_BOM[:position]), position
        while block := self._read(position, step):
            self._crc = google_crc32c.extend(self._crc, block)
            self._read_bytes += len(block)
            start = position - held_bytes
            position += len(block)
            lines = block.split(b"\n")
            del block  # the lines are copies: with them it would be in memory twice
            held_bytes += len(lines[0])
            if held_bytes <= max_line_bytes:
                held.append(lines[0])
            else:
                held.clear()
            if len(lines) == 1:
                continue
            if held_bytes > max_line_bytes:
                yield Block(start, None)
                start += held_bytes + 1
                del lines[0]
            else:
                lines[0] = b"".join(held)
            held = [lines.pop()]
            held_bytes = len(held[0])
            if lines:
                yield Block(start, lines)
                lines.clear()  # else they were still there while the next ones are read
        if position != self.size:
            raise BlobUnreadable(f"the input ends at byte {position}")
        if held_bytes > max_line_bytes:
            yield Block(position - held_bytes, None)
        elif held_bytes:
            yield Block(position - held_bytes, [b"".join(held)])

    def check(self, crc: int) -> None:
        """Hold the whole file against its CRC-32C: what `blocks` went through need not be read."""
        while block := self._read(self._read_bytes, BLOCK_BYTES):
            self._crc = google_crc32c.extend(self._crc, block)
            self._read_bytes += len(block)
        if self._crc != crc:
            raise BlobUnreadable("the input has changed since it was stored")

    def _read(self, offset: int, length: int) -> bytes:
        try:
            return os.pread(self._fd, length, offset)
        except OSError as exc:
            raise BlobUnreadable(f"the input cannot be read: {exc.strerror}") from exc
