"""Requests of others at an engine: how many there are, and what ours may cost them. Pure.

An engine's page counts all that it has in hand; what is not ours is somebody's who may be waiting
for it. They go first: what they have in hand is taken off what we may have, the most of the last
second and a half of it, so that room is given back at the next look and taken again a little later.

While there are others, no token may take longer than `slowdown` times what it takes without us.
Both are read off `TokenCurve`, which knows from every look how long a token takes with so many in
hand, whoever's: with how many others would have without us, and with how many it takes so much
longer. It matters of an engine without a knee, which is slower for everybody with each request.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

from batchline.executor.token_curve import TokenCurve

_MOST_OF_S: Final = 0.75  # of the looks of so long the most counts: of two
_GONE_AFTER_S: Final = 10.0  # without a request of others: nobody is there
_BLIND_S: Final = 10.0  # without a page: what it said last is no longer so
_FAR_TOO_SLOW: Final = 1.15  # times what a token may take: before it is known why
_DOWN: Final = 0.95  # of what would be just enough then

_ROUNDS: Final = 4  # of a number that is on both sides of its equation


class Neighbours:
    """What is known of others. `slowdown` 0: nothing is asked, and nobody is made way for."""

    def __init__(self, slowdown: float) -> None:
        self._slowdown = slowdown
        self._counts: deque[tuple[float, int]] = deque(maxlen=16)
        self._age_s = 0.0
        self._there_until = -math.inf
        self._looked_at = -math.inf
        self.curve = TokenCurve()
        self._last: tuple[int, float] | None = None  # in hand and what a token took, a look ago
        self._cap = math.inf  # of all requests together

    def look(
        self, now: float, *, ours: int, in_hand: int, token_s: float | None, age_s: float = 0.0
    ) -> None:
        """The page says `in_hand`; at most `ours` of them are from us.

        `token_s` is what a token took since the last look, `age_s` how far the page lags behind.
        """
        if not self._slowdown:
            return
        self._looked_at = now
        self._age_s = age_s
        theirs = max(0, in_hand - ours)
        self._counts.append((now, theirs))
        if theirs:
            self._there_until = now + _GONE_AFTER_S
        if token_s is None or not in_hand:
            self._last = None
            return
        last, self._last = self._last or (in_hand, token_s), (in_hand, token_s)
        self.curve.note(now, (last[0] + in_hand) / 2, token_s)
        self._weigh(now, in_hand, min(last[1], token_s))

    def _weigh(self, now: float, in_hand: int, token_s: float) -> None:
        """`token_s` is the less of two looks: one may be of a moment in which prompts came."""
        if not self.are_there(now):
            self._cap = math.inf
            return
        most_s = self._slowdown * self._alone_s(self.others(now), in_hand)
        self._cap = self.curve.most_at(most_s)
        if token_s > _FAR_TOO_SLOW * most_s:
            self._cap = min(self._cap, _DOWN * in_hand * most_s / token_s)

    def _alone_s(self, others: int, in_hand: int) -> float:
        """How long a token would take without ours.

        Others would have fewer in hand then, since each is done sooner: as many as make for the
        same tokens a second.
        """
        rate = others / self.curve.at(in_hand)
        alone = float(others)
        for _ in range(_ROUNDS):
            alone = min(alone, rate * self.curve.at(alone))
        return self.curve.at(max(1.0, alone))

    def are_there(self, now: float) -> bool:
        """Whether somebody used the engine in the last seconds."""
        return now < self._there_until

    def others(self, now: float) -> int:
        """How many requests to leave room for."""
        if now > self._looked_at + _BLIND_S:
            return 0
        # As much longer as the page is old: what was ours then is not known well, and less than
        # they have is worse than more.
        since = self._looked_at - _MOST_OF_S - self._age_s / 2
        return max((count for at, count in self._counts if at >= since), default=0)

    def cap(self, now: float) -> float:
        """How many requests there may be in all, for their sake."""
        if now > self._looked_at + _BLIND_S or not self.are_there(now):
            return math.inf
        return self._cap
