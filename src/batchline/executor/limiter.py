"""How many requests may be in flight at one backend: arithmetic only, no clock and no socket.

`FixedLimit` is what was configured. `AdaptiveLimit` learns it, from what is told of it:

- `report`: answers, their tokens and their latencies. Only answers to requests that began at the
  present level count, and by Little's law (in flight) / (seconds per token) is the backend's tokens
  a second, without counting over time: half a round of answers is enough. While it doubles, slow
  answers that began before say enough as well, where they agree (`level_fit.py`).
- `look`: the engine's own page, where there is one. It knows how long a token takes *now*, before
  any answer has come, what waits for a place, and what others have in hand.
- `shed`: a refusal for load, and how many of those in flight were refused with it.

What is searched for (`search.py`) is how many the engine should have in hand in all. The limit is
what others (`neighbours.py`) leave of that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from batchline.executor.level_fit import LevelFit
from batchline.executor.messages import OlderAnswers
from batchline.executor.neighbours import Neighbours
from batchline.executor.samples import Samples
from batchline.executor.search import FIRST, Search

_LEAST_ANSWERS: Final = 6  # for one measurement; else half as many as are in flight
_LEAST_ANSWERS_FAST: Final = 4  # while it doubles, where less is to be told apart; else a quarter
_LEAST_AGREE: Final = 3  # where they all say the same; else an eighth
_AGREE: Final = 0.03  # of their mean, its standard error
_MOST_ERROR: Final = 0.1  # of a speed that is told before a round of answers is there
_SURE: Final = 1.5  # standard errors: the ramp goes on, or ends, with that less and with that more
_LOOKS: Final = 2  # for one measurement
_LOOKS_ROUGH: Final = 6  # where they differ: prompts are read in bursts
_ROUGH: Final = 0.01  # of their mean, its standard error; as the next
_LOOKS_MOST: Final = 12  # where they differ by more: a step is worth less than that
_TOO_ROUGH: Final = 0.1
_LOOKS_LAST_S: Final = 2.0  # for so long a look makes up for answers
_NEAR: Final = 0.05  # in hand, off the level by more: something else than the level was measured
_NEAR_OTHERS: Final = 0.2  # the same while others come and go
_BELOW_SHED: Final = 0.95
_WAITING: Final = 0.1  # of those that run: more that wait are too many; any, while others wait
_FEW: Final = 2  # that wait: they are about to be read
_STUCK_LOOKS: Final = 4  # at which too many waited and no more ran: it takes in no more
_KV_FULL: Final = 0.95
_SAME: Final = 0.07  # in the logarithm of the level
_UNSTEADY_LOOKS: Final = 6
_CROWDED_LOOKS: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedLimit:
    """`max_in_flight` for all workers together, whatever the backend answers."""

    max_in_flight: int

    def limit(self) -> int:
        return self.max_in_flight


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One look at the engine's page, and what we had in flight then.

    `ours` is at least that many. `limited`: all the time since the last look as many as we may.
    `token_s` is what a token took since then, None where the page does not tell; `age_s` is how far
    the page lags behind.
    """

    running: int
    waiting: int
    kv_use: float | None
    token_s: float | None
    ours: int
    limited: bool
    age_s: float = 0.0

    @property
    def in_hand(self) -> int:
        return self.running + self.waiting


class Roof:
    """A level that was too much. It is not tried again for a while, longer each time in a row."""

    FIRST_S: Final = 30.0
    LONGEST_S: Final = 300.0

    def __init__(self) -> None:
        self._level = math.inf
        self._until = -math.inf
        self._for_s = self.FIRST_S

    def found(self, now: float, level: float) -> None:
        """From `level` on it is too much."""
        if now >= self._until:
            again = now < self._until + self._for_s
            self._for_s = min(self.LONGEST_S, 2 * self._for_s) if again else self.FIRST_S
        self.lower(level)
        self._until = now + self._for_s

    def lower(self, level: float) -> None:
        """It was even less, as is known now."""
        self._level = level

    def most(self, now: float) -> float:
        return self._level if now < self._until else math.inf


