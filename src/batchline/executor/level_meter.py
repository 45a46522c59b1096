"""What a worker tells of a backend whose limit is learnt: answers, tokens and how long they took.

Of answers only that were asked for at the present level: one that began before says something of
two. A lane has a meter or none; without one it costs a comparison or two a line.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from batchline.domain.model import Usage
from batchline.executor.contract import BackendSettings, Concurrency
from batchline.executor.messages import LaneReport

REPORT_S: Final = 0.25


@dataclass(slots=True, eq=False)
class LevelMeter:
    """One lane's. Owned by the worker's event loop.

    `starved`: since the last report there was a moment in which a permit was free and no line was.
    """

    clock: Callable[[], float] = time.monotonic
    starved: bool = False
    _measure: int = 0
    _since: float = 0.0
    _answers: int = 0
    _tokens: int = 0
    _latency_s: float = 0.0
    _at_rest: bool = True  # the last report said that there was nothing to report

    def begin_anew(self, measure: int) -> None:
        """Requests that begin from now on belong to `measure`."""
        if measure != self._measure:
            self._measure, self._since = measure, self.clock()
            self._clear()

    def answered(self, began: float, usage: Usage | None) -> None:
        """A request that began at `began` has its good answer."""
        if began < self._since:
            return
        self._answers += 1
        self._tokens += 0 if usage is None else usage.output_tokens
        self._latency_s += self.clock() - began

    def report(
        self, backend: str, *, order: int, permits: int, in_flight: int, full: bool
    ) -> LaneReport | None:
        """What there is to tell since the last report; None when that said that nothing goes on.

        `full`: so many are in flight now as may be.
        """
        at_rest = not permits and not in_flight
        if at_rest and self._at_rest:
            return None
        self._at_rest = at_rest
        report = LaneReport(
            backend=backend,
            measure=self._measure,
            order=order,
            in_flight=in_flight,
            limited=full and not self.starved,
            answers=self._answers,
            tokens=self._tokens,
            latency_s=self._latency_s,
        )
        self.starved = False
        self._clear()
        return report

    def _clear(self) -> None:
        self._answers = self._tokens = 0
        self._latency_s = 0.0


def meter_of(backend: BackendSettings) -> LevelMeter | None:
    """None for a backend whose limit is what was configured."""
    return LevelMeter() if backend.concurrency is Concurrency.ADAPTIVE else None
