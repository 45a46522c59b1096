"""How many requests may be in flight at one backend: arithmetic only, no clock and no socket.

`FixedLimit` is what was configured. `AdaptiveLimit` learns: it looks for the least limit from which
on more requests at once bring hardly more tokens a second. Permits (`permits.py`) hand the limit
out; workers report what came of it.

**What is measured.** An answer's seconds per token, as its client sees them, at a known limit. By
Little's law limit / (seconds per token) is the backend's tokens a second, and it needs no counting
over time, so that half a round of answers is enough. Only answers to requests that began after the
limit was last changed count.

**What is looked for.** Twice the limit should bring at least 2 ** 0.25 times the tokens: the
utility is rate / limit ** 0.25. For a batching engine with a knee that is the knee, whatever the
exponent.
Adding only to a queue (latency up in proportion, rate the same) always loses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

_EXPONENT: Final = 0.25
_FIRST: Final = 8  # where the search begins: less than any engine of note takes
_LEAST_ANSWERS: Final = 6  # for one measurement; more for larger limits
_BETTER: Final = 0.01  # in the logarithm of the utility: less is noise
_STEP: Final = 1.25
_FINE_STEP: Final = 1.1
_SLOWER: Final = 1.15  # seconds per token at an unchanged limit: the capacity has fallen
_HOLD_S: Final = 5.0  # between two looks whether there is more to be had
_BELOW_SHED: Final = 0.95
_SHED_FORGOTTEN_S: Final = 30.0  # what was shed at is tried again after this


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedLimit:
    """`max_in_flight` for all workers together, whatever the backend answers."""

    max_in_flight: int

    def limit(self) -> int:
        return self.max_in_flight


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a limit came to: seconds per token, and the logarithm of the utility."""

    limit: int
    token_s: float

    @property
    def utility(self) -> float:
        return (1 - _EXPONENT) * math.log(self.limit) - math.log(self.token_s)


class AdaptiveLimit:
    """The limit of one backend, between `floor` and `ceiling`.

    Every instant is the caller's monotonic clock, in seconds.
    """

    def __init__(self, *, floor: int = 1, ceiling: int) -> None:
        self._floor = floor
        self._ceiling = ceiling
        self._shed_above: int | None = None
        self._shed_at = 0.0
        self._limit = self._clamped(_FIRST)
        self._ramp = True  # doubling; afterwards small steps around `_reference`
        self._reference: _Seen | None = None
        self._fastest_s = math.inf  # seconds per token, of what was seen in the ramp
        self._trying = False  # `_limit` is a step away from the reference
        self._up = True
        self._step = _STEP
        self._failures = 0
        self._hold_until = 0.0
        self._forget()

    def limit(self) -> int:
        return self._limit

    def report(
        self, now: float, *, answers: int, tokens: int, latency_s: float, limited: bool
    ) -> None:
        """Answers to requests that began since the limit was last changed.

        `latency_s` is their sum. `limited` says that as many were in flight all the time as were
        allowed: else there was too little to do, and nothing is learnt of the limit.
        """
        if self._shed_above is not None and now >= self._shed_at + _SHED_FORGOTTEN_S:
            self._shed_above = None
        if not limited:
            self._forget()
            return
        self._answers += answers
        self._tokens += tokens
        self._latency_s += latency_s
        if self._answers < max(_LEAST_ANSWERS, self._limit // 2) or not self._tokens:
            return
        seen = _Seen(self._limit, self._latency_s / self._tokens)
        self._forget()
        if self._ramp:
            self._climb_fast(seen)
        else:
            self._climb(now, seen)

    def shed(self, now: float, *, in_flight: int) -> None:
        """The backend refused a request for its load while so many were in flight."""
        self._shed_above = max(self._floor, min(in_flight, self._limit))
        self._shed_at = now
        self._ramp = False
        self._reference = None
        self._trying = False
        self._change(self._shed_above)

    # -- the search ------------------------------------------------------------------------

    def _climb_fast(self, seen: _Seen) -> None:
        before = self._reference
        self._fastest_s = min(self._fastest_s, seen.token_s)
        if before is None or seen.utility > before.utility + _BETTER:
            self._reference = seen
            self._change(seen.limit * 2)
            if self._limit > seen.limit:
                return
        self._ramp = False
        self._reference = None
        # Behind the knee each request waits in proportion: what is too much is known from that.
        estimate = seen.limit * self._fastest_s / seen.token_s
        least = seen.limit if before is None else before.limit // 2
        self._change(round(max(estimate, least)))

    def _climb(self, now: float, seen: _Seen) -> None:
        reference = self._reference
        if reference is None or not self._trying:
            if reference is not None and seen.token_s > reference.token_s * _SLOWER:
                # The same limit is slower than it was: the capacity fell by about as much.
                self._reference = None
                self._step, self._failures = _STEP, 0
                self._change(round(seen.limit * reference.token_s / seen.token_s))
                return
            self._reference = seen
            if now >= self._hold_until:
                self._try(seen.limit)
            return
        if seen.utility > reference.utility + _BETTER:
            self._reference = seen
            self._failures = 0
            self._step = _STEP
            self._try(seen.limit)
            return
        self._failures += 1
        self._up = not self._up
        self._trying = False
        self._change(reference.limit)
        if self._failures >= 2:
            self._failures = 0
            self._step = _FINE_STEP
            self._up = True
            self._hold_until = now + _HOLD_S

    def _try(self, limit: int) -> None:
        stepped = limit * self._step if self._up else limit / self._step
        target = math.ceil(stepped) if self._up else math.floor(stepped)
        self._trying = True
        self._change(target)
        if self._limit == limit:  # there is no room on this side
            self._trying = False
            self._up = not self._up

    def _change(self, limit: int) -> None:
        self._limit = self._clamped(limit)
        self._forget()

    def _clamped(self, limit: int) -> int:
        ceiling = self._ceiling
        if self._shed_above is not None:
            ceiling = min(ceiling, math.floor(self._shed_above * _BELOW_SHED))
        return max(self._floor, min(limit, ceiling))

    def _forget(self) -> None:
        self._answers = 0
        self._tokens = 0
        self._latency_s = 0.0
