"""How long a token takes at an engine by how many requests it has in hand. Pure.

Beside others what is in hand moves by itself, and one look at a time is too rough to compare two
numbers by: prompts that happen to be read between two looks change a token by more than a tenth
more requests do. So every look is kept under about how many were in hand, and numbers are compared
by all that was seen of them. More requests never make a token faster: where the means say so they
are one number's (isotonic regression).

An engine that has changed is told by looks that are off in the same direction one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

_ABOUT: Final = 1.15  # numbers in hand of which one is less than so many times the other are alike
_MEMORY: Final = 12.0  # looks: each newest one counts for at least one of so many
_KNOWN: Final = 3.0  # looks, before a number may be gone on from
_EXPONENT: Final = 0.2  # of the utility, as in `search`
_AS_GOOD: Final = 0.01  # less of a difference is none: the lower number then
_ON: Final = 1.15  # beyond what is known
_OFF: Final = 1.2  # times what was expected, or less than one such part: that is no chance
_OFF_LOOKS: Final = 3
_NO_MORE: Final = 0.9
_STALE_S: Final = (
    10.0  # of more than there are now: it may be otherwise by then, so it is tried again
)
_BETWEEN: Final = 4  # numbers that are weighed between two that were seen


@dataclass(slots=True)
class _Point:
    """What was seen of one number: means, and of how many looks (the memory's at most)."""

    in_hand: float
    token_s: float
    looks: float = 1.0
    seen_at: float = 0.0

    def add(self, now: float, in_hand: float, token_s: float) -> None:
        self.seen_at = now
        self.looks = min(self.looks + 1, _MEMORY)
        self.in_hand += (in_hand - self.in_hand) / self.looks
        self.token_s += (token_s - self.token_s) / self.looks


class TokenCurve:
    """Of one engine. Ask only when `is_known`."""

    def __init__(self) -> None:
        self._points: dict[int, _Point] = {}
        self._line: list[_Point] | None = []  # in order; None: to be made anew
        self._off: list[float] = []  # the last looks that were off, as parts of what was expected

    @property
    def is_known(self) -> bool:
        return bool(self._points)

    def note(self, now: float, in_hand: float, token_s: float) -> None:
        """A look: between it and the one before a token took so long."""
        about = _about(in_hand)
        if self.is_known:
            self._forget(lambda key, point: key > about and point.seen_at < now - _STALE_S)
        if self.is_known:  # still: all of it may have been of more, and old
            self._hear_of_a_change(about, in_hand, token_s)
        if about in self._points:
            self._points[about].add(now, in_hand, token_s)
        else:
            self._points[about] = _Point(in_hand, token_s, seen_at=now)
        self._line = None

    def at(self, in_hand: float) -> float:
        """How long a token takes with so many."""
        line = self._fitted()
        below = max((p for p in line if p.in_hand <= in_hand), key=_number, default=line[0])
        above = min((p for p in line if p.in_hand >= in_hand), key=_number, default=line[-1])
        if below.in_hand >= above.in_hand:
            return below.token_s if in_hand >= below.in_hand else above.token_s
        part = (in_hand - below.in_hand) / (above.in_hand - below.in_hand)
        return below.token_s + part * (above.token_s - below.token_s)

    def most_at(self, token_s: float) -> float:
        """With how many a token takes no longer; infinite when it took longer with none seen."""
        above = None
        for point in reversed(self._fitted()):
            if point.token_s <= token_s:
                if above is None:
                    return math.inf
                part = (token_s - point.token_s) / (above.token_s - point.token_s)
                return point.in_hand + part * (above.in_hand - point.in_hand)
            above = point
        least = self._fitted()[0]
        return least.in_hand * token_s / least.token_s

    def best(self) -> float | None:
        """The number of the highest utility, or one beyond all that is known if it still rises.

        None: too little was seen.
        """
        known = [point for point in self._fitted() if point.looks >= _KNOWN]
        if not known:
            return None
        utilities = [(_utility(*one), one[0]) for one in _between(known)]
        most, best = max(utilities)
        if best == known[-1].in_hand:
            return best * _ON
        return next(number for utility, number in utilities if utility >= most - _AS_GOOD)

    def _fitted(self) -> Sequence[_Point]:
        if self._line is None:
            self._line = _rising(sorted(self._points.values(), key=_number))
        return self._line

    def _hear_of_a_change(self, about: int, in_hand: float, token_s: float) -> None:
        off = token_s / self.at(in_hand)
        if self._off and (self._off[-1] > 1) != (off > 1):
            self._off.clear()
        if 1 / _OFF < off < _OFF:
            self._off.clear()
            return
        self._off.append(off)
        if len(self._off) < _OFF_LOOKS:
            return
        self._off.clear()
        self._forget(lambda key, _: key >= about)
        for point in self._points.values():
            # Fewer have no slower tokens, and bring no more of them in all.
            shared_s = _NO_MORE * token_s * point.in_hand / in_hand
            point.token_s = min(max(point.token_s, shared_s), token_s)

    def _forget(self, which: Callable[[int, _Point], bool]) -> None:
        self._points = {k: point for k, point in self._points.items() if not which(k, point)}
        self._line = None


def _utility(in_hand: float, token_s: float) -> float:
    return (1 - _EXPONENT) * math.log(in_hand) - math.log(token_s)


def _number(point: _Point) -> float:
    return point.in_hand


def _about(in_hand: float) -> int:
    return math.floor(math.log(max(1.0, in_hand)) / math.log(_ABOUT))


def _rising(points: Sequence[_Point]) -> list[_Point]:
    """The rising line that is nearest to the points (pool adjacent violators)."""
    pools: list[list[_Point]] = []
    means: list[float] = []
    for point in points:
        pools.append([point])
        means.append(point.token_s)
        while len(pools) > 1 and means[-2] > means[-1]:
            last = pools.pop()
            means.pop()
            pools[-1] += last
            looks = sum(one.looks for one in pools[-1])
            means[-1] = sum(one.token_s * one.looks for one in pools[-1]) / looks
    return [
        _Point(one.in_hand, mean, one.looks)
        for pool, mean in zip(pools, means, strict=True)
        for one in pool
    ]


def _between(points: Sequence[_Point]) -> Iterator[tuple[float, float]]:
    """Numbers and how long their tokens take, also of some between those that were seen."""
    for low, high in pairwise(points):
        for step in range(_BETWEEN):
            part = step / _BETWEEN
            yield (
                low.in_hand + part * (high.in_hand - low.in_hand),
                low.token_s + part * (high.token_s - low.token_s),
            )
    yield points[-1].in_hand, points[-1].token_s
