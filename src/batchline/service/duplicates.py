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

SPILL_IDS: Final = 32_768  # 512 KiB of pairs; twice as many cost 2 MiB more and save no time

# A partition is compared in memory, at about 100 bytes an id: up to some 3 MB, and of lines of
# 600 bytes 0.3 MB: a set of more than 4,915 takes four times the room at once.
_PARTITION_IDS: Final = 32_768
_MAX_PARTITIONS: Final = 1_024
_WRITTEN_BUFFERS: Final = 16  # copied together for a write; all at once would be 512 KiB more
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
        self._starts = array("Q")  # of each spill
        self._ends = array("I")  # of each buffer in its spill: spill-major, partition-minor
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
        end = 0
        for buffer in self._buffers:
            self.repeats += len(buffer) // 2 - len(set(buffer[::2]))
            end += len(buffer) * buffer.itemsize
            self._ends.append(end)
        self._starts.append(self._spilled)
        self._spilled += end
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
        for number in range(self._mask + 1):
            yield self._load(number)

    def _load(self, number: int) -> array[int]:
        """All pairs of one partition, in entry order."""
        pairs = array("q")
        if self._spill_fd is not None:
            for spill, start in enumerate(self._starts):
                at = spill * (self._mask + 1) + number
                begin = self._ends[at - 1] if number else 0
                pairs.frombytes(os.pread(self._spill_fd, self._ends[at] - begin, start + begin))
        pairs.extend(self._buffers[number])
        return pairs

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
