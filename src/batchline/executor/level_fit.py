"""How fast one request is at each level, from answers that lived through several. Pure.

Where an answer takes ten seconds, those that began at the present level are a round away. But each
one that ends now has so many tokens, and spent so many seconds at each level that there was; a few
of them tell the speeds, by least squares. What a level's begin cost those that were running then (a
burst of prompts that are read) is not known either: it is a number of tokens for each level, and
taken to be small as long as the answers do not say otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

_NOISE: Final = 0.03  # of an answer's tokens, at least: how far they may be off what is told here
_BURST_S: Final = 2.0  # of a request's speed: what the begin of a level costs, as a guess
_LEAST_ANSWERS: Final = 2  # that have lived at a level
_SLOW_S: Final = 4.0  # that answers live: of shorter ones a round is soon there
_TINY: Final = 1e-12  # keeps apart what cannot be told apart; far below what an answer weighs


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Tokens a second of one request, and the standard error as a part of it."""

    tokens_per_s: float
    error: float


class LevelFit:
    """Least squares over answers. Levels are named by the number that counts their changes."""

    def __init__(self) -> None:
        self._speeds: dict[int, int] = {}  # level -> its column
        self._bursts: dict[int, int] = {}
        self._matrix: list[list[float]] = []  # the normal equations
        self._right: list[float] = []
        self._squares = 0.0
        self._groups = 0
        self._answers = 0
        self._seconds = 0.0
        self._tokens = 0.0
        self._lived: dict[int, int] = {}  # how many answers have lived at a level

    def add(
        self, answers: int, tokens: float, seconds: Mapping[int, float], before: Mapping[int, int]
    ) -> None:
        """Some answers with so many tokens together, which spent so many `seconds` at each level.

        `before` are how many of them had begun before a level did.
        """
        if tokens < 1 or not seconds:
            return
        row = {self._column(self._speeds, level): spent for level, spent in seconds.items()}
        row |= {self._column(self._bursts, level): -count for level, count in before.items()}
        weight = answers / (tokens * tokens)  # they are off by a part of what they are
        for one, left in row.items():
            self._right[one] += weight * left * tokens
            for other, right in row.items():
                self._matrix[one][other] += weight * left * right
        self._squares += weight * tokens * tokens
        self._groups += 1
        self._answers += answers
        self._tokens += tokens
        self._seconds += sum(seconds.values())
        for level in seconds:
            self._lived[level] = self._lived.get(level, 0) + answers

    def speeds(self, at: int) -> dict[int, Speed]:
        """The speeds at the levels, those that can be told; empty while too little is known of `at`
        or answers are so fast that it is not worth it."""
        slow = self._answers and self._seconds >= _SLOW_S * self._answers
        if not slow or self._lived.get(at, 0) < _LEAST_ANSWERS:
            return {}
        guess = _BURST_S * self._tokens / self._seconds
        matrix = [list(row) for row in self._matrix]
        for column in range(len(matrix)):
            matrix[column][column] += _TINY
        for column in self._bursts.values():
            matrix[column][column] += (_NOISE / guess) ** 2
        inverse = _inverse(matrix)
        found = [sum(map(_product, row, self._right)) for row in inverse]
        noise = max(_NOISE**2, self._residue(found) / max(1, self._groups - len(self._speeds)))
        return {
            level: Speed(
                tokens_per_s=found[column],
                error=math.sqrt(noise * max(0.0, inverse[column][column])) / found[column],
            )
            for level, column in self._speeds.items()
            if found[column] > 0
        }

    def _residue(self, found: list[float]) -> float:
        """The sum of the squares that are left over."""
        fitted = sum(
            one * sum(map(_product, row, found)) - 2 * one * right
            for one, row, right in zip(found, self._matrix, self._right, strict=True)
        )
        return max(0.0, self._squares + fitted)

    def _column(self, columns: dict[int, int], level: int) -> int:
        if level not in columns:
            columns[level] = len(self._right)
            self._right.append(0.0)
            for row in self._matrix:
                row.append(0.0)
            self._matrix.append([0.0] * len(self._right))
        return columns[level]


def _product(one: float, other: float) -> float:
    return one * other


def _inverse(matrix: list[list[float]]) -> list[list[float]]:
    """By elimination; the matrix is symmetric and positive, a dozen columns at most."""
    size = len(matrix)
    rows = [[*row, *(float(i == at) for i in range(size))] for at, row in enumerate(matrix)]
    for at in range(size):
        best = max(range(at, size), key=lambda row: abs(rows[row][at]))
        rows[at], rows[best] = rows[best], rows[at]
        pivot = rows[at][at] or _TINY
        rows[at] = [value / pivot for value in rows[at]]
        for other in range(size):
            if other != at and (factor := rows[other][at]):
                rows[other] = [
                    value - factor * taken
                    for value, taken in zip(rows[other], rows[at], strict=True)
                ]
    return [row[size:] for row in rows]
