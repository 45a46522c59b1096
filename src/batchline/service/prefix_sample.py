"""Finds out, from a few lines of a file, whether its lines share prefixes that an order could use.

A file that shares nothing, or everything, keeps its order, and finding that out has to cost next to
nothing: one line in 256 is looked at, or 400 of a smaller file, in pairs of neighbours at random
distances. Prefixes that few lines share are found all the same: among 400 of 50,000 lines that come
in groups of four, five pairs are to be expected, and one is enough.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Final

from batchline.domain.prefixes import (
    DIGEST_BYTES,
    branch,
    key_of,
    levels_of,
    prompt_of,
    trunk_of,
)

_ONE_IN: Final = 256  # some 3 us each, which is what validation takes for a line: 0.4 %
_LEAST_KEYS: Final = 400  # of a file that has so many lines: 1.3 ms
_LEAST_BYTES: Final = 8 * 1024 * 1024  # but not more than this for them, where lines are long
_MOST_KEYS: Final = (
    16_384  # 3 MB where prompts are long; a file of over two million lines is sampled more thinly
)
_ENOUGH_PAIRS: Final = 1  # strangers with one digest are one in four billion
_TRUNK_KEYS: Final = 1_024  # what most of so many begin with is the trunk of all
_COMPARED_AT_ONCE: Final = 4_096
_SEED: Final = 0  # the same file always has the same plan


class _PackedKeys:
    """Keys without their zeros, one behind the other: 25 bytes a prompt of 500, 72 as objects.

    While a file is read they would be strewn among its lines besides, and keep memory from being
    given back.
    """

    def __init__(self) -> None:
        self._digests = bytearray()
        self._levels = bytearray()  # of each key

    def add(self, key: bytes) -> None:
        levels = levels_of(key)
        self._levels.append(levels)
        self._digests += key[: levels * DIGEST_BYTES]

    def some(self, most: int) -> list[bytes]:
        """At most so many of them, evenly."""
        return list(islice(self, 0, None, -(-len(self._levels) // most)))

    def __iter__(self) -> Iterator[bytes]:
        start = 0
        for levels in self._levels:
            stop = start + levels * DIGEST_BYTES
            yield bytes(self._digests[start:stop])
            start = stop


class PrefixSample:
    """Keys of some lines, by the number of their model."""

    def __init__(self, endpoint: str, *, file_bytes: int) -> None:
        self._prompt = prompt_of(endpoint)
        self._file_bytes = file_bytes
        self._random = random.Random(_SEED)  # noqa: S311  # where to look, not a secret
        self._apart = 0  # lines from one pair to the next, on average; 0: nothing seen yet
        self._next = 0  # the next pair begins so many lines after the last block
        self._keys: dict[int, _PackedKeys] = {}

    def look(self, lines: Sequence[bytes], models: Sequence[int]) -> None:
        """Take some of the next lines of the file; `models` has the number of each one's model."""
        if self._prompt is None or not lines:
            return
        if self._apart == 0:
            self._apart = self._distance(lines)
        at = self._next
        while at < len(lines):
            self._take(lines[at : at + 2], models[at : at + 2])
            # Not at equal distances: files are periodic too.
            at += self._random.randint(2, 2 * self._apart - 2)
        self._next = at - len(lines)

    def _distance(self, lines: Sequence[bytes]) -> int:
        """How far apart pairs are to be, if the file goes on like its first `lines`."""
        size = max(1, sum(map(len, lines)))
        of_file = self._file_bytes * len(lines) // size
        affordable = _LEAST_BYTES * len(lines) // size
        wanted = max(of_file // _ONE_IN, min(_LEAST_KEYS, affordable), 1)
        return max(2, 2 * of_file // min(wanted, _MOST_KEYS))

    def _take(self, lines: Sequence[bytes], models: Sequence[int]) -> None:
        assert self._prompt is not None  # noqa: S101  # `look` asked
        for raw, model in zip(lines, models, strict=False):
            if model not in self._keys:
                self._keys[model] = _PackedKeys()
            self._keys[model].add(key_of(self._prompt(raw)))

    def trunks(self) -> Mapping[int, bytes] | None:
        """What most lines of each model begin with; None when no order is worth its while."""
        pairs = 0
        trunks = {}
        for model, keys in self._keys.items():
            trunks[model] = trunk = trunk_of(keys.some(_TRUNK_KEYS))
            pairs += _repeated(array("Q", (branch(key, trunk) for key in keys)))
        return trunks if pairs >= _ENOUGH_PAIRS else None


def _repeated(branches: array[int]) -> int:
    """How many are there again, those that are 0 aside; with a bounded number in memory as objects:
    a set of sixteen thousand takes a megabyte."""
    repeated = 0
    parts = len(branches) // _COMPARED_AT_ONCE + 1
    for part in range(parts):
        some = [one for one in branches if one % parts == part and one]
        repeated += len(some) - len(set(some))
    return repeated