class AdaptiveLimit:
    """The limit of one backend, between `floor` and `ceiling`, for all workers together.

    `slowdown` is what ours may cost others (`Neighbours`). Every instant is the caller's monotonic
    clock, in seconds.
    """

    def __init__(self, *, floor: int = 1, ceiling: int, slowdown: float = 0.0) -> None:
        self._floor = floor
        self._ceiling = ceiling
        self._search = Search(least=floor, most=ceiling)
        self._neighbours = Neighbours(slowdown)
        self._makes_way = slowdown > 0
        self._roof = Roof()
        self._limit = self._search.level
        self._answers = 0
        self._fit = LevelFit()  # while it doubles
        self._speeds = Samples()  # tokens a second of one request, by report
        self._in_hand = Samples()  # by look, as the next
        self._rates = Samples()  # tokens a second
        self._looks_until = -math.inf
        self._by_page = False  # what was seen last
        self._last: tuple[int, Look, bool] | None = None  # measure, look, steady
        self._waited = 0  # looks in a row at which too many waited, and no more ran
        self._ran = 0  # at the last look
        self._unsteady = 0  # looks in a row of which nothing could be learnt
        self._crowded = 0  # looks in a row at which others left us nothing, and nobody suffered
        self._shed_from = 0
        self._refused = 0

    def limit(self) -> int:
        return self._limit

    @property
    def measure(self) -> int:
        """Which level `report` is about: counts up whenever the level changes."""
        return self._search.measure

    @property
    def is_settled(self) -> bool:
        """Whether the first, fast part of the search is over."""
        return not self._search.ramp

    def set_ceiling(self, now: float, ceiling: int) -> None:
        """No more than that from now on, however many may be of use."""
        before = self.measure
        self._ceiling = max(self._floor, ceiling)
        self._follow(now, before)

    # -- what is heard ---------------------------------------------------------------------

    def report(
        self,
        now: float,
        *,
        answers: int,
        tokens: int,
        latency_s: float,
        limited: bool,
        older: OlderAnswers | None = None,
    ) -> None:
        """Answers to requests that began since the level was last changed.

        `latency_s` is their sum; `older` are those that began before. `limited` says that as many
        were in flight all the time as were allowed: else there was too little to do, and nothing is
        learnt of the limit.
        """
        before = self.measure
        if not limited or now < self._looks_until or self._is_held_back(now):
            self._forget()
            self._fit = LevelFit()
        else:
            if latency_s > 0:
                self._answers += answers
                # An answer counts as a token, so that those without any (embeddings) are something.
                self._speeds.add((tokens + answers) / latency_s, latency_s)
            in_hand = self._limit + self._neighbours.others(now)
            speed = None
            if self._search.ramp:
                if latency_s > 0:
                    self._fit.add(answers, tokens + answers, {self.measure: latency_s}, {})
                if older is not None:
                    tokens_too = older.tokens + older.answers
                    self._fit.add(older.answers, tokens_too, older.seconds, older.before)
                speed = self._told_early(in_hand)
            if speed is None and self._speeds.count and self._are_enough():
                speed = self._speeds.mean
            if speed is not None:
                self._forget()
                self._seen(now, by_page=False, in_hand=in_hand, rate=in_hand * speed)
        self._follow(now, before)

    def look(self, now: float, look: Look) -> None:
        """What the engine's page says."""
        before = self.measure
        self._neighbours.look(
            now,
            ours=look.ours,
            in_hand=look.in_hand,
            token_s=look.token_s,
            age_s=look.age_s,
        )
        self._hear_of_waiting(now, look)
        self._make_room_to_search(now, look)
        self._measure(now, look)
        self._follow(now, before)

    def shed(self, now: float, *, in_flight: int, first: bool) -> None:
        """The backend refused a request for its load while so many of ours were in flight.

        `first`: else it is one more of those that were on their way by then. What was not refused
        with them is what the backend takes; a half of it at least, or else a backend that refuses
        everything for a second would be asked for single lines after it.
        """
        before = self.measure
        if first:
            self._shed_from = in_flight + self._neighbours.others(now)
            self._refused = 0
        self._refused += 1
        taken = max(self._shed_from - self._refused, self._shed_from // 2)
        roof = max(self._floor, math.floor(taken * _BELOW_SHED))
        if first:
            self._roof.found(now, roof)
        else:
            self._roof.lower(roof)
        if self._search.level > roof:
            self._search.go(roof)
        self._follow(now, before)

    # -- what follows ----------------------------------------------------------------------

    def _hear_of_waiting(self, now: float, look: Look) -> None:
        """What waits for a place at the engine says how many places there are."""
        others = self._neighbours.are_there(now)
        too_many = look.waiting > (0 if others else max(_FEW, look.running * _WAITING))
        # While more and more run it takes them in one by one, as fast as it reads their prompts.
        stuck = too_many and 0 < look.running <= self._ran
        self._ran = look.running
        self._waited = self._waited + 1 if stuck else 0
        if self._waited >= (_LOOKS if others else _STUCK_LOOKS):
            self._waited = 0
            if look.running < self._search.level:
                self._roof.found(now, look.running)
                self._search.go(look.running)
        elif (look.kv_use or 0.0) >= _KV_FULL and self._roof.most(now) == math.inf:
            self._roof.found(now, self._search.level)

    def _make_room_to_search(self, now: float, look: Look) -> None:
        """Others may have more in hand than was looked into: the search goes on beyond them."""
        others = self._neighbours.others(now)
        search = self._search
        if search.ramp:
            if (cap := self._neighbours.cap(now)) < search.level:
                search.go(math.floor(cap))  # who is there suffers: no more leaps
            elif search.level < others + FIRST <= search.most:
                search.start_at(others + FIRST)
            return
        kind = not look.waiting and self._neighbours.cap(now) >= look.in_hand
        crowded = kind and self._limit <= self._floor and look.in_hand >= search.level
        self._crowded = self._crowded + 1 if crowded else 0
        if self._crowded >= _CROWDED_LOOKS:
            self._crowded = 0
            search.go(math.ceil(look.in_hand * 1.1))

    def _measure(self, now: float, look: Look) -> None:
        if look.token_s is None:
            self._last = None
            return
        if self._neighbours.are_there(now) and not self._search.ramp:
            # No level can be held beside others. What all the numbers that came by were like says
            # which would be best, whether or not others allow it now.
            self._last = None
            self._looks_until = now + _LOOKS_LAST_S
            best = self._neighbours.curve.best()
            if best is not None and abs(math.log(best / self._search.level)) > _SAME:
                self._search.go(round(best))
            return
        self._looks_until = now + _LOOKS_LAST_S
        near = _NEAR_OTHERS if self._neighbours.are_there(now) else _NEAR
        off = abs(look.in_hand - self._search.level)
        steady = (
            look.limited
            and not self._is_held_back(now)
            and off <= max(2, near * self._search.level)
        )
        last, self._last = self._last, (self.measure, look, steady)
        if not steady or last is None or not last[2] or last[0] != self.measure:
            self._forget_looks()
            self._unsteady += 1
            if self._unsteady >= _UNSTEADY_LOOKS:
                self._search.give_up(now)
            return
        in_hand = (last[1].in_hand + look.in_hand) / 2
        running = (last[1].running + look.running) / 2
        self._in_hand.add(in_hand)
        self._rates.add(running / look.token_s)
        if self._are_enough_looks():
            in_hand, rate = self._in_hand.mean, self._rates.mean
            self._forget_looks()
            self._unsteady = 0
            if rate > 0:
                self._seen(now, by_page=True, in_hand=in_hand, rate=rate)

    def _seen(self, now: float, *, by_page: bool, in_hand: float, rate: float) -> None:
        if by_page != self._by_page:
            # A page counts tokens only, an answer's latency has its prompt and its queue in it too.
            self._by_page = by_page
            self._search.compare_no_more()
        self._search.yields = self._makes_way and not by_page  # the page tells of others
        self._search.seen(now, in_hand=in_hand, rate=rate)

    def _told_early(self, in_hand: float) -> float | None:
        """One request's speed at this level, where answers that began before tell what to do."""
        speeds = self._fit.speeds(self.measure)
        here = speeds.get(self.measure)
        if here is None or here.error > _MOST_ERROR:
            return None
        self._search.correct({measure: one.tokens_per_s for measure, one in speeds.items()})
        rate, off = in_hand * here.tokens_per_s, _SURE * here.error
        if self._search.goes_on(in_hand=in_hand, rate=rate * (1 - off)):
            return here.tokens_per_s
        if not self._search.goes_on(in_hand=in_hand, rate=rate * (1 + off)):
            return here.tokens_per_s
        return None

    def _are_enough(self) -> bool:
        """Whether so many answers say how fast one is."""
        if not self._search.ramp:
            return self._answers >= max(_LEAST_ANSWERS, self._limit // 2)
        if self._speeds.error <= _AGREE and self._answers >= max(_LEAST_AGREE, self._limit // 8):
            return True
        return self._answers >= max(_LEAST_ANSWERS_FAST, self._limit // 4)

    def _are_enough_looks(self) -> bool:
        """Whether so many looks say how many tokens a second there are."""
        looks, error = self._rates.count, self._rates.error
        if self._search.ramp or error <= _ROUGH:
            return looks >= _LOOKS
        return looks >= (_LOOKS_ROUGH if error <= _TOO_ROUGH else _LOOKS_MOST)

    def _is_held_back(self, now: float) -> bool:
        """Whether others keep what is in hand off the level: then it cannot be looked at."""
        return (
            self._neighbours.cap(now) < self._search.level
            or self._search.level - self._neighbours.others(now) < self._floor
        )

    def _follow(self, now: float, before: int) -> None:
        """The limit that follows from all that is known."""
        others = self._neighbours.others(now)
        most = min(self._ceiling + others, self._roof.most(now))
        self._search.most = max(self._floor, math.floor(most))
        self._search.gentle = self._neighbours.are_there(now)
        self._search.keep_in_bounds()
        if self.measure != before:
            self._forget()
            self._forget_looks()
            self._unsteady = 0
        level = math.floor(min(self._search.level, self._neighbours.cap(now)))
        self._limit = max(self._floor, min(level - others, self._ceiling))

    def _forget(self) -> None:
        self._answers = 0
        self._speeds.clear()

    def _forget_looks(self) -> None:
        self._in_hand.clear()
        self._rates.clear()
