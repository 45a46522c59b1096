"""How many requests an engine should have in hand: a search, as arithmetic only.

**What is looked for** is the least number from which on more at once bring hardly more tokens a
second. Twice as many should bring at least 2 ** 0.2 times the tokens (15 % more): the utility is
rate / level ** 0.2. Of an engine with a knee, whose rate grows in proportion up to it and not
beyond, that is the knee, whatever the exponent. Of one without, where a token takes a + b * n
seconds, it is 4 a / b, with 80 % of the rate that it never reaches. More that only waits in a queue
always loses.

**How.** It doubles until that no longer pays. Behind a knee the rate is the knee's, and one request
is slower in proportion, so the knee is about rate / (rate of one request when there were few);
where that cannot be, there is none, and the level before the last was good enough. From there on it
tries small steps up and down, larger ones once two in a row were right, stays where neither is
better, and looks again every few seconds. When the rate at an unchanged level falls, the level goes
down at once by as much, to a half at most; and back, unless that paid or it may have been for
others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from batchline.executor.knee import Rate, knee_of

FIRST: Final = 8  # where the search begins: less than nearly any engine takes
_EXPONENT: Final = 0.2
_BETTER: Final = 0.01  # in the logarithm of the utility: less is noise
_GENTLE: Final = 1.4  # instead of doubling
_MUCH_SLOWER: Final = 0.7  # one request, of its top speed: it is about to pay no longer
_STEP: Final = 1.25
_FINE_STEP: Final = 1.1
_SLOWER: Final = 1.15  # at an unchanged level: the capacity has fallen
_HOLD_S: Final = 5.0  # between two looks whether there is more to be had


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the search's level came to: how many were in hand, and their tokens a second."""

    level: int
    in_hand: float
    rate: float

    @property
    def utility(self) -> float:
        return math.log(self.rate) - _EXPONENT * math.log(self.in_hand)


class Search:
    """`level` is how many requests should be in hand now, within `least` and `most`.

    `measure` counts the changes of `level`: what is measured belongs to one of them. `gentle`:
    somebody would suffer from twice too many. `yields`: when each request is slower, somebody else
    may have come whom nobody sees. Instants are the caller's clock, in seconds.
    """

    def __init__(self, *, least: int, most: int) -> None:
        self.least = least
        self.most = most
        self.level = max(least, min(FIRST, most))
        self.measure = 1
        self.gentle = False
        self.yields = False
        self.ramp = True  # doubling; afterwards steps around `_reference`
        self._reference: _Seen | None = None
        self._ramped: dict[int, Rate] = {}  # what was seen on the ramp, by measure
        self._trying = False  # `level` is a step away from the reference
        self._up = True
        self._step = _FINE_STEP
        self._failures = 0
        self._successes = 0
        self._hold_until = -math.inf

    def seen(self, now: float, *, in_hand: float, rate: float) -> None:
        """At this level so many were in hand, and brought `rate` tokens a second."""
        found = _Seen(self.level, in_hand, rate)
        if self.ramp:
            self._climb_fast(found)
        else:
            self._climb(now, found)

    def correct(self, speeds: Mapping[int, float]) -> None:
        """What one request's speed was on the ramp, by measure, is known better by now."""
        for measure, speed in speeds.items():
            if measure in self._ramped:
                in_hand = self._ramped[measure].in_hand
                self._ramped[measure] = Rate(in_hand, in_hand * speed)

    def goes_on(self, *, in_hand: float, rate: float) -> bool:
        """Whether the ramp would, with this seen at the present level."""
        ramped = [*self._ramped.values(), Rate(in_hand, rate)]
        return self._is_better(_Seen(self.level, in_hand, rate)) and knee_of(ramped) is None

    def go(self, level: int) -> None:
        """Whatever was found: search on from `level`, by small steps."""
        self.ramp = False
        self._reference = None
        self._trying = False
        self._change(level)

    def compare_no_more(self) -> None:
        """What was seen so far was measured in another way than what comes."""
        self._reference = None
        self._trying = False
        self._ramped.clear()

    def start_at(self, level: int) -> None:
        """Go on doubling from `level`."""
        self._reference = None
        self._change(level)

    def give_up(self, now: float) -> None:
        """What a step away would come to cannot be seen now: back, and not soon again."""
        if self._trying and self._reference is not None:
            self._trying = False
            self._hold_until = now + _HOLD_S
            self._change(self._reference.level)

    def keep_in_bounds(self) -> None:
        """`most` may be lower than it was."""
        if self.level > self.most:
            self.go(self.most)

    # -- steps -----------------------------------------------------------------------------

    def _climb_fast(self, seen: _Seen) -> None:
        before = self._reference
        # Anew at its end, should it be there: the newest of them is what a knee is judged by.
        self._ramped.pop(self.measure, None)
        self._ramped[self.measure] = newest = Rate(seen.in_hand, seen.rate)
        fastest = min(one.token_s for one in self._ramped.values())
        slower = newest.token_s * _MUCH_SLOWER > fastest
        knee = knee_of([*self._ramped.values()])
        better = self._is_better(seen)
        if better and knee is None:
            self._reference = seen
            self._change(math.ceil(seen.level * (_GENTLE if self.gentle or slower else 2)))
            if self.level > seen.level:
                return
        if knee is not None:
            self.go(round(knee))
        else:
            self.go(seen.level if before is None or better else before.level)

    def _is_better(self, seen: _Seen) -> bool:
        before = self._reference
        return before is None or seen.utility > before.utility + _BETTER

    def _climb(self, now: float, seen: _Seen) -> None:
        reference = self._reference
        if reference is None or not self._trying:
            if reference is not None and seen.rate * _SLOWER < reference.rate:
                level = max(round(seen.level * seen.rate / reference.rate), seen.level // 2)
                self._failures = self._successes = 0
                if self.yields:
                    self.go(level)
                else:
                    self._test_a_fall(seen, level)
                return
            self._reference = seen
            if now >= self._hold_until:
                self._try(seen.level)
            return
        if seen.utility > reference.utility + _BETTER:
            self._reference = seen
            self._failures = 0
            self._successes += 1
            self._step = _STEP if self._successes > 1 and not self.gentle else _FINE_STEP
            self._try(seen.level)
            return
        self._failures += 1
        self._successes = 0
        self._up = not self._up
        self._trying = False
        self._change(reference.level)
        if self._failures >= 2:
            self._failures = 0
            self._step = _FINE_STEP
            self._up = True
            self._hold_until = now + _HOLD_S

    def _test_a_fall(self, seen: _Seen, level: int) -> None:
        """The rate has fallen: as many as still fit, if it is the capacity that has.

        It may as well be that others of our lines run now, whose prompts are longer for as many
        tokens; fewer then bring less. So it is a step like any other, and taken back when it does
        not pay.
        """
        self._reference = seen
        self._up = False
        self._trying = True
        self._change(level)
        if self.level == seen.level:
            self._trying = False

    def _try(self, level: int) -> None:
        target = math.ceil(level * self._step) if self._up else math.floor(level / self._step)
        self._trying = True
        self._change(target)
        if self.level == level:  # there is no room on this side
            self._trying = False
            self._up = not self._up

    def _change(self, level: int) -> None:
        level = max(self.least, min(level, self.most))
        if level != self.level:
            self.level = level
            self.measure += 1
