"""Requests of others at an engine: how many there are, and what ours may cost them. Pure.

An engine's page counts all that it has in hand; what is not ours is somebody's who may be waiting
for it. They go first: what they have in hand is taken off what we may have, the most of the last
second and a half of it, so that room is given back at the next look and taken again a little later.

While there are others, no token may take longer than `slowdown` times what it takes with few
requests at once. That matters of an engine without a knee, which is slower for everybody with each
request. What "with few" comes to is the shortest that was seen; when even with our least it is
longer than that, what was seen is out of date (the requests are others now) and is taken anew.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

_LOOKS: Final = 3  # of which the most counts
_GONE_AFTER_S: Final = 10.0  # without a request of others: nobody is there
_BLIND_S: Final = 10.0  # without a page: what it said last is no longer so
_DOWN: Final = 0.95  # of what would be just enough
_UP: Final = 1.1
_FAR: Final = 3.0  # times what is in hand: a cap so high is none
_AGAIN_BELOW: Final = 0.9  # of what a token may take


class Neighbours:
    """What is known of others. `slowdown` 0: nothing is asked, and nobody is made way for."""

    def __init__(self, slowdown: float) -> None:
        self._slowdown = slowdown
        self._counts: deque[int] = deque(maxlen=_LOOKS)
        self._there_until = -math.inf
        self._looked_at = -math.inf
        self._fastest_s = math.inf  # of a token, with few at once
        self._cap = math.inf  # of all requests together

    def look(
        self, now: float, *, ours: int, in_hand: int, token_s: float | None, at_floor: bool
    ) -> None:
        """The page says `in_hand`; at most `ours` of them are from us.

        `token_s` is what a token took since the last look. `at_floor`: we have as few as we can.
        """
        if not self._slowdown:
            return
        self._looked_at = now
        self._counts.append(max(0, in_hand - ours))
        if self._counts[-1]:
            self._there_until = now + _GONE_AFTER_S
        if token_s is not None:
            self._weigh(now, in_hand, token_s, at_floor)

    def _weigh(self, now: float, in_hand: int, token_s: float, at_floor: bool) -> None:
        self._fastest_s = min(self._fastest_s, token_s)
        if not self.are_there(now):
            self._cap = math.inf
            return
        most_s = self._slowdown * self._fastest_s
        if token_s > most_s:
            if at_floor:
                self._fastest_s = token_s
            else:
                self._cap = _DOWN * in_hand * most_s / token_s
        elif token_s < _AGAIN_BELOW * most_s and self._cap < math.inf:
            self._cap = max(self._cap, in_hand) * _UP
            if self._cap > _FAR * in_hand:
                self._cap = math.inf

    def are_there(self, now: float) -> bool:
        """Whether somebody used the engine in the last seconds."""
        return now < self._there_until

    def others(self, now: float) -> int:
        """How many requests to leave room for."""
        if now > self._looked_at + _BLIND_S:
            return 0
        return max(self._counts, default=0)

    def cap(self, now: float) -> float:
        """How many requests there may be in all, for their sake."""
        if now > self._looked_at + _BLIND_S or not self.are_there(now):
            return math.inf
        return self._cap
