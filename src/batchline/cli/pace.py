"""How fast a batch goes and how long it will take, with a band that says how sure that is.

Arithmetic only: whoever watches a batch hands in what was seen and when.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

WINDOW_S: Final = 60.0  # what was longer ago says little about what is to come
PIECES: Final = 6  # the window is cut into so many, and how much they differ makes the band
ENOUGH_S: Final = 1.0  # before that there is nothing worth saying
APART_S: Final = 0.1
_DEVIATIONS: Final = 2.0  # a band that holds nineteen times in twenty, were the pace steady


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeLeft:
    """Seconds. `most` is None when the pace is too uneven to bound it."""

    likely: float
    least: float
    most: float | None


class Pace:
    """The last minute of a batch's progress."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def saw(self, at_s: float, finished: int) -> None:
        """`finished` lines had a result at `at_s`, on any clock that only goes forward."""
        seen = self._seen
        if len(seen) > 1 and at_s - seen[-2][0] < APART_S:
            seen.pop()
        seen.append((at_s, finished))
        while len(seen) > 2 and at_s - seen[1][0] > WINDOW_S:
            seen.popleft()

    @property
    def lines_per_s(self) -> float | None:
        """None before there is enough to tell."""
        if not self._seen or self._span_s < ENOUGH_S:
            return None
        return (self._seen[-1][1] - self._seen[0][1]) / self._span_s

    def left(self, lines: int) -> TimeLeft | None:
        """How long `lines` more take; None before there is enough to tell or while it stands."""
        mean = self.lines_per_s
        if not mean:
            return None
        margin = _DEVIATIONS * self._error(mean)
        slowest = mean - margin
        return TimeLeft(
            likely=lines / mean,
            least=lines / (mean + margin),
            most=lines / slowest if slowest > 0 else None,
        )

    @property
    def _span_s(self) -> float:
        return self._seen[-1][0] - self._seen[0][0]

    def _error(self, mean: float) -> float:
        """The standard error of the mean pace."""
        start, piece_s = self._seen[0][0], self._span_s / PIECES
        borders = [self._finished_at(start + n * piece_s) for n in range(PIECES + 1)]
        paces = [(b - a) / piece_s for a, b in pairwise(borders)]
        variance = sum((pace - mean) ** 2 for pace in paces) / (PIECES - 1)
        # Lines that end independently scatter by the root of their number, however even it looked.
        scatter = mean / self._span_s
        return math.sqrt(max(variance / PIECES, scatter))

    def _finished_at(self, at_s: float) -> float:
        """Between two sightings, on the line between them."""
        before_s, before = self._seen[0]
        for after_s, after in self._seen:
            if after_s >= at_s:
                if after_s == before_s:
                    return float(after)
                return before + (after - before) * (at_s - before_s) / (after_s - before_s)
            before_s, before = after_s, after
        return float(before)
