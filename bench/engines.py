"""Simulated inference engines in virtual time: what a limiter is developed and judged on.

**The model.** A batching engine runs up to `max_running` requests at once and gives each of them
one token a step. A step with n running requests takes `step_s * (1 + drag * n)` seconds up to the
knee and n / knee times that beyond it: decoding is bound by memory up to there and by arithmetic
after it. So the engine's tokens a second grow almost in proportion up to the knee, and not at all
behind it, where every request only takes longer. What is more than `max_running` waits in a queue,
in order; what is more than `sheds_above` at once is answered 429. `capacity` scales the knee over
time: interactive traffic takes its share of an engine in this way.

Requests have output lengths of a log-normal distribution (sigma 0.5), known to nobody beforehand.

Nothing here sleeps: 60 seconds of an engine with 500 requests in flight take a second or two.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

NEVER: Final = math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineShape:
    """One kind of engine; `tokens` is the mean length of an answer, `step_s` seconds a token.

    `capacity` gives the share of the knee that is there at a time (seconds from the start).
    """

    name: str
    knee: int
    step_s: float = 0.02
    tokens: float = 60.0
    drag: float = 0.0002
    max_running: int = 100_000
    sheds_above: int = 100_000
    capacity: Callable[[float], float] = field(default=lambda _: 1.0)
    changes: tuple[float, ...] = ()  # instants at which `capacity` changes


@dataclass(frozen=True, slots=True)
class Ended:
    """A request that ended: how long it took, and its tokens; `shed` with 429 at once."""

    at: float
    latency_s: float
    tokens: int
    shed: bool = False


class Engine:
    """A shape that runs. `submit` requests, `advance` the clock, and hear what ended."""

    def __init__(self, shape: EngineShape, *, seed: int) -> None:
        self.shape = shape
        self.now = 0.0
        self._chance = random.Random(seed)  # noqa: S311  # lengths, not secrets
        self._work = 0.0  # tokens that each running request has been given since the start
        self._running: list[
            tuple[float, int, float, int]
        ] = []  # (work at its end, n, began, tokens)
        self._queue: deque[tuple[float, int]] = deque()  # (began, tokens)
        self._number = 0

    @property
    def in_flight(self) -> int:
        return len(self._running) + len(self._queue)

    def submit(self) -> Ended | None:
        """Take a request; what came of it when it was shed."""
        if self.in_flight >= self.shape.sheds_above:
            return Ended(self.now, 0.0, 0, shed=True)
        sigma = 0.5
        mu = math.log(self.shape.tokens) - sigma * sigma / 2
        tokens = max(1, round(self._chance.lognormvariate(mu, sigma)))
        if len(self._running) < self.shape.max_running:
            self._run(self.now, tokens)
        else:
            self._queue.append((self.now, tokens))
        return None

    def advance(self, until: float) -> Ended | None:
        """Move the clock to the next end of a request, or to `until` if none ends before."""
        while True:
            change = min((at for at in self.shape.changes if at > self.now), default=NEVER)
            step_s = self._step_s()
            end = NEVER
            if self._running:
                end = self.now + (self._running[0][0] - self._work) * step_s
            at = min(end, until, change)
            if self._running:
                self._work += (at - self.now) / step_s
            self.now = at
            if at == end:
                work, _, began, tokens = heapq.heappop(self._running)
                self._work = work
                if self._queue:
                    self._run(*self._queue.popleft())
                return Ended(self.now, self.now - began, tokens)
            if at == until:
                return None

    def _run(self, began: float, tokens: int) -> None:
        self._number += 1
        heapq.heappush(self._running, (self._work + tokens, self._number, began, tokens))

    def _step_s(self) -> float:
        n = len(self._running)
        knee = max(1.0, self.shape.knee * self.shape.capacity(self.now))
        return self.shape.step_s * (1 + self.shape.drag * n) * max(1.0, n / knee)


def halved_from_to(start: float, stop: float) -> Callable[[float], float]:
    """Half of the capacity is gone from `start` to `stop`."""
    return lambda now: 0.5 if start <= now < stop else 1.0


# Tuned on the first five; the last two were looked at once, when the limiter was finished.
SHAPES: Final = (
    EngineShape(name="knee at 8", knee=8),
    EngineShape(name="knee at 64", knee=64),
    EngineShape(name="knee at 512", knee=512),
    EngineShape(name="429 above 40", knee=200, sheds_above=40),
    EngineShape(
        name="knee at 64, half of it gone from 60 s to 120 s",
        knee=64,
        capacity=halved_from_to(60.0, 120.0),
        changes=(60.0, 120.0),
    ),
)
KEPT_BACK: Final = (
    EngineShape(name="knee at 24, long answers, slow", knee=24, step_s=0.03, tokens=150.0),
    EngineShape(name="knee at 150, runs 96 and queues the rest", knee=150, max_running=96),
)


@dataclass(frozen=True, slots=True)
class Fixed:
    """What a fixed limit comes to on a shape."""

    limit: int
    tokens_per_s: float


def steady_rate(shape: EngineShape, limit: int, *, capacity: float = 1.0) -> float:
    """Tokens a second at `limit` in flight, from the model's formula."""
    n = min(limit, shape.max_running, shape.sheds_above)
    knee = max(1.0, shape.knee * capacity)
    return n / (shape.step_s * (1 + shape.drag * n) * max(1.0, n / knee))


def best_fixed(shape: EngineShape, *, capacity: float = 1.0, highest: int = 2_000) -> Fixed:
    """The least limit with 99 % of the rate that any limit has."""
    rates = {limit: steady_rate(shape, limit, capacity=capacity) for limit in range(1, highest)}
    most = max(rates.values())
    limit = next(limit for limit, rate in rates.items() if rate >= 0.99 * most)
    return Fixed(limit, rates[limit])
