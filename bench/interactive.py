"""A batch beside interactive requests on one simulated engine, in virtual time.

The interactive requests come by chance (a Poisson process) at a rate that jumps every minute
between a little and most of what the engine can do. What is spare is what the engine can do in all
less what they take.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import partial
from statistics import mean
from typing import Final

from bench.engines import EngineShape, steady_rate
from bench.report import Measurement, Row, Table, percentile
from bench.rig import Rig
from bench.steered import Play

UNTIL_S: Final = 360.0
WARM_S: Final = 60.0  # before it nothing is looked at: the limit is still being found
SHARES: Final = (0.15, 0.6)  # of what the engine can do: low, high, low, high ...
PERIOD_S: Final = 60.0
_ANSWER: Final = 60.0  # tokens of an interactive answer in the mean
SLOWDOWN: Final = 1.3
SPARE: Final = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """An engine, the answers of the batch on it, and how high others may load it."""

    shape: EngineShape
    batch_tokens: float = 60.0
    kept_back: bool = False

    @property
    def most(self) -> int:
        """How many the engine can make good use of."""
        return min(self.shape.knee, self.shape.places)

    @property
    def can_do(self) -> float:
        """Tokens a second with so many."""
        return steady_rate(self.shape, self.most)


def shape(name: str, knee: int, **more: float) -> EngineShape:
    """An engine with a page."""
    age_s = more.pop("page_age_s", 0.0)
    places = int(more.pop("places", 100_000))
    return EngineShape(name=name, knee=knee, places=places, page_age_s=age_s, **more)


STAGES: Final = (
    Stage(shape=shape("knee at 64", 64)),
    Stage(shape=shape("knee at 64, batch answers of 6 s", 64), batch_tokens=300.0),
    Stage(shape=shape("32 places, then a queue", 100_000, places=32)),
)
KEPT_BACK: Final = (
    Stage(
        shape=shape("knee at 200, a third of its time reads", 200, read_s=0.003),
        kept_back=True,
    ),
    Stage(shape=shape("knee at 24, a page 1 s old", 24, page_age_s=1.0), kept_back=True),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How the batch goes about it; None for `ceiling`: there is no batch."""

    name: str
    ceiling: int | None
    fixed: bool = False
    page: bool = True
    priority: int = 0


ALONE: Final = Way(name="no batch", ceiling=None)
UNGATED: Final = Way(name="256 at once", ceiling=256, fixed=True)
OURS: Final = Way(name="adaptive", ceiling=1024)
WAYS: Final = (
    ALONE,
    UNGATED,
    OURS,
    Way(name="adaptive, no page", ceiling=1024, page=False),
    Way(name="256 at once, priority", ceiling=256, fixed=True, priority=1),
    Way(name="adaptive, priority", ceiling=1024, priority=1),
)


def acted(stage: Stage, way: Way, *, seed: int = 1, until: float = UNTIL_S) -> Play:
    """One run of it."""
    engine = stage.shape
    if not way.page:
        engine = EngineShape(
            name=engine.name,
            knee=engine.knee,
            places=engine.places,
            read_s=engine.read_s,
        )
    play = Play(
        shape=engine,
        seed=seed,
        workers=0 if way.ceiling is None else 2,
        ceiling=way.ceiling or 1,
        fixed=way.fixed,
        slowdown=SLOWDOWN,
        priority=way.priority,
        tokens=stage.batch_tokens,
    )
    _come(play, random.Random(f"{seed} arrivals"), stage.can_do / _ANSWER)  # noqa: S311  # no secret
    play.run(until)
    return play


def share_at(now: float) -> float:
    """The load of others, of what the engine can do."""
    return SHARES[int(now / PERIOD_S) % len(SHARES)]


def _come(play: Play, chance: random.Random, most_per_s: float) -> None:
    """The next interactive request, and when the one after it comes."""
    if play.engine.now:
        play.engine.submit("interactive", tokens=_ANSWER)
    wait_s = chance.expovariate(most_per_s * share_at(play.engine.now))
    play.later(wait_s, partial(_come, play, chance, most_per_s))


def given_back_after_s(play: Play, stage: Stage) -> tuple[float, float]:
    """From when a rise of the others' load is at the engine until the limit, and what is in flight,
    leave it the room that it takes; the longest of all rises.

    At the engine: nine tenths of what they have in hand in the mean while the load is high.
    """
    limit_s = in_flight_s = 0.0
    rises = [at for at in _multiples(PERIOD_S) if share_at(at) > share_at(at - 1.0)]
    for rise in rises:
        high = [m for m in play.moments if rise <= m.at < rise + PERIOD_S]
        theirs = 0.9 * mean(m.in_hand - m.in_flight for m in high[len(high) // 2 :])
        risen = next((m.at for m in high if m.in_hand - m.in_flight >= theirs), rise)
        room = stage.most - theirs + 0.1 * stage.most
        never = rise + PERIOD_S
        limit_s = max(limit_s, next((m.at for m in high if m.limit <= room), never) - risen)
        in_flight_s = max(
            in_flight_s, next((m.at for m in high if m.in_flight <= room), never) - risen
        )
    return limit_s, in_flight_s


def _multiples(period_s: float) -> list[float]:
    """The instants at which the load changes, once the limit is found."""
    return [n * period_s for n in range(1, round(UNTIL_S / period_s)) if n * period_s >= WARM_S]


def measure(rig: Rig) -> Measurement:
    """Every stage in every way."""
    rows: list[Row] = []
    for stage in (*STAGES, *KEPT_BACK):
        alone = acted(stage, ALONE)
        alone_s = percentile(alone.latencies(WARM_S, UNTIL_S - 10.0, "interactive"), 95)
        theirs = alone.rate(WARM_S, UNTIL_S, "interactive")
        for way in WAYS:
            play = alone if way is ALONE else acted(stage, way)
            latencies = play.latencies(WARM_S, UNTIL_S - 10.0, "interactive")
            limit_s, in_flight_s = given_back_after_s(play, stage)
            rows.append(
                {
                    "engine": stage.shape.name + (" (kept back)" if stage.kept_back else ""),
                    "batch": way.name,
                    "interactive p95, s": percentile(latencies, 95),
                    "times alone": percentile(latencies, 95) / alone_s,
                    "mean, times alone": mean(latencies)
                    / mean(alone.latencies(WARM_S, UNTIL_S - 10.0, "interactive")),
                    "batch, share of what was spare": (
                        play.rate(WARM_S, UNTIL_S) / (stage.can_do - theirs)
                    ),
                    "limit lowered after, s": limit_s,
                    "in flight lowered after, s": in_flight_s,
                }
            )
    rig.say(f"{len(rows)} runs, virtual time; no process of Batchline takes part")
    return Measurement(
        tables=[Table("Interactive requests and a batch on one engine", rows)], raw={"rows": rows}
    )
