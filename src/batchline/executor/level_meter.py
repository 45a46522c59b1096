"""What a worker tells of a backend whose limit is learnt: answers, tokens and how long they took.

Those that were asked for at the present level are told apart from older ones, which say something
of several levels: how long they spent at each goes with them. A lane has a meter or none; without
one it costs a comparison or two a line.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from batchline.domain.model import Usage
from batchline.executor.contract import BackendSettings, Concurrency
from batchline.executor.messages import LaneReport, OlderAnswers

REPORT_S: Final = 0.25
_PAST: Final = 8  # levels that are remembered: an answer that is older than all of them is left out


class _Older:
    """Answers since the last report that began before the present level."""

    def __init__(self) -> None:
        self._answers = self._tokens = 0
        self._seconds: dict[int, float] = {}
        self._before: dict[int, int] = {}

    def add(
        self, began: float, ended: float, tokens: int, levels: deque[tuple[int, float]]
    ) -> None:
        """`levels` and when they began, the newest first; the oldest had begun by `began`."""
        self._answers += 1
        self._tokens += tokens
        until = ended
        for measure, since in levels:
            spent = until - max(since, began)
            self._seconds[measure] = self._seconds.get(measure, 0.0) + spent
            if since <= began:
                break
            self._before[measure] = self._before.get(measure, 0) + 1
            until = since

    def told(self) -> OlderAnswers:
        return OlderAnswers(self._answers, self._tokens, self._seconds, self._before)


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
    _older: _Older | None = None
    _levels: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=_PAST))
    _at_rest: bool = True  # the last report said that there was nothing to report

    def begin_anew(self, measure: int) -> None:
        """Requests that begin from now on belong to `measure`."""
        if measure != self._measure:
            self._measure, self._since = measure, self.clock()
            self._levels.appendleft((measure, self._since))
            self._clear()

    def answered(self, began: float, usage: Usage | None) -> None:
        """A request that began at `began` has its good answer."""
        tokens = 0 if usage is None else usage.output_tokens
        if began < self._since:
            if self._levels[-1][1] <= began:
                self._older = self._older or _Older()
                self._older.add(began, self.clock(), tokens, self._levels)
            return
        self._answers += 1
        self._tokens += tokens
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
            older=None if self._older is None else self._older.told(),
        )
        self.starved = False
        self._clear()
        return report

    def _clear(self) -> None:
        self._answers = self._tokens = 0
        self._latency_s = 0.0
        self._older = None


def meter_of(backend: BackendSettings) -> LevelMeter | None:
    """None for a backend whose limit is what was configured."""
    return LevelMeter() if backend.concurrency is Concurrency.ADAPTIVE else None
