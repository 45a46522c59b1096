"""How fast a batch goes and when it will be done, with a band that says how sure that is.

Arithmetic only: whoever follows a batch hands in what settled and when. How the band comes about,
and how often it holds, is docs/decisions/0028-time-left.md and `bench/progress.py`.

Every instant is in seconds on one clock of the caller's that only goes forward.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Final

ENOUGH_S: Final = 2.0  # seen for less, nothing is said
RATE_WINDOW_S: Final = 60.0  # the rate that is shown is that of the last minute...
RATE_LINES: Final = 20  # ... or of the last lines, where a minute has fewer
APART_S: Final = 0.25
_FINENESS: Final = 24  # what was t seconds ago is known to t / 24
_MAX_POINTS: Final = 400  # a week needs about 300
_TAILS: Final = 32
_PIECES: Final = 6  # a window is cut into so many, and how much they differ is its error

# Chosen by `bench/progress.py` as the narrowest that hold in four looks of five at every shape.
_SHORTEST: Final = 1 / 8  # of the time left: paces of shorter windows are noise for it
_DEVIATIONS: Final = 1.3
_CHANGE: Final = 0.55  # how much a pace may change (as a logarithm) over as long as it was seen
_FURTHER: Final = 2.5  # a trend goes on for so many times as long as it was seen, at most
_SILENCE: Final = 4.0  # a pause goes on for so many times as long as it has, at most
_UNKNOWN_TAIL: Final = 2.0  # times what it would be if lines ended at random
_TAIL: Final = 1.25  # the last lines take so many times as long as the longest before, at most

# Where almost nothing settled lately, say after hours without a backend, errors have no bounds.
_WIDEST: Final = math.log(1_000)  # no bound is further from its pace than that, as a logarithm
_LONGEST_S: Final = 10 * 365.25 * 86_400  # and no time is longer


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeLeft:
    """Seconds. The end is between `least` and `most` in four cases of five."""

    likely: float
    least: float
    most: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What settled a second lately."""

    lines_per_s: float
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class _Point:
    at_s: float
    lines: int
    tokens: int


