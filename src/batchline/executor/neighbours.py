"""Requests of others at an engine: how many there are, and what ours may cost them. Pure.

An engine's page counts all that it has in hand; what is not ours is somebody's who may be waiting
for it. They go first: what they have in hand is taken off what we may have, the most of the last
second and a half of it, so that room is given back at the next look and taken again a little later.

While there are others, no token may take longer than `slowdown` times what it takes without us.
That is known from looks at which the engine had about as many in hand as they have now, whoever's:
each look says how long a token takes with so many. It matters of an engine without a knee, which is
slower for everybody with each request.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

_LOOKS: Final = 2  # of which the most counts
_GONE_AFTER_S: Final = 10.0  # without a request of others: nobody is there
_BLIND_S: Final = 10.0  # without a page: what it said last is no longer so
_DOWN: Final = 0.95  # of what would be just enough
_UP: Final = 1.1
_FAR: Final = 3.0  # times what is in hand: a cap so high is none
_AGAIN_BELOW: Final = 0.9  # of what a token may take
_ABOUT: Final = 1.25  # numbers in hand of which one is less than so many times the other are alike
_NEWEST: Final = 0.3  # share of the newest look in what is known of a number


class Neighbours:
    """What is known of others. `slowdown` 0: nothing is asked, and nobody is made way for."""

    def __init__(self, slowdown: float) -> None:
        self._slowdown = slowdown
        self._counts: deque[int] = deque(maxlen=_LOOKS)
        self._there_until = -math.inf
        self._looked_at = -math.inf
        self._token_s: dict[int, float] = {}  # by about how many were in hand
        self._last_s: float | None = None  # what a token took before the last look
        self._cap = math.inf  # of all requests together

    def look(self, now: float, *, ours: int, in_hand: int, token_s: float | None) -> None:
        """The page says `in_hand`; at most `ours` of them are from us.

        `token_s` is what a token took since the last look.
        """
        if not self._slowdown:
            return
        self._looked_at = now
        self._counts.append(max(0, in_hand - ours))
        if self._counts[-1]:
            self._there_until = now + _GONE_AFTER_S
        if token_s is not None and in_hand:
            about = _about(in_hand)
            known = self._token_s.get(about, token_s)
            self._token_s[about] = known + _NEWEST * (token_s - known)
            self._weigh(now, in_hand, (self._last_s or token_s, token_s))
        self._last_s = token_s

    def _weigh(self, now: float, in_hand: int, token_s: tuple[float, float]) -> None:
        """What tokens took over two looks. One alone may be of a moment in which prompts came."""
        if not self.are_there(now):
            self._cap = math.inf
            return
        most_s = self._slowdown * self._without_us(now)
        if min(token_s) > most_s:
            self._cap = _DOWN * in_hand * most_s / min(token_s)
        elif max(token_s) < _AGAIN_BELOW * most_s and self._cap < math.inf:
            self._cap = max(self._cap, in_hand) * _UP
            if self._cap > _FAR * in_hand:
                self._cap = math.inf

    def _without_us(self, now: float) -> float:
        """How long a token took with about as many as others have: or fewer, or the fewest."""
        theirs = _about(max(1, self.others(now)))
        fewer = [about for about in self._token_s if about <= theirs]
        return self._token_s[max(fewer) if fewer else min(self._token_s)]

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


def _about(count: int) -> int:
    return math.floor(math.log(count) / math.log(_ABOUT))
