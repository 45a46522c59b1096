"""How fast requests may go to a backend that counts them by the minute: arithmetic only.

An allowance of `limit` per minute is taken to be a bucket that holds one minute of it and is filled
continuously (decision 0023 has the evidence). `Bucket` keeps two numbers for it: `level`, what the
backend would let through at this moment as far as we know, and `credit`, the pace at which we ask
for it. Every instant is on the caller's monotonic clock.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

MINUTE_S: Final = 60.0
_PERIODS_S: Final = (3600.0, 86_400.0)  # of limits that a backend tells of and that are longer

# One percent stays unused, so that with `BURST_S` no minute, wherever it begins, sees more than
# the limit: 0.99 + 0.5 / 60 < 1. Backends whose windows do not roll are then satisfied as well.
SHARE: Final = 0.99
BURST_S: Final = 0.5  # of allowance that a late tick does not lose
# Below this much of allowance the pace falls with the level. So what is left over by others on the
# same account is used up without meeting its end: the level settles where pace and refill meet. It
# is more where others take much, and doubles with refusals: they take it in larger bursts.
NEAR_EMPTY_S: Final = 1.0
_NEAR_EMPTY_BY_OTHERS_S: Final = 10.0  # were they to take all of the refill
_MOST_NEAR_EMPTY_S: Final = 16.0
FULL: Final = 0.98  # of a bucket: what a line waits for that would take all of it

_LEARN_S: Final = 8.0  # in which what others spend is learnt
_FORGET_S: Final = 120.0  # in which it is forgotten, where nothing is heard
_MOST_BY_OTHERS: Final = 0.98  # of the refill: something is tried now and then
_A_REFUSAL: Final = 0.05  # of the refill, more spent by others than we knew
_UNSURE_S: Final = 0.1  # of requests that went out so close together, which was counted first
_REMEMBER_S: Final = 660.0  # no request runs for longer by default

# A line may take more than there is, by the usage that a backend told of it. More than this is not
# believed: at 10 ** 12 tokens, from one answer with a fault in it, nothing would go for years.
_MOST_OWED_S: Final = 300.0  # of refill

_FIRST_HOLD_S: Final = 1.0
_LONGEST_HOLD_S: Final = 30.0


class Kind(StrEnum):
    """What is counted."""

    REQUESTS = "requests"
    TOKENS = "tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What an answer said of one allowance, as of when its request came to the backend.

    `limit` None: not said. `reset_s`: until the allowance is whole again.
    """

    remaining: float
    limit: float | None = None
    reset_s: float | None = None

    @property
    def period_s(self) -> float:
        """The time that `limit` is for.

        A bucket that is filled continuously is whole again after the share of its period that was
        taken from it. Only a reset beyond a minute can be of a longer period; one within a minute
        may be that of a fixed window, of which that arithmetic would make nonsense.
        """
        used = (self.limit or 0.0) - self.remaining
        if self.reset_s is None or self.reset_s <= 1.5 * MINUTE_S or used <= 0:
            return MINUTE_S
        period_s = (self.limit or 0.0) * self.reset_s / used
        return min(_PERIODS_S, key=lambda known: abs(math.log(known / period_s)))


