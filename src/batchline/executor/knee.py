"""Where requests begin to wait for each other, from a few numbers that were seen. Pure.

Of an engine there are two kinds of times of a token: as long as there is room it is a + b * n, with
a small b or none; beyond the knee the engine gives all of its tokens a second, and they are shared.
The line is drawn through the numbers that were clearly below that rate; the knee is where both say
the same. What lies on the line is no knee, however steep the line is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_BELOW: Final = 0.75  # of the highest rate: that is not what the engine can do in all
_BENT: Final = 1.12  # times what the line says
_BENT_BY_ONE: Final = 1.15  # the same of a single number, which does not tell how steep the line is


@dataclass(frozen=True, slots=True)
class Rate:
    """So many in hand brought so many tokens a second."""

    in_hand: float
    rate: float

    @property
    def token_s(self) -> float:
        return self.in_hand / self.rate


def knee_of(seen: Sequence[Rate]) -> float | None:
    """The knee that the newest of them lies beyond; None when it lies beyond none."""
    newest = seen[-1]
    most = max(one.rate for one in seen)
    below = [one for one in seen if one.rate < _BELOW * most]
    if not below:
        return None
    first_s, slope_s = _line(below)
    bent = _BENT if len(below) > 1 else _BENT_BY_ONE
    if newest.token_s < bent * (first_s + slope_s * newest.in_hand):
        return None
    shared_s = 1 / most - slope_s  # with each request more
    return first_s / shared_s if shared_s > 0 else None


def _line(points: Sequence[Rate]) -> tuple[float, float]:
    """The rising line that is nearest to the points: its begin and its slope."""
    x = sum(one.in_hand for one in points) / len(points)
    y = sum(one.token_s for one in points) / len(points)
    spread = sum((one.in_hand - x) ** 2 for one in points)
    if not spread:
        return y, 0.0
    slope = sum((one.in_hand - x) * (one.token_s - y) for one in points) / spread
    slope = min(max(0.0, slope), y / x)  # a request alone takes some time
    return y - slope * x, slope
