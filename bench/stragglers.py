"""Slow lines beside others: one line in a hundred takes a hundred times as long.

The scripted backend holds each answer back for as long as its line says. What could be at best
follows from that, as if each permit took the next line in no time. Fast lines alone are the
baseline.
"""

from __future__ import annotations

import asyncio
import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bench.report import Floor, Measurement, Row, Table, spread
from tests.support.inputs import line_id, make_lines
from tests.support.scripted_backend import backend_process
from tests.support.scripted_backend.witness import BackendLog, Kind
from tests.support.server import server, submit, wait_for

if TYPE_CHECKING:
    from bench.rig import Rig

LINES: Final = 12_000
IN_FLIGHT: Final = 64
FAST_S: Final = 0.05
SLOW_S: Final = 5.0
SLOW_EVERY: Final = 100
RUNS: Final = 3
OF_IDEAL: Final = 0.9


@dataclass(frozen=True, slots=True)
class Ran:
    """Of the fast lines of one batch, up to the last one's answer."""

    lines_per_s: float
    ideal_per_s: float
    most_in_flight: int

    @property
    def of_ideal(self) -> float:
        return self.lines_per_s / self.ideal_per_s


def is_slow(number: int) -> bool:
    return number % SLOW_EVERY == SLOW_EVERY // 2


async def ran(rig: Rig, lines: int, *, with_slow: bool, name: str) -> Ran:
    """Run one batch on a server of its own."""
    slow = {line_id(n) for n in range(lines) if with_slow and is_slow(n)}

    def markers(number: int) -> str:
        return f"[[delay={SLOW_S if line_id(number) in slow else FAST_S}]]"

    content = make_lines(lines, markers=markers)
    directory = rig.work / name
    directory.mkdir()
    async with backend_process() as backend:
        one = {"name": "b", "base_url": backend.base_url, "max_in_flight": IN_FLIGHT}
        with server(directory, settings={"workers": 1, "backend": [one]}, fork=False) as running:
            client = running.client(timeout_s=600.0)
            batch = submit(client, content)
            await asyncio.to_thread(wait_for, client, batch.id, "completed", timeout_s=600.0)
            most = (await backend.stats()).max_in_flight
            log = await backend.log()
    return Ran(
        lines_per_s=_rate_of_fast(log, slow),
        ideal_per_s=ideal(lines, {int(one.rpartition("-")[2]) for one in slow}),
        most_in_flight=most,
    )


def ideal(lines: int, slow: set[int]) -> float:
    """Fast lines a second when nothing costs any time but the backend."""
    free_at = [0.0] * IN_FLIGHT
    last_s = 0.0
    for number in range(lines):
        ends_s = free_at[0] + (SLOW_S if number in slow else FAST_S)
        heapq.heapreplace(free_at, ends_s)
        if number not in slow:
            last_s = max(last_s, ends_s)
    return (lines - len(slow)) / last_s


def _rate_of_fast(log: BackendLog, slow: set[str]) -> float:
    began = log.arrivals[0].monotonic_ns
    ends = [e.monotonic_ns for e in log.of(Kind.ANSWERED) if e.id not in slow]
    return len(ends) / ((max(ends) - began) / 1e9)


def measure(rig: Rig) -> Measurement:
    """Both batches in turn, some times."""
    lines = rig.size.lines(LINES, least=400)
    found: dict[str, list[Ran]] = {"fast lines alone": [], "1 % 100 times slower": []}
    for run in range(rig.size.times(RUNS)):
        for number, (name, runs) in enumerate(found.items()):
            place = f"stragglers-{run}-{number}"
            runs.append(asyncio.run(ran(rig, lines, with_slow=number == 1, name=place)))
            rig.say(f"{name}: {runs[-1].lines_per_s:.0f} fast lines/s")
    rows: list[Row] = [
        {
            "batch": name,
            "fast lines/s": spread([one.lines_per_s for one in runs]),
            "at best": runs[0].ideal_per_s,
            "of that": spread([one.of_ideal for one in runs]),
            "most in flight": max(one.most_in_flight for one in runs),
        }
        for name, runs in found.items()
    ]
    slowest = min(one.of_ideal for one in found["1 % 100 times slower"])
    return Measurement(
        [Table(f"{lines:,} lines of {FAST_S:g} s, {IN_FLIGHT} in flight", rows)],
        [
            Floor(
                "fast lines/s beside slow ones, of what is possible (slowest)",
                slowest,
                at_least=OF_IDEAL,
            )
        ],
        {name: [one.lines_per_s for one in runs] for name, runs in found.items()},
    )
