"""The learnt limit of one backend: what workers and the engine's page say, told to the limiter.

Nothing here waits or sends. `Admission` calls it with what it hears, and hands out what `limit`
says.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

from batchline.executor import messages as m
from batchline.executor.contract import BackendSettings, Concurrency
from batchline.executor.engine_load import EngineLoad
from batchline.executor.limiter import AdaptiveLimit, Look

_RECENT_S: Final = 0.75  # a look is compared with the most that we had for so long before it
_NEXT_LOOK_S: Final = 2.0  # two looks further apart say nothing of what lies between


@dataclass(slots=True)
class _Heard:
    """A worker's last reports: when, in flight, and whether that was all it may."""

    order: int = 0
    in_flight: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=8))
    limited: bool = False


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

    def report(self, worker: str, message: m.LaneReport, *, now: float, order: int) -> None:
        """A worker's word; `order` is the number of the newest that it was given."""
        heard = self._heard.setdefault(worker, _Heard())
        if message.order != heard.order:
            # What it had before it obeyed is no measure of what it may have now.
            heard.in_flight.clear()
        heard.order = message.order
        heard.in_flight.append((now, message.in_flight))
        heard.limited = message.limited
        if message.order == order and message.measure == self.measure:
            self._limiter.report(
                now,
                answers=message.answers,
                tokens=message.tokens,
                latency_s=message.latency_s,
                limited=message.limited,
            )

    def shed(self, worker: str, message: m.BackendFault, *, now: float, first: bool) -> None:
        """A refusal for load; `first`: lines went to the backend until now."""
        others = sum(
            heard.in_flight[-1][1]
            for name, heard in self._heard.items()
            if name != worker and heard.in_flight
        )
        self._limiter.shed(now, in_flight=message.in_flight + others, first=first)

    def look(
        self,
        load: EngineLoad,
        *,
        now: float,
        held: Mapping[str, int],
        orders: Mapping[str, int],
        wanting: Collection[str],
    ) -> None:
        """The engine's page. `held` is the most that each worker may have in flight."""
        last, self._last = self._last, (now, load)
        self._limiter.look(
            now,
            Look(
                running=load.running,
                waiting=load.waiting,
                kv_use=load.kv_use,
                token_s=_token_s(last, now, load),
                ours=sum(
                    self._most_of(worker, now, held=most, order=orders.get(worker, 0))
                    for worker, most in held.items()
                ),
                limited=all(
                    worker in self._heard and self._heard[worker].limited for worker in wanting
                ),
            ),
        )

    def _most_of(self, worker: str, now: float, *, held: int, order: int) -> int:
        """The most that a worker may have had in flight a moment ago."""
        heard = self._heard.get(worker)
        if heard is None or heard.order != order or len(heard.in_flight) < 2:
            return held
        return max(
            heard.in_flight[-1][1],
            max((count for at, count in heard.in_flight if at >= now - _RECENT_S), default=0),
        )

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
    return gap_s / gaps if gaps > 0 and gap_s > 0 else None
