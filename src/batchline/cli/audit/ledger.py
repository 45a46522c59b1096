"""Ids of all files side by side: which occur as often in the results as in the input.

Each id is kept as a 64-bit hash and its place, 16 bytes in scratch space on disk (`CustomIds`), and
compared part by part: a few megabytes of memory at ten million lines. A lost line can hide only
behind a line too many whose id has the same hash: one pair in 2**64.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from batchline.service.duplicates import CustomIds


class Place(NamedTuple):
    """A line of a file, from 1."""

    file: str
    line: int


class Ledger:
    """Ids by file, in the order in which the files are read; the input comes first."""

    def __init__(self, scratch: Path, *, total_bytes: int) -> None:
        self._ids = CustomIds(scratch, file_bytes=total_bytes)
        self._starts: list[tuple[str, int]] = []

    def begin(self, file: str) -> None:
        """What is added from here on are the lines of `file`, all of them, in order."""
        self._starts.append((file, self._ids.added))

    def add(self, ids: Sequence[str | None]) -> None:
        self._ids.add(ids)

    def skip(self) -> None:
        """The next line counts for nothing."""
        self._ids.skip()

    def unequal(self) -> Iterator[tuple[str, Place]]:
        """(kind, place) of each line that is `lost`, `foreign` or `doubled`, in no order."""
        behind_input = next((at for file, at in self._starts if file != "input"), self._ids.added)
        for pairs in self._ids.partitions():
            missing: Counter[int] = Counter()
            expected = set()
            hashes, entries = pairs[::2], pairs[1::2]
            for hashed, entry in zip(hashes, entries, strict=True):
                if entry < behind_input:
                    missing[hashed] += 1
                    expected.add(hashed)
                else:
                    missing[hashed] -= 1
            # From the end: of lines with one id it is the later ones that are too many.
            for hashed, entry in zip(reversed(hashes), reversed(entries), strict=True):
                left = missing[hashed]
                if left > 0 and entry < behind_input:
                    missing[hashed] -= 1
                    yield "lost", self._place(entry)
                elif left < 0 and entry >= behind_input:
                    missing[hashed] += 1
                    yield "doubled" if hashed in expected else "foreign", self._place(entry)

    def repeated(self) -> Iterator[tuple[Place, Sequence[Place]]]:
        """Each line whose id's hash was there before, and the places of earlier ones."""
        for suspect in self._ids.all_suspects():
            yield self._place(suspect.entry), [self._place(entry) for entry in suspect.earlier]

    def _place(self, entry: int) -> Place:
        file, start = next(one for one in reversed(self._starts) if one[1] <= entry)
        return Place(file, entry - start + 1)

    def close(self) -> None:
        self._ids.close()
