"""Finds custom_ids that a file uses twice, in memory that does not grow with the file.

Each id is kept as a 64-bit hash beside its entry number. The pairs go into partitions by hash, are
spilled to one scratch file when SPILL_IDS of them are buffered, and are compared partition by
partition at the end. Equal hashes only raise a suspicion; whoever asks compares the ids themselves,
so that a clash of hashes never refuses a good file.
"""

from __future__ import annotations

import heapq
import os
from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from batchline.service.scratch import unnamed_file, write_all

SPILL_IDS: Final = 16_384  # 256 KiB of pairs; more of them cost as much again and save no time

# A partition is compared in memory, at about 100 bytes an id: up to some 3 MB, and of lines of
# 600 bytes 0.3 MB: a set of more than 4,915 takes four times the room at once.
_PARTITION_IDS: Final = 4_096
_MAX_PARTITIONS: Final = 1_024
_WRITTEN_BUFFERS: Final = 16  # copied together for a write; all at once would be 256 KiB more
_PLACES_AT_ONCE: Final = 64  # partitions of whose buffers it is read at once where they lie
_SHORTEST_LINE_BYTES: Final = 90  # the four keys and nothing in them

# How many earlier entries a suspect is compared with. More of one hash are equal ids, not clashes.
_EARLIER: Final = 8


class Suspect(NamedTuple):
    """An entry whose custom_id has the hash of some `earlier` entries' ids."""

    entry: int
    earlier: tuple[int, ...]


class CustomIds:
    """The ids of a file, added in entry order from 0. Close it to give the scratch space back."""

    def __init__(self, scratch_dir: Path, *, file_bytes: int) -> None:
        expected = file_bytes // _SHORTEST_LINE_BYTES // _PARTITION_IDS
        partitions = min(1 << expected.bit_length(), _MAX_PARTITIONS)
        self._mask = partitions - 1
        # Hash, entry, hash, entry ...: one array a partition takes one look-up less than two.
        self._buffers = [array("q") for _ in range(partitions)]
        self._appends = [buffer.append for buffer in self._buffers]
        self._scratch_dir = scratch_dir
        self._spill_fd: int | None = None
        # Of each spill. It begins with the ends of its buffers: in memory these would be four bytes
        # for each partition of each spill, a megabyte at ten million lines.
        self._starts = array("Q")
        self._buffered = 0
        self._spilled = 0  # bytes
        self.added = 0
        self.repeats = 0  # ids that repeat one of the same spill; a lower bound of all repeats

    def skip(self, entries: int = 1) -> None:
        """The next entries have no id that is compared with others."""
        self.added += entries

    def add(self, custom_ids: Sequence[str | None]) -> None:
        """Take the ids of the next entries; that there is none is an id like any other.

        Raises:
            OSError: the scratch file could not be written.
        """
        entry = self.added
        appends, mask = self._appends, self._mask
        for hashed in map(hash, custom_ids):
            append = appends[hashed & mask]
            append(hashed)
            append(entry)
            entry += 1
        self._buffered += entry - self.added
        self.added = entry
        if self._buffered >= SPILL_IDS:
            self._spill()

    def _spill(self) -> None:
        if self._spill_fd is None:
            self._spill_fd = unnamed_file(self._scratch_dir)
        ends = array("I", [0])
        for buffer in self._buffers:
            self.repeats += len(buffer) // 2 - len(set(buffer[::2]))
            ends.append(ends[-1] + len(buffer) * buffer.itemsize)
        self._starts.append(self._spilled)
        self._spilled += len(ends) * ends.itemsize + ends[-1]
        write_all(self._spill_fd, ends)
        for first in range(0, len(self._buffers), _WRITTEN_BUFFERS):
            some = self._buffers[first : first + _WRITTEN_BUFFERS]
            write_all(self._spill_fd, b"".join(some))
        for buffer in self._buffers:
            del buffer[:]
        self._buffered = 0

    def suspects(self, limit: int) -> list[Suspect]:
        """The first `limit` entries, ascending, whose id's hash was there before."""
        return heapq.nsmallest(limit, self.all_suspects())

    def all_suspects(self) -> Iterator[Suspect]:
        """Every such entry, in no order; one partition of them is in memory."""
        for pairs in self.partitions():
            yield from _repeated(pairs)

    def partitions(self) -> Iterator[array[int]]:
        """All pairs (hash, entry, hash, entry ...) in parts, each in entry order.

        Equal ids are in one part. Each is in memory by itself.
        """
        for first in range(0, len(self._buffers), _PLACES_AT_ONCE):
            some = self._buffers[first : first + _PLACES_AT_ONCE]
            places = [self._places(start, first, len(some)) for start in self._starts]
            for at, buffer in enumerate(some):
                yield self._load(places, at) + buffer

    def _places(self, spill: int, first: int, count: int) -> array[int]:
        """Where `count` buffers from `first` on begin in that spill, and where the last ends."""
        begins = array("I")
        at = spill + first * begins.itemsize
        begins.frombytes(self._read((count + 1) * begins.itemsize, at))
        buffers = spill + (len(self._buffers) + 1) * begins.itemsize
        return array("Q", [buffers + begin for begin in begins])

    def _load(self, places: Sequence[array[int]], at: int) -> array[int]:
        """The spilled pairs of one partition, in entry order: the `at`th of those in `places`."""
        pairs = array("q")
        for begins in places:
            pairs.frombytes(self._read(begins[at + 1] - begins[at], begins[at]))
        return pairs

    def _read(self, size: int, at: int) -> bytes:
        data = b"" if self._spill_fd is None else os.pread(self._spill_fd, size, at)
        if len(data) != size:
            raise OSError("a scratch file ends before its end")
        return data

    def close(self) -> None:
        if self._spill_fd is not None:
            os.close(self._spill_fd)
            self._spill_fd = None


def _repeated(pairs: array[int]) -> Iterator[Suspect]:
    hashes = pairs[::2]
    if len(set(hashes)) == len(hashes):
        return
    seen: set[int] = set()
    repeated: set[int] = set()
    for hashed in hashes:
        (repeated if hashed in seen else seen).add(hashed)
    earlier: dict[int, deque[int]] = {hashed: deque(maxlen=_EARLIER) for hashed in repeated}
    for hashed, entry in zip(hashes, pairs[1::2], strict=True):
        if hashed in repeated:
            others = earlier[hashed]
            if others:
                yield Suspect(entry, tuple(others))
            others.append(entry)