@dataclass(slots=True, kw_only=True)
class Bucket:
    """One allowance. It begins empty: what was spent before we began is not known.

    `most` is what the settings allow at most. `others` is what others on the same account seem to
    take a second.
    """

    limit: float
    at: float
    period_s: float = MINUTE_S
    most: float = math.inf
    level: float = 0.0
    credit: float = 0.0
    others: float = 0.0
    was_told: bool = False
    limited_at: float = -math.inf  # when an answer last told of this limit, or a lower one
    near_empty_s: float = NEAR_EMPTY_S
    refused_at: float = -math.inf
    wrong: float = 0.0  # by which the levels of the history were too low, as we know by now
    history: deque[tuple[float, float]] = field(default_factory=deque)  # instants, `level` then

    @property
    def refill(self) -> float:
        return self.limit / self.period_s

    @property
    def most_owed(self) -> float:
        return max(self.limit, _MOST_OWED_S * self.refill)

    @property
    def pace(self) -> float:
        """What may be asked for a second. An allowance for longer than a minute is not spread."""
        most = SHARE * self.refill if self.period_s <= MINUTE_S else math.inf
        by_others_s = NEAR_EMPTY_S + _NEAR_EMPTY_BY_OTHERS_S * self.others / self.refill
        return min(most, max(self.level, 0.0) / max(self.near_empty_s, by_others_s))

    def advance(self, now: float) -> None:
        """Let the time until `now` pass."""
        passed_s = now - self.at
        if passed_s <= 0:
            return
        self.at = now
        self.level = min(self.limit, self.level + (self.refill - self.others) * passed_s)
        pace = self.pace
        self.credit = min(self.credit + pace * passed_s, BURST_S * pace)
        self.others *= math.exp(-passed_s / _FORGET_S)

    def needed(self, amount: float) -> float:
        """What must be there for `amount` to go: more than the whole is never there."""
        return min(amount, FULL * self.limit)

    def due_s(self) -> float:
        """Seconds until the credit is there again, at the present pace."""
        if self.credit > 0:
            return 0.0
        pace = self.pace
        return -self.credit / pace if pace > 0 else math.inf

    def has(self, amount: float) -> bool:
        return self.credit > 0 and self.level >= self.needed(amount)

    def take(self, amount: float) -> None:
        """Spend `amount`; a negative one gives back. The credit may be owed afterwards."""
        self.level = min(self.limit, max(self.level - amount, -self.most_owed))
        self.credit = min(max(self.credit - amount, -self.most_owed), BURST_S * self.pace)
        if self.history and self.at <= self.history[-1][0]:
            self.history.pop()
        self.history.append((self.at, self.level - self.wrong))
        while self.history[0][0] < self.at - _REMEMBER_S:
            self.history.popleft()

    def told(self, told: Told, *, age_s: float) -> None:
        """Believe an answer whose request went out `age_s` ago.

        It is held against what we thought of that moment, since what we have taken since then is
        not in it; a difference is of others. Of several limits (each model may have one) the lowest
        that was told in a minute holds.
        """
        if told.limit is not None:
            limit = min(told.limit, self.most)
            if limit > self.limit and self.at - self.limited_at < MINUTE_S:
                return
            self.limit, self.limited_at = limit, self.at
            # What is owed and what others take was reckoned by the refill that was: by this one it
            # might last for days, or sink the level while nothing is sent.
            self.level = min(max(self.level, -self.most_owed), limit)
            self.credit = max(self.credit, -self.most_owed)
            self.others = min(self.others, _MOST_BY_OTHERS * self.refill)
        if self._is_enough(told):
            return
        least, most = self._levels_about(self.at - age_s)
        remaining = min(told.remaining, self.limit)
        gap = max(least - remaining, 0.0) + min(most - remaining, 0.0)
        if self.was_told:
            others = self.others + gap / _LEARN_S
            self.others = min(max(others, 0.0), _MOST_BY_OTHERS * self.refill)
        self.was_told = True
        self.level = min(self.level - gap, self.limit)
        self.wrong -= gap

    def _is_enough(self, told: Told) -> bool:
        """Whether it is a window that ends, and not a bucket, with enough left until its end.

        A bucket is whole again after the time in which it is filled by what was taken from it.
        """
        if told.reset_s is None:
            return False
        used, refilled = self.limit - told.remaining, self.refill * told.reset_s
        if abs(refilled - used) <= max(0.2 * used, 1.5 * self.refill):
            return False
        return told.remaining >= SHARE * refilled

    def refused(self, *, told: bool, until: float) -> None:
        """The backend sent a request back, and nothing goes before `until`.

        `told`: it also said what remains. Else there is just enough at that instant, and not more.
        """
        self.credit = min(self.credit, 0.0)
        if not told:
            self.level = min(self.level, 0.0)
            self.at = max(self.at, until)
        if self.at - self.refused_at < 1.0:
            return  # requests that were under way count as one
        self.refused_at = self.at
        self.near_empty_s = min(2 * self.near_empty_s, _MOST_NEAR_EMPTY_S)
        if not told:
            most = _MOST_BY_OTHERS * self.refill
            self.others = min(self.others + _A_REFUSAL * self.refill, most)

    def _levels_about(self, instant: float) -> tuple[float, float]:
        """The least and the most that we thought there was, as exactly as `instant` is known."""
        drift = self.refill - self.others
        levels = []
        for at, level in reversed(self.history):
            if at > instant + _UNSURE_S:
                continue
            then = min(level + self.wrong, self.limit)
            levels.append(min(self.limit, then + drift * max(instant - at, 0.0)))
            if at <= instant - _UNSURE_S:
                break
        levels = levels or [self.level]
        return min(levels), max(levels)


