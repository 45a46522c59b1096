"""The adaptive limit on simulated engines, in virtual time: what it finds, and how steadily."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import Final

from batchline.executor.limiter import AdaptiveLimit
from bench.engines import KEPT_BACK, SHAPES, Ended, Engine, EngineShape, best_fixed
from bench.report import Floor, Measurement, Row, Table
from bench.rig import Rig

REPORT_S: Final = 0.25  # as workers report
_SHED_WAIT_S: Final = 0.25  # as long as a circuit waits after the first 429
CEILING: Final = 1024
FOUND_BY_S: Final = 30.0
WITHIN: Final = 0.20


@dataclass(slots=True)
class Played:
    """A run: the limit after each report, and what ended when."""

    shape: EngineShape
    limits: list[tuple[float, int]] = field(default_factory=list)
    ended: list[Ended] = field(default_factory=list)
    most_in_flight: int = 0

    def limits_between(self, start: float, stop: float) -> list[int]:
        return [limit for at, limit in self.limits if start <= at < stop]

    def rate_between(self, start: float, stop: float) -> float:
        """Tokens a second of the answers that came in this time."""
        return sum(one.tokens for one in self.ended if start <= one.at < stop) / (stop - start)


def play(shape: EngineShape, *, until: float, seed: int = 1) -> Played:
    """An endless batch on an engine, with as much in flight as the limit allows."""
    engine = Engine(shape, seed=seed)
    limiter = AdaptiveLimit(ceiling=CEILING)
    played = Played(shape)
    changed_at = waits_until = 0.0
    report_at = REPORT_S
    fresh: list[Ended] = []
    while engine.now < until:
        while engine.in_flight < limiter.limit() and engine.now >= waits_until:
            if engine.submit() is not None:
                waits_until = engine.now + _SHED_WAIT_S
                limiter.shed(engine.now, in_flight=engine.in_flight)
                changed_at = engine.now
            played.most_in_flight = max(played.most_in_flight, engine.in_flight)
        next_at = min(report_at, waits_until) if waits_until > engine.now else report_at
        ended = engine.advance(next_at)
        if ended is not None:
            played.ended.append(ended)
            if ended.at - ended.latency_s >= changed_at:
                fresh.append(ended)
        if engine.now < report_at:
            continue
        report_at += REPORT_S
        before = limiter.limit()
        limiter.report(
            engine.now,
            answers=len(fresh),
            tokens=sum(one.tokens for one in fresh),
            latency_s=sum(one.latency_s for one in fresh),
            limited=True,
        )
        fresh.clear()
        if limiter.limit() != before:
            changed_at = engine.now
        played.limits.append((engine.now, limiter.limit()))
    return played


def measure(rig: Rig) -> Measurement:
    """Every shape from a cold start; of the one that changes, each of its three parts."""
    rows: list[Row] = []
    worst = 0.0
    for shape in (*SHAPES, *KEPT_BACK):
        played = play(shape, until=180.0 if shape.changes else 60.0)
        parts = [("from the start", 30.0, 60.0, 1.0)]
        if shape.changes:
            parts += [("half gone", 90.0, 120.0, 0.5), ("back", 150.0, 180.0, 1.0)]
        for what, start, stop, capacity in parts:
            best = best_fixed(shape, capacity=capacity)
            limits = played.limits_between(start, stop)
            off = abs(median(limits) / best.limit - 1)
            worst = max(worst, off)
            rows.append(
                {
                    "engine": shape.name + (", kept back" if shape in KEPT_BACK else ""),
                    "part": what,
                    "best fixed limit": best.limit,
                    "ours, median": median(limits),
                    "lowest to highest": f"{min(limits)} to {max(limits)}",
                    "share of the best rate": played.rate_between(start, stop) / best.tokens_per_s,
                }
            )
    rig.say(f"{len(rows)} parts, virtual time; no process of Batchline takes part")
    return Measurement(
        tables=[Table("The limit between 30 and 60 s after a start or a change", rows)],
        floors=[
            Floor("limit found, off the best fixed one by (worst shape)", worst, at_most=WITHIN)
        ],
        raw={"rows": rows},
    )