class Pace:
    """What was seen of one batch since somebody began to look."""

    __slots__ = ("_points", "_tails")

    def __init__(self) -> None:
        self._points: list[_Point] = []
        self._tails: deque[float] = deque(maxlen=_TAILS)

    # -- what is seen ----------------------------------------------------------------------

    def settled(self, at_s: float, lines: int, tokens: int = 0) -> None:
        """So many more lines have a result, which took so many tokens."""
        if lines <= 0:
            return
        points = self._points
        if not points:
            # These were begun before anybody looked: the time that they took is not known.
            points.append(_Point(at_s, 0, 0))
            return
        last = points[-1]
        if len(points) > 1 and at_s - points[-2].at_s < APART_S:
            points.pop()
        points.append(_Point(at_s, last.lines + lines, last.tokens + tokens))
        if len(points) > _MAX_POINTS:
            self._thin(at_s)

    def _thin(self, now_s: float) -> None:
        """Forget details of what was long ago."""
        kept = [self._points[-1]]
        for point in reversed(self._points[1:-1]):
            if kept[-1].at_s - point.at_s >= (now_s - point.at_s) / _FINENESS:
                kept.append(point)
        kept.append(self._points[0])
        self._points = kept[::-1]

    def tail(self, overhang_s: float) -> None:
        """The last lines of a shard took so much longer than its pace would have had them."""
        self._tails.append(max(0.0, overhang_s))

    # -- what follows ----------------------------------------------------------------------

    def rates(self, now_s: float) -> Rates | None:
        """None before there is enough to tell."""
        if not self._is_enough:
            return None
        first, last = self._points[0], self._points[-1]
        from_s = min(now_s - RATE_WINDOW_S, self._when(last.lines - RATE_LINES))
        window_s = now_s - max(from_s, first.at_s)
        lines, tokens = self._at(now_s - window_s)
        return Rates(
            lines_per_s=(last.lines - lines) / window_s,
            tokens_per_s=(last.tokens - tokens) / window_s,
        )

    def left(
        self,
        now_s: float,
        lines: int,
        *,
        in_flight: int = 0,
        all_sent_at_s: float | None = None,
    ) -> TimeLeft | None:
        """How long `lines` more take; None before there is enough to tell.

        `in_flight` are under way at a time, as far as known (0: not at all). `all_sent_at_s` is
        when the last line was sent, None while some are still to be.
        """
        if lines <= 0:
            return TimeLeft(likely=0.0, least=0.0, most=0.0)
        by_pace = self._by_pace(now_s, lines)
        if by_pace is None:
            return None
        if all_sent_at_s is not None:
            return self._of_the_last(by_pace, now_s, lines, in_flight, all_sent_at_s)
        if self._tails:
            least, likely, most = min(self._tails), median(self._tails), max(self._tails)
            least, most = least / 2, most * _TAIL
        else:
            # The lines that are under way are in the pace already, if all take the same time.
            mean_s = in_flight * by_pace.likely / lines
            least, likely, most = 0.0, mean_s, mean_s * _UNKNOWN_TAIL * math.log(in_flight + 1)
        return _in_order(
            likely=by_pace.likely + likely,
            least=by_pace.least + least,
            most=by_pace.most + most,
        )

    def _of_the_last(
        self, by_pace: TimeLeft, now_s: float, lines: int, in_flight: int, sent_at_s: float
    ) -> TimeLeft:
        """When all are sent, the pace says little: it falls with the number that is left."""
        age_s = now_s - sent_at_s
        known = [tail - age_s for tail in self._tails if tail > age_s]
        if known:
            likely, most = median(known), max(known) * _TAIL
        else:
            # What is known of nothing but its age goes on for as long again in half of all cases.
            likely, most = age_s, _SILENCE * age_s
            seen_s = sent_at_s - self._points[0].at_s
            if in_flight and seen_s > 0 and (settled := self._lines_at(sent_at_s)) > 0:
                # If at any moment each is as likely to end as any other.
                forgetful_s = in_flight * seen_s / settled * math.log(lines + 1)
                likely, most = forgetful_s, max(2 * forgetful_s, 2 * age_s)
        return _in_order(
            likely=max(by_pace.likely, likely),
            least=min(by_pace.least, likely / 8),
            most=max(by_pace.most, most),
        )

    def _by_pace(self, now_s: float, lines: int) -> TimeLeft | None:
        """As if the pace of the past went on, whatever its changes were."""
        if not self._is_enough:
            return None
        first, last = self._points[0], self._points[-1]
        # Up to the last result: silence since then is told apart from slowness below.
        seen_s = last.at_s - first.at_s
        rough_s = lines * seen_s / last.lines
        paces = self._paces(seen_s, rough_s)
        window_s = min(seen_s, max(rough_s / 2, ENOUGH_S))
        pace = self._pace_of(window_s)
        error = self._relative_error(window_s, pace)
        change = _CHANGE * math.sqrt(rough_s / (rough_s + seen_s))
        wider = min(_WIDEST, _DEVIATIONS * math.hypot(error, change))
        trend = self._trend(seen_s) * min(_FURTHER, rough_s / seen_s)
        trend = max(-_WIDEST, min(_WIDEST, trend))
        silence_s = self._unusual_silence_s(now_s)
        return _in_order(
            likely=lines / pace * math.exp(-trend / 2) + silence_s,
            least=lines / max(paces, default=pace) * math.exp(-max(0.0, trend) - wider),
            most=lines / min(paces, default=pace) * math.exp(-min(0.0, trend) + wider)
            + _SILENCE * silence_s,
        )

    def _trend(self, seen_s: float) -> float:
        """How much faster (slower: below 0) the later half went, beyond chance, as a logarithm."""
        halves = self._pace_of(seen_s), self._pace_of(seen_s / 2)
        earlier, later = 2 * halves[0] - halves[1], halves[1]
        if earlier <= 0 or later <= 0:
            return 0.0
        chance = 2 * self._relative_error(seen_s, halves[0])
        trend = math.log(later / earlier)
        return math.copysign(max(0.0, abs(trend) - chance), trend)

    @property
    def _is_enough(self) -> bool:
        points = self._points
        return (
            len(points) > 1
            and points[-1].at_s - points[0].at_s >= ENOUGH_S
            and points[-1].lines > 0
        )

    # -- paces of the past, each up to the last result -------------------------------------

    def _paces(self, seen_s: float, rough_s: float) -> list[float]:
        """Of all that was seen, of the later half, of the later half of that, and so on."""
        paces = []
        window_s = seen_s
        shortest_s = min(seen_s, max(rough_s * _SHORTEST, ENOUGH_S))
        while window_s >= shortest_s:
            pace = self._pace_of(window_s)
            if pace > 0:
                paces.append(pace)
            window_s /= 2
        return paces

    def _pace_of(self, window_s: float) -> float:
        last = self._points[-1]
        return (last.lines - self._lines_at(last.at_s - window_s)) / window_s

    def _relative_error(self, window_s: float, pace: float) -> float:
        """How far the pace of a window may be from the one behind it, as far as it shows."""
        end_s = self._points[-1].at_s
        piece_s = window_s / _PIECES
        borders = [self._lines_at(end_s - n * piece_s) for n in range(_PIECES, -1, -1)]
        paces = [(b - a) / piece_s for a, b in pairwise(borders)]
        variance = sum((one - pace) ** 2 for one in paces) / (_PIECES - 1) / _PIECES
        # Lines that end independently scatter by the root of their number, however even it looked.
        return math.sqrt(max(variance / pace**2, 1 / (pace * window_s)))

    def _unusual_silence_s(self, now_s: float) -> float:
        points = self._points
        silence_s = now_s - points[-1].at_s
        usual_s = (points[-1].at_s - points[0].at_s) / (len(points) - 1)
        return max(0.0, silence_s - 3 * max(usual_s, APART_S))

    def _lines_at(self, at_s: float) -> float:
        """Between two points, on the line between them."""
        return self._at(at_s)[0]

    def _when(self, lines: int) -> float:
        """When so many lines had settled, or some of them."""
        after = bisect_right(self._points, lines, key=lambda point: point.lines)
        return self._points[max(0, after - 1)].at_s

    def _at(self, at_s: float) -> tuple[float, float]:
        points = self._points
        after = bisect_right(points, at_s, key=lambda point: point.at_s)
        if after == 0:
            return 0.0, 0.0
        if after == len(points):
            return float(points[-1].lines), float(points[-1].tokens)
        a, b = points[after - 1], points[after]
        share = (at_s - a.at_s) / (b.at_s - a.at_s)
        return a.lines + share * (b.lines - a.lines), a.tokens + share * (b.tokens - a.tokens)


def _in_order(*, likely: float, least: float, most: float) -> TimeLeft:
    """The three as a band: what is likely lies in it, and each is a time that there can be."""
    likely = min(likely, _LONGEST_S)
    return TimeLeft(
        likely=likely, least=min(least, likely), most=min(max(most, likely), _LONGEST_S)
    )
