"""The learnt limit of one backend: what workers and the engine's page say, told to the limiter.

Nothing here waits or sends. `Admission` calls it with what it hears, and hands out what `limit`
says.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

from batchline.executor import messages as m
from batchline.executor.contract import BackendSettings, Concurrency
from batchline.executor.engine_load import EngineLoad
from batchline.executor.limiter import AdaptiveLimit, Look
from batchline.executor.permits import PermitPool

_LEAST_TOKEN_S: Final = 1e-6  # less is nonsense, and nearly nothing is a rate of infinity
_NEXT_LOOK_S: Final = 2.0  # two looks further apart say nothing of what lies between


@dataclass(slots=True)
class _Heard:
    """A worker's last two reports: the order that it obeyed, and how many it had in flight; and
    whether that was all it may."""

    in_flight: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=2))
    limited: bool = False


class PageAge:
    """How far a page lags behind, and the most that we had in flight at any time that it may show.

    Some engines write their numbers anew once a second only. When we had much more at one look than
    at the one before, the page has to show it: how long that takes is its age. Without that what we
    have just given up would be taken for somebody else's.
    """

    _RISE: Final = 1.3  # times as many as before: enough to be told from what others do
    _SHOWN: Final = 0.9
    _LONGEST_S: Final = 3.0
    _LEAST_S: Final = 0.6  # the look before this one
    _FORGETS: Final = 0.9  # of what was seen before, at each rise

    def __init__(self) -> None:
        self._ours: deque[tuple[float, int]] = deque(maxlen=16)
        self.age_s = 0.0
        self._rise: tuple[float, float] | None = None  # since when, what is to be shown

    def note(self, now: float, *, ours: int, in_hand: int) -> None:
        """At this look we had at most `ours`, and the page says `in_hand`."""
        if self._ours and now > self._ours[-1][0] + _NEXT_LOOK_S:
            # Nobody looked meanwhile: how long it took to show is not known, and an idle hour would
            # be taken for the page's age.
            self._rise = None
        if self._rise is not None:
            since, shown = self._rise
            if in_hand >= shown or now - since > self._LONGEST_S:
                self.age_s = max(self._FORGETS * self.age_s, min(now - since, self._LONGEST_S))
                self._rise = None
        elif self._ours and ours >= self._RISE * max(4, self._ours[-1][1]) > in_hand:
            self._rise = (now, self._SHOWN * ours)
        self._ours.append((now, ours))

    def most_ours(self, now: float) -> int:
        """The most that the page may have counted of ours."""
        since = now - self._LEAST_S - self.age_s
        return max(count for at, count in self._ours if at >= since)


class Steering:
    """Of one backend whose `concurrency` is adaptive."""

    def __init__(self, backend: BackendSettings) -> None:
        self._limiter = AdaptiveLimit(
            floor=backend.min_in_flight,
            ceiling=backend.max_in_flight,
            slowdown=backend.interactive_slowdown,
        )
        self._heard: dict[str, _Heard] = {}
        self._last: tuple[float, EngineLoad] | None = None
        self._age = PageAge()

    @property
    def limit(self) -> int:
        return self._limiter.limit()

    @property
    def measure(self) -> int:
        """What workers are to report under."""
        return self._limiter.measure

    @property
    def is_settled(self) -> bool:
        return self._limiter.is_settled

    def set_ceiling(self, ceiling: int, *, now: float) -> None:
        """The most that there may be has changed."""
        self._limiter.set_ceiling(now, ceiling)

    def report(self, worker: str, message: m.LaneReport, *, now: float, order: int) -> None:
        """A worker's word; `order` is the number of the newest that it was given."""
        heard = self._heard.setdefault(worker, _Heard())
        heard.in_flight.append((message.order, message.in_flight))
        heard.limited = message.limited
        if message.order == order and message.measure == self.measure:
            self._limiter.report(
                now,
                answers=message.answers,
                tokens=message.tokens,
                latency_s=message.latency_s,
                limited=message.limited,
                older=message.older,
            )

    def shed(
        self,
        worker: str,
        message: m.BackendFault,
        *,
        now: float,
        first: bool,
        pool: PermitPool,
    ) -> None:
        """A refusal for load; `first`: lines went to the backend until now."""
        others = sum(self._most_of(name, pool) for name in pool.held if name != worker)
        self._limiter.shed(now, in_flight=message.in_flight + others, first=first)

    def look(
        self,
        load: EngineLoad,
        *,
        now: float,
        pool: PermitPool,
        wanting: Collection[str],
    ) -> None:
        """The engine's page."""
        last, self._last = self._last, (now, load)
        ours = sum(self._most_of(worker, pool) for worker in pool.held)
        self._age.note(now, ours=ours, in_hand=load.running + load.waiting)
        self._limiter.look(
            now,
            Look(
                running=load.running,
                waiting=load.waiting,
                kv_use=load.kv_use,
                token_s=_token_s(last, now, load),
                ours=self._age.most_ours(now),
                age_s=self._age.age_s,
                # Of nobody it would be true: a backend that a person drained, and others use.
                limited=bool(wanting)
                and all(
                    worker in self._heard and self._heard[worker].limited for worker in wanting
                ),
            ),
        )

    def _most_of(self, worker: str, pool: PermitPool) -> int:
        """The most that a worker may have in flight.

        What it said under its newest order, when it said so twice; before that what it had last, if
        that is more than it may have by now.
        """
        held = pool.held[worker]
        heard = self._heard.get(worker)
        if heard is None or not heard.in_flight:
            return held
        newest = pool.orders.get(worker, 0)
        counts = [count for order, count in heard.in_flight if order == newest]
        if len(counts) > 1:
            return max(counts)
        return min(held, max(heard.in_flight[-1][1], pool.told.get(worker, 0)))

    def gone(self, worker: str) -> None:
        """The worker is reaped, or has no line for the backend: what it said is over."""
        self._heard.pop(worker, None)


def steering_of(backend: BackendSettings) -> Steering | None:
    """None where the limit is what was configured."""
    return Steering(backend) if backend.concurrency is Concurrency.ADAPTIVE else None


def _token_s(last: tuple[float, EngineLoad] | None, now: float, load: EngineLoad) -> float | None:
    """What a token took between two looks; None when they do not tell, or are not of one run."""
    if last is None or now > last[0] + _NEXT_LOOK_S:
        return None
    before = last[1]
    if None in (before.gaps, before.gap_s, load.gaps, load.gap_s):
        return None
    gaps = (load.gaps or 0.0) - (before.gaps or 0.0)
    gap_s = (load.gap_s or 0.0) - (before.gap_s or 0.0)
    return gap_s / gaps if gaps > 0 and gap_s > gaps * _LEAST_TOKEN_S else None
