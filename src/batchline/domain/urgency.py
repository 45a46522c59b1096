"""Who will be late, and how much more they get for it: arithmetic only.

Sharing and deadlines ask for different orders. While every window can be kept it does not matter
for deadlines who goes first, and sharing lets small batches end soon; so the order by deadline is
taken only when one is in danger, and never takes everything.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

URGENT_FRACTION: Final = 0.1  # of a window: the end of it, where no rate is known to go by
FIRST_PART: Final = 0.75  # of its project's turns go to a batch in danger; the rest is shared
CAREFUL: Final = 0.8  # of the rate is counted on, inside a project: the order costs nobody else


class Demand(NamedTuple):
    """A batch that is not done: how much is left of it, until when. Instants in Unix seconds."""

    batch: int
    created_at: int
    expires_at: int
    work: float
    waits: bool = True  # something of it can be handed out


@dataclass(frozen=True, slots=True, kw_only=True)
class Danger:
    """What looks like being late in one project.

    `first` is the batch that goes before its siblings; None when nobody is in danger. `beyond`:
    not even that would do, the project needs more than its share.
    """

    first: int | None = None
    beyond: bool = False


def danger(
    demands: Iterable[Demand], *, now: float, rate: float | None, most: float | None
) -> Danger:
    """What is in danger of the batches of one project, which come in order of their deadlines.

    `rate` is the work a second that the project is sure to get, `most` what there is of it when
    it gets everything; None where nothing is known. Batches that not even `most` would save take
    nobody's place: they share like the others.
    """
    if rate is None or most is None:
        return Danger(first=_at_the_end(demands, now))
    earliest = first = None
    due = 0.0
    for demand in demands:
        left_s = demand.expires_at - now
        if left_s <= 0 or demand.work > most * left_s:
            continue
        due += demand.work
        if earliest is None and demand.waits:
            earliest = demand.batch
        able = rate * FIRST_PART * left_s
        if first is None and due > able * CAREFUL:
            first = earliest
        if due > able:
            return Danger(first=first, beyond=True)
    return Danger(first=first)


def _at_the_end(demands: Iterable[Demand], now: float) -> int | None:
    """The earliest batch in the last tenth of its window."""
    for demand in demands:
        window_s = demand.expires_at - demand.created_at
        if demand.waits and demand.expires_at - now < window_s * URGENT_FRACTION:
            return demand.batch
    return None


def raised_weight(weight: float, *, of_all: float, of_urgent: float, urgent_share: float) -> float:
    """The weight of a project that needs more than its share, while it does.

    `of_all` is the sum of all weights that compete, `of_urgent` that of the urgent ones among them.
    The urgent ones together get `urgent_share` of everything on top of what the rest of it gives
    them; so whoever is not urgent keeps `1 - urgent_share` of its share, however many are.
    """
    return weight * (1 + urgent_share / (1 - urgent_share) * of_all / of_urgent)


def first_part(others: int) -> float:
    """The weight of a batch in danger beside so many siblings of weight 1."""
    return max(1.0, FIRST_PART / (1 - FIRST_PART) * others)