@dataclass(frozen=True, slots=True)
class Want:
    """What a worker asks for: `requests` more with `tokens` in all, of which the next line alone
    needs `first`. `requests` 0: it has some left, and lacks tokens."""

    requests: int
    tokens: float = 0.0
    first: float = 0.0


@dataclass(slots=True)
class Rates:
    """The allowances of one backend, by what is counted and for how long. Empty: no limit known."""

    buckets: dict[tuple[Kind, float], Bucket] = field(default_factory=dict)
    hold_until: float = -math.inf  # nothing goes before
    refusals: int = 0  # in a row

    def limit(self, kind: Kind, limit: float, now: float) -> None:
        """No more than `limit` of `kind` a minute, whatever answers say."""
        self.buckets[kind, MINUTE_S] = Bucket(limit=limit, most=limit, at=now)

    def of(self, kind: Kind) -> Iterator[Bucket]:
        return (bucket for (its, _), bucket in self.buckets.items() if its is kind)

    def smallest(self, kind: Kind) -> float | None:
        """The least that is allowed of `kind` in any period; None without a limit."""
        return min((bucket.limit for bucket in self.of(kind)), default=None)

    def grant(self, want: Want, now: float) -> Want | None:
        """As much of `want` as may go now, with at least its first line; None: nothing yet."""
        for bucket in self.buckets.values():
            bucket.advance(now)
        if now < self.hold_until:
            return None
        share = 1.0
        for (kind, _), bucket in self.buckets.items():
            whole, least = (
                (want.requests, min(want.requests, 1))
                if kind is Kind.REQUESTS
                else (want.tokens, want.first)
            )
            if whole <= 0:
                continue
            if not bucket.has(least):
                return None
            share = min(share, max(least, min(bucket.credit, bucket.level)) / whole)
        granted = Want(
            max(min(want.requests, 1), int(want.requests * share)),
            max(want.first, want.tokens * share),
            want.first,
        )
        for bucket in self.of(Kind.REQUESTS):
            bucket.take(granted.requests)
        for bucket in self.of(Kind.TOKENS):
            bucket.take(granted.tokens)
        return granted

    def due_s(self, now: float) -> float:
        """The least time in which something could be granted."""
        due_s = max((bucket.due_s() for bucket in self.buckets.values()), default=0.0)
        return max(due_s, self.hold_until - now)

    def correct(self, tokens: float, now: float) -> None:
        """Answers came to `tokens` more than was estimated for them (less, where negative)."""
        for bucket in self.of(Kind.TOKENS):
            bucket.advance(now)
            bucket.take(tokens)

    def told(self, kind: Kind, told: Told, now: float, *, age_s: float) -> None:
        """Believe an answer. A limit that nobody knew is one from now on."""
        period_s = told.period_s if told.limit is not None else MINUTE_S
        bucket = self.buckets.get((kind, period_s))
        if bucket is None:
            if told.limit is None:
                return
            bucket = Bucket(limit=told.limit, period_s=period_s, at=now)
            self.buckets[kind, period_s] = bucket
        bucket.advance(now)
        bucket.told(told, age_s=age_s)

    def refused(
        self, now: float, *, retry_after_s: float | None, told: frozenset[Kind], roll: float
    ) -> None:
        """The backend sent a request back for its rate; `told` are the kinds that it told of."""
        if now >= self.hold_until:
            self.refusals = self.refusals + 1 if now < self.hold_until + MINUTE_S else 1
        if retry_after_s is None:
            hold_s = min(_LONGEST_HOLD_S, _FIRST_HOLD_S * 2.0 ** min(self.refusals - 1, 16))
            retry_after_s = hold_s * (0.5 + roll / 2)
        self.hold_until = max(self.hold_until, now + retry_after_s)
        for (kind, _), bucket in self.buckets.items():
            bucket.advance(now)
            bucket.refused(told=kind in told, until=self.hold_until)
