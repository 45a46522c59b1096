"""The time left that is foretold, against the time it took: batches in virtual time, no server.

For each shape of a batch's pace some runs are made up, one random number generator each, and looked
at a hundred times from the first result to the last. A look counts when something is said: whether
the end was inside the band, and how wide that was.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Final

from batchline.domain.forecast import Pace
from bench.report import Floor, Measurement, Table

if TYPE_CHECKING:
    from bench.rig import Rig

RUNS: Final = 40
LOOKS: Final = 100
COMMIT_S: Final = 0.1
SHARD: Final = 1000
HOLDS: Final = 0.8  # of the looks, what is asked of each shape


@dataclass(frozen=True, slots=True)
class Event:
    """What a server hears of a batch: results that settled, and shards that were sent or ended."""

    at_s: float
    settled: int = 0
    tail_s: float | None = None
    all_sent: bool = False


@dataclass(frozen=True, slots=True)
class Run:
    lines: int
    events: Sequence[Event]
    in_flight: int = 0  # 0: its lines are of no length

    @property
    def end_s(self) -> float:
        return self.events[-1].at_s


@dataclass(slots=True)
class Held:
    """What came of the looks at one shape."""

    looks: int = 0
    told: int = 0
    inside: int = 0
    late: int = 0  # the end came after the band
    widths: list[float] | None = None  # most / least, of those told
    errors: list[float] | None = None  # likely / real

    @property
    def share(self) -> float:
        return self.inside / max(1, self.told)


# -- runs --------------------------------------------------------------------------------------

Pacing = Callable[[float, float], float]  # seconds and share of lines done -> lines a second


def flowing(lines: int, pacing: Pacing, rng: random.Random) -> Run:
    """A run whose lines end independently of each other, as many a second as `pacing` says."""
    events = []
    done, now = 0, 0.0
    while done < lines:
        now += COMMIT_S
        settled = min(lines - done, _poisson(rng, pacing(now, done / lines) * COMMIT_S))
        if settled:
            done += settled
            events.append(Event(now, settled))
    return Run(lines, events)


def _poisson(rng: random.Random, mean: float) -> int:
    if mean > 30:
        return max(0, round(rng.gauss(mean, math.sqrt(mean))))
    limit, count, product = math.exp(-mean), 0, rng.random()
    while product > limit:
        count += 1
        product *= rng.random()
    return count


def served(lines: int, permits: int, latency_s: Callable[[], float]) -> Run:
    """A run in which `permits` requests are in flight as long as there are lines to send."""
    under_way: list[tuple[float, int]] = []
    left_of = [min(SHARD, lines - first) for first in range(0, lines, SHARD)]
    handed: dict[int, tuple[float, int]] = {}  # when its last line was sent, and how many ran then
    sent, now = 0, 0.0
    ends: dict[int, int] = {}  # by commit
    tails: list[Event] = []
    done_at: list[tuple[float, int]] = []
    all_sent_s = 0.0
    while sent < lines or under_way:
        while sent < lines and len(under_way) < permits:
            heapq.heappush(under_way, (now + latency_s(), sent // SHARD))
            sent += 1
            if sent == lines:
                all_sent_s = now
            if sent % SHARD == 0 or sent == lines:
                shard = (sent - 1) // SHARD
                handed[shard] = (now, left_of[shard])
        now, shard = heapq.heappop(under_way)
        left_of[shard] -= 1
        commit = math.ceil(now / COMMIT_S)
        ends[commit] = ends.get(commit, 0) + 1
        done_at.append((now, shard))
        if left_of[shard] == 0 and sent < lines:
            since_s, ran = handed[shard]
            pace = len(done_at) / now
            tails.append(Event(now, tail_s=(now - since_s) - ran / pace))
    commits = [Event(commit * COMMIT_S, settled) for commit, settled in ends.items()]
    events = [*commits, *tails, Event(all_sent_s, all_sent=True)]
    return Run(lines, sorted(events, key=lambda event: event.at_s), permits)


def steady(rng: random.Random) -> Run:
    return flowing(30_000, lambda _t, _done: 50.0, rng)


def halving(rng: random.Random) -> Run:
    at = rng.uniform(0.2, 0.8)
    return flowing(30_000, lambda _t, done: 50.0 if done < at else 25.0, rng)


def doubling(rng: random.Random) -> Run:
    at = rng.uniform(0.2, 0.8)
    return flowing(30_000, lambda _t, done: 25.0 if done < at else 50.0, rng)


def slowing(rng: random.Random) -> Run:
    """Less and less, down to a fifth."""
    return flowing(20_000, lambda _t, done: 50.0 * (1.0 - 0.8 * done), rng)


def warming(rng: random.Random) -> Run:
    return flowing(30_000, lambda t, _done: 50.0 * min(1.0, 0.1 + t / 100), rng)


def bursts(rng: random.Random) -> Run:
    on_s, off_s = rng.uniform(5, 40), rng.uniform(5, 40)
    return flowing(20_000, lambda t, _done: 60.0 if t % (on_s + off_s) < on_s else 0.0, rng)


def pauses(rng: random.Random) -> Run:
    """Now and then nothing, for half a minute to three."""
    borders = [0.0]
    while len(borders) < 200:
        borders += [
            borders[-1] + (went := rng.expovariate(1 / 240)),
            borders[-1] + went + rng.uniform(30, 180),
        ]
    breaks = [(a, b) for a, b in zip(borders[1::2], borders[2::2], strict=False)]

    def pacing(now_s: float, _done: float) -> float:
        while breaks and breaks[0][1] <= now_s:
            breaks.pop(0)
        return 0.0 if breaks and breaks[0][0] <= now_s else 30.0

    return flowing(30_000, pacing, rng)


def few(rng: random.Random) -> Run:
    """A line every ten seconds."""
    return flowing(300, lambda _t, _done: 0.1, rng)


def stragglers(rng: random.Random) -> Run:
    """One line in a hundred takes a hundred times as long."""

    def latency_s() -> float:
        return rng.uniform(0.5, 1.5) * (100 if rng.random() < 0.01 else 1)

    return served(20_000, 64, latency_s)


def generations(rng: random.Random) -> Run:
    """Texts of very different lengths."""
    return served(5_000, 64, lambda: rng.lognormvariate(math.log(8), 0.9))


def one_shard(rng: random.Random) -> Run:
    """The same, so few that no shard has shown how its last lines are."""
    return served(400, 64, lambda: rng.lognormvariate(math.log(8), 0.9))


SHAPES: Final[dict[str, Callable[[random.Random], Run]]] = {
    "steady": steady,
    "halving": halving,
    "doubling": doubling,
    "slowing": slowing,
    "warming up": warming,
    "bursts": bursts,
    "pauses": pauses,
    "a line every 10 s": few,
    "1 % of lines 100 times slower": stragglers,
    "texts of all lengths": generations,
    "400 such texts": one_shard,
}


# What a restart leaves of these is a shorter one, from its beginning: requests are sent again.
SENT_AGAIN: Final = frozenset(
    {"1 % of lines 100 times slower", "texts of all lengths", "400 such texts"}
)


# -- looks -------------------------------------------------------------------------------------


def looked_at(
    run: Run, *, from_s: float = 0.0, looks: int = LOOKS
) -> Iterator[tuple[float, float, float, float] | None]:
    """(least, likely, most, real) at each look, None where nothing was said.

    `from_s`: the server was started then, and knows nothing of what was before.
    """
    pace = Pace()
    all_sent_s: float | None = None
    step_s = (run.end_s - from_s) / (looks + 1)
    done, upcoming = 0, 0
    for number in range(1, looks + 1):
        now = from_s + number * step_s
        while upcoming < len(run.events) and run.events[upcoming].at_s <= now:
            event = run.events[upcoming]
            upcoming += 1
            done += event.settled
            if event.at_s < from_s:
                continue
            if event.settled:
                pace.settled(event.at_s, event.settled)
            if event.tail_s is not None:
                pace.tail(event.tail_s)
            if event.all_sent:
                all_sent_s = event.at_s
        left = pace.left(now, run.lines - done, in_flight=run.in_flight, all_sent_at_s=all_sent_s)
        yield None if left is None else (left.least, left.likely, left.most, run.end_s - now)


def held(
    shape: Callable[[random.Random], Run], *, runs: int, seed: int = 0, restart: bool = False
) -> Held:
    """How the bands held over `runs` runs of a shape."""
    found = Held(widths=[], errors=[])
    for number in range(runs):
        rng = random.Random(  # noqa: S311  # runs that are the same every time
            f"{shape.__name__} {seed} {number}"
        )
        run = shape(rng)
        from_s = run.end_s * rng.uniform(0.1, 0.9) if restart else 0.0
        for look in looked_at(run, from_s=from_s):
            found.looks += 1
            if look is None:
                continue
            least, likely, most, real = look
            found.told += 1
            found.inside += least <= real <= most
            found.late += real > most
            assert found.widths is not None
            assert found.errors is not None
            found.widths.append((most - least) / real)
            found.errors.append(likely / real)
    return found


def measure(rig: Rig) -> Measurement:
    """How often the band held, shape by shape."""
    runs = rig.size.times(RUNS)
    rows = []
    worst = 1.0
    for name, shape in SHAPES.items():
        for restart in (False, True)[: 1 + (name not in SENT_AGAIN)]:
            one = held(shape, runs=runs, seed=1, restart=restart)
            rows.append(row(name + (", restarted" if restart else ""), one))
            worst = min(worst, one.share)
    return Measurement(
        [Table("Time left", rows)],
        [Floor("looks with the end inside the band (worst shape)", worst, at_least=HOLDS)],
        {str(one["shape"]): one["inside"] for one in rows},
    )


def row(name: str, one: Held) -> dict[str, str | int | float]:
    assert one.widths is not None
    assert one.errors is not None
    return {
        "shape": name,
        "looks": one.looks,
        "told": one.told / one.looks,
        "inside": one.share,
        "late": one.late / max(1, one.told),
        "width": median(one.widths),
        "likely / real": median(one.errors),
    }
