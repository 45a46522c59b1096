"""Finds out, from a few lines of a file, whether its lines share prefixes that an order could use.

A file that shares nothing, or everything, keeps its order, and finding that out has to cost next to
nothing: one line in 128 is looked at, in pairs of neighbours at random distances. Prefixes that a
few lines share are found all the same: among 650 of 50,000 lines that come in groups of four there
are a dozen pairs, and two are enough.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Final

from batchline.domain.prefixes import key_of, neighbours, prompt_of, trunk_of

_FIRST_LINES: Final = 256  # of the file, or as many as its first block has
_FIRST_BYTES: Final = 128 * 1024
_APART: Final = 256  # lines from one pair to the next, on average; 128 cost 1.5 %
_MOST_KEYS: Final = 16_384  # 3 MB; a file of over a million lines is sampled more thinly
_ENOUGH_PAIRS: Final = 2
_SEED: Final = 0  # the same file always has the same plan


class PrefixSample:
    """Keys of some lines, by the number of their model."""

    def __init__(self, endpoint: str, *, file_bytes: int) -> None:
        self._prompt = prompt_of(endpoint)
        self._file_bytes = file_bytes
        self._random = random.Random(_SEED)  # noqa: S311  # where to look, not a secret
        self._apart = 0  # 0: nothing seen yet
        self._next = 0  # the next pair begins so many lines after the last block
        self._keys: dict[int, list[bytes]] = {}

    def look(self, lines: Sequence[bytes], models: Sequence[int]) -> None:
        """Take some of the next lines of the file; `models` has the number of each one's model."""
        if self._prompt is None or not lines:
            return
        first = 0
        if self._apart == 0:
            size = sum(map(len, lines))
            lines_of_file = self._file_bytes * len(lines) // max(size, 1)
            self._apart = max(_APART, 2 * lines_of_file // _MOST_KEYS)
            first = min(len(lines), _FIRST_LINES, _FIRST_BYTES * len(lines) // max(size, 1))
            self._take(lines[:first], models)
        at = max(self._next, first)
        while at < len(lines):
            self._take(lines[at : at + 2], models[at : at + 2])
            # Not at equal distances: files are periodic too.
            at += self._random.randrange(2, 2 * self._apart - 2)
        self._next = at - len(lines)

    def _take(self, lines: Sequence[bytes], models: Sequence[int]) -> None:
        assert self._prompt is not None  # noqa: S101  # `look` asked
        for raw, model in zip(lines, models, strict=False):
            self._keys.setdefault(model, []).append(key_of(self._prompt(raw)))

    def trunks(self) -> Mapping[int, bytes] | None:
        """What most lines of each model begin with; None when no order is worth its while."""
        pairs = 0
        trunks = {}
        for model, keys in self._keys.items():
            trunks[model] = trunk = trunk_of(keys)
            keys.sort()
            pairs += sum(neighbours(one, other, trunk) for one, other in pairwise(keys))
        return trunks if pairs >= _ENOUGH_PAIRS else None
