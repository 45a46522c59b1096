"""The mean of a few samples and how far it may be off: they say themselves how many it takes."""

from __future__ import annotations

import math


class Samples:
    """Numbers from zero on, each of some weight."""

    def __init__(self) -> None:
        self.count = 0
        self._weight = self._sum = self._squares = 0.0

    def add(self, value: float, weight: float = 1.0) -> None:
        self.count += 1
        self._weight += weight
        self._sum += weight * value
        self._squares += weight * value * value

    @property
    def mean(self) -> float:
        return self._sum / self._weight

    @property
    def error(self) -> float:
        """The standard error of the mean, as a part of it; infinite for a single one, and of 0."""
        if self.count < 2 or not self.mean:
            return math.inf
        variance = max(0.0, self._squares / self._weight - self.mean * self.mean)
        return math.sqrt(variance / (self.count - 1)) / self.mean

    def clear(self) -> None:
        self.count = 0
        self._weight = self._sum = self._squares = 0.0
