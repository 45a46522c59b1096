"""The lines of one shard that are still to go, by who prefers them: taken, and taken over. Pure.

A backend takes the lines that it prefers, then those that nobody does, and then, rather than be
idle, takes over what others prefer: a whole group that nobody has begun, from the end of the
longest list, which costs no cache anything; only when there is none, half of what is left of a
group that another one is at. What it took over is its own from then on.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from batchline.executor.affinity import Preferences, Range, without


@dataclass(slots=True)
class Spread:
    """Ranges of entries, each list with the next one at its end. `left` counts what is in them."""

    own: list[list[Range]]
    free: list[Range]
    counts: list[int]  # of `own`
    left: int

    @classmethod
    def of(cls, preferences: Preferences, settled: Collection[int] = ()) -> Spread:
        """Everything but the `settled` entries."""
        own = [without(ranges, settled)[::-1] for ranges in preferences.own]
        free = without(preferences.free, settled)[::-1]
        counts = [_count(ranges) for ranges in own]
        return cls(own, free, counts, sum(counts) + _count(free))

    def entries(self) -> set[int]:
        """All that are left."""
        lists = (*self.own, self.free)
        return {n for ranges in lists for first, stop in ranges for n in range(first, stop)}

    def take(self, seat: int) -> int | None:
        """The next entry for `seat` that costs no cache anything; None when there is none."""
        ranges = self.own[seat]
        if not ranges:
            if self.free:
                self.left -= 1
                return _next(self.free)
            if not self._take_over(seat):
                return None
        self.counts[seat] -= 1
        self.left -= 1
        return _next(ranges)

    def take_divided(self, seat: int) -> int | None:
        """An entry for a seat that would be idle otherwise; None when nothing is left at all."""
        if not self.left:
            return None
        if not self.own[seat] and not self.free:
            self._divide(seat)
        return self.take(seat)

    def _take_over(self, seat: int) -> bool:
        """The last group of the longest list of those that have more than one."""
        longest = -1
        for other, ranges in enumerate(self.own):
            if len(ranges) > 1 and (longest < 0 or self.counts[other] > self.counts[longest]):
                longest = other
        if longest < 0:
            return False
        self._give(self.own[longest].pop(0), longest, seat)
        return True

    def _divide(self, seat: int) -> None:
        """The second half of the last group of the longest list; of one line, that line."""
        longest = max(range(len(self.own)), key=self.counts.__getitem__)
        last = self.own[longest][0]
        middle = (last[0] + last[1]) // 2
        half = [middle, last[1]]
        if middle == last[0]:
            self.own[longest].pop(0)
        else:
            last[1] = middle
        self._give(half, longest, seat)

    def _give(self, part: Range, giver: int, taker: int) -> None:
        self.own[taker].append(part)
        lines = part[1] - part[0]
        self.counts[giver] -= lines
        self.counts[taker] += lines


def _next(ranges: list[Range]) -> int:
    current = ranges[-1]
    entry = current[0]
    current[0] = entry + 1
    if current[0] == current[1]:
        ranges.pop()
    return entry


def _count(ranges: Sequence[Range]) -> int:
    return sum(stop - first for first, stop in ranges)
