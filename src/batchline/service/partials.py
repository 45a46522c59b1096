"""Reads back what came of the lines that a stop cut off, for the lines that say so.

Runs in a child process. Holds where each body is, and one body at a time.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import google_crc32c

from batchline.domain.partials import HEAD_BYTES, line_number_of
from batchline.service.inputs import BLOCK_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class PartialsRange:
    """Committed records: bytes `start` to `stop` of the file at `path`, with their CRC-32C."""

    path: str
    start: int
    stop: int
    crc: int | None


class Partials:
    """The bodies of cut-off lines, by line number; the last record of a line counts.

    Records that are gone or damaged are left out: the line has its error without them, as it would
    have after a crash before they were committed. `unreadable` counts such ranges and bodies.
    """

    def __init__(self, ranges: Sequence[PartialsRange]) -> None:
        self._at: dict[int, tuple[str, int, int]] = {}
        self.unreadable = 0
        for one in ranges:
            try:
                self._at |= _places(one)
            except (OSError, ValueError):
                self.unreadable += 1

    def __len__(self) -> int:
        return len(self._at)

    def body_of(self, line_number: int) -> bytes | None:
        """What came of this line, or None."""
        place = self._at.get(line_number)
        if place is None:
            return None
        path, start, stop = place
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                body = os.pread(fd, stop - start, start)
            finally:
                os.close(fd)
        except OSError:
            body = b""  # it was readable a moment ago
        if len(body) != stop - start:
            self.unreadable += 1
            return None
        return body


def _places(one: PartialsRange) -> dict[int, tuple[str, int, int]]:
    """Where each body of a range is.

    Raises:
        OSError: the file cannot be read.
        ValueError: these are not the bytes that were committed.
    """
    found = {}
    fd = os.open(one.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        at, begun, crc = one.start, one.start, 0
        while at < one.stop:
            block = os.pread(fd, min(BLOCK_BYTES, one.stop - at), at)
            if not block:
                raise ValueError("the segment ends too early")
            crc = google_crc32c.extend(crc, block)
            seen = 0
            while (newline := block.find(b"\n", seen)) >= 0:
                number = line_number_of(os.pread(fd, HEAD_BYTES, begun))
                found[number] = (one.path, begun + HEAD_BYTES, at + newline)
                seen, begun = newline + 1, at + newline + 1
            at += len(block)
    finally:
        os.close(fd)
    if begun != one.stop or (one.crc is not None and crc != one.crc):
        raise ValueError("these are not the records that were committed")
    return found
