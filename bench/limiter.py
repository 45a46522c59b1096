"""The adaptive limit on simulated engines, in virtual time: what it finds, and how steadily."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import Final

from batchline import telemetry
from bench import limiter_turns
from bench.engines import (
    FIRST_KEPT_BACK,
    KEPT_BACK,
    LONG_PROMPTS,
    SECOND_KEPT_BACK,
    SHAPES,
    SLOW,
    THIRD_KEPT_BACK,
    EngineShape,
    Fixed,
    best_fixed,
    steady_rate,
)
from bench.report import Floor, Measurement, Row, Table, spread
from bench.rig import Rig
from bench.steered import CEILING, Play

FOUND_BY_S: Final = 30.0
WITHIN: Final = 0.20
TUNED_ON: Final = (*SHAPES, *FIRST_KEPT_BACK, *SECOND_KEPT_BACK, *THIRD_KEPT_BACK)
SEEDS: Final = (1, 2, 3)
SLOW_SEEDS: Final = range(1, 9)
SLOW_UNTIL_S: Final = 300.0
_STRETCH_S: Final = (
    10.0  # over which a limit is looked at: steps up and down are tried all the time
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A stretch of a run over which the capacity is the same."""

    name: str
    start: float
    stop: float
    capacity: float = 1.0


def parts_of(shape: EngineShape) -> list[Part]:
    """The whole of a run, or what lies between the changes of its shape."""
    if not shape.changes:
        return [Part(name="from the start", start=0.0, stop=90.0)]
    first, second = shape.changes
    return [
        Part(name="from the start", start=0.0, stop=first),
        Part(name="half gone", start=first, stop=second, capacity=0.5),
        Part(name="back", start=second, stop=second + 60.0),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What the limit came to in one part of one run.

    `after_s`: from then on, to the end of the part, the median of every ten seconds is within reach
    of the best: no more than 1.2 times as many, for no less than 80 % of the tokens by the engine's
    formula. Of an engine with a knee that is within 20 % of the knee. `rate` is what came, as a
    share of what the best brings, in the part's second half.
    """

    best: int
    after_s: float
    limit: float
    lowest: int
    highest: int
    rate: float


def found(play: Play, part: Part) -> Found:
    """Look at a run."""
    best = best_fixed(play.shape, capacity=part.capacity, ceiling=play.ceiling)
    middle = part.start + (part.stop - part.start) / 2
    late = play.limits(middle, part.stop)
    return Found(
        best=best.limit,
        after_s=_found_after_s(play, part, best),
        limit=median(late),
        lowest=min(late),
        highest=max(late),
        rate=play.rate(middle, part.stop) / best.tokens_per_s,
    )


def _found_after_s(play: Play, part: Part, best: Fixed) -> float:
    """Since when the median of each stretch is within reach of `best`, for good."""
    stretches = list(_stretches(part))
    for start in reversed(stretches):
        limit = round(median(play.limits(start, start + _STRETCH_S)))
        rate = steady_rate(play.shape, limit, capacity=part.capacity)
        near = limit <= (1 + WITHIN) * best.limit and rate >= (1 - WITHIN) * best.tokens_per_s
        if not near:
            return start + 1.0 - part.start
    return 0.0


def _stretches(part: Part) -> Iterator[float]:
    start = part.start
    while start + _STRETCH_S <= part.stop:
        yield start
        start += 1.0


def played(shape: EngineShape, *, seed: int = 1, until: float | None = None) -> Play:
    """An endless batch on an engine, from a cold start."""
    play = Play(shape=shape, seed=seed)
    play.run(parts_of(shape)[-1].stop if until is None else until)
    return play


def _long_prompts() -> Table:
    rows: list[Row] = []
    for shape in LONG_PROMPTS:
        best = best_fixed(shape, ceiling=CEILING)
        plays = [played(shape, seed=seed, until=240.0) for seed in SEEDS]
        rows.append(
            {
                "engine": shape.name,
                "best fixed limit": best.limit,
                "limit, median": median(median(play.limits(30.0)) for play in plays),
                "share of the best rate": spread(
                    [play.rate(30.0, 240.0) / best.tokens_per_s for play in plays]
                ),
            }
        )
    return Table("Long prompts, which wait in a queue until they are read", rows)


def _slow() -> Table:
    rows: list[Row] = []
    for shape in SLOW:
        plays = [played(shape, seed=seed, until=SLOW_UNTIL_S) for seed in SLOW_SEEDS]
        (part,) = parts_of(shape)
        finds = [found(play, part) for play in plays]
        best = best_fixed(shape, ceiling=CEILING)
        early, late = (
            spread([play.rate(start, stop) / best.tokens_per_s for play in plays])
            for start, stop in ((0.0, part.stop), (part.stop, SLOW_UNTIL_S))
        )
        rows.append(
            {
                "engine": shape.name,
                "best fixed limit": best.limit,
                "found": median(one.limit for one in finds),
                "found after, s": spread([one.after_s for one in finds]),
                "share of the best rate, to 90 s": early,
                "from 90 to 300 s": late,
            }
        )
    return Table("Slow answers and no page; 81 s is not within the 90", rows)


def measure(rig: Rig) -> Measurement:
    """Every shape from a cold start with each seed; of the one that changes, each of its parts."""
    rows: list[Row] = []
    slowest = worst = 0.0
    telemetry.configure_logging(level="error")  # of circuits that close in a simulation
    whole = rig.size.percent >= 100
    for shape in (*TUNED_ON, *KEPT_BACK) if whole else SHAPES[:2]:
        plays = [played(shape, seed=seed) for seed in (SEEDS if whole else SEEDS[:1])]
        for part in parts_of(shape):
            finds = [found(play, part) for play in plays]
            if shape in TUNED_ON:
                slowest = max(slowest, *(one.after_s for one in finds))
            worst = max(worst, *(1 - one.rate for one in finds))
            rows.append(
                {
                    "engine": shape.name + (" (kept back)" if shape in KEPT_BACK else ""),
                    "part": part.name,
                    "best fixed limit": finds[0].best,
                    "found": median(one.limit for one in finds),
                    "lowest to highest": (
                        f"{min(one.lowest for one in finds)} to {max(one.highest for one in finds)}"
                    ),
                    "found after, s (slowest)": max(one.after_s for one in finds),
                    "share of the best rate": min(one.rate for one in finds),
                    "refused of 1,000": 1_000 * max(p.refused / len(p.ended) for p in plays),
                }
            )
    rig.say(f"{len(rows)} parts, virtual time; no process of Batchline takes part")
    return Measurement(
        tables=[
            Table("The limit in the second half of each part; the worst of three runs", rows),
            *([_slow(), _long_prompts(), limiter_turns.table(SEEDS)] if whole else []),
        ],
        floors=[
            Floor(
                "adaptive limit, seconds until it is near the best (slowest of those tuned on)",
                slowest,
                at_most=FOUND_BY_S,
            ),
            Floor(
                "adaptive limit, share of the best fixed one's tokens (least)",
                1 - worst,
                at_least=1 - WITHIN,
            ),
        ],
        raw={"rows": rows},
    )
