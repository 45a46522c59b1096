"""Dispatch: what a line costs each process, against two clients that only send and forget.

One is a tuned aiohttp loop, what a fast script would be. The other is our own plain HTTP client
alone: what a worker costs beyond it is what Batchline does for a line.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median
from typing import Final

from bench.processes import CpuMeter
from bench.report import Floor, Measurement, Row, Table, spread
from bench.rig import DELAY_S, IN_FLIGHT, Rig

SATURATED: Final = 0.8  # of its core: above this the backend is what is measured
_JUDGED_FROM: Final = 20_000  # lines: the share of a core in less than a second says nothing

AIOHTTP: Final = "bare aiohttp loop"
RAW: Final = "our client alone"
_CLIENTS: Final = {AIOHTTP: "bench.baseline_client", RAW: "bench.raw_client"}
_ROLES: Final = {
    "worker": "worker",
    "control": "control process",
    "job": "job child (validation)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """So many lines at once, on a backend that takes so long; `runs` in turn with the clients.

    `most_beyond_raw` and `most` bound the worker's CPU microseconds a line, `least_of_ideal` its
    share of in_flight / delay lines a second.
    """

    in_flight: int
    delay_s: float
    lines: int
    runs: int = 5
    most_beyond_raw: float | None = None
    most: float | None = None
    least_of_ideal: float | None = None
    least_times_aiohttp: float | None = None

    @property
    def name(self) -> str:
        return f"{self.in_flight:,} in flight, backend of {self.delay_s * 1e3:g} ms"


USUAL: Final = Shape(
    in_flight=IN_FLIGHT,
    delay_s=DELAY_S,
    lines=320_000,  # so that five runs of the worker are over a minute
    most_beyond_raw=25.0,
    least_times_aiohttp=3.0,
)
WIDE: Final = (
    Shape(in_flight=1_000, delay_s=0.01, lines=200_000, most_beyond_raw=25.0),
    Shape(in_flight=2_000, delay_s=0.5, lines=120_000, runs=3, most=70.0),
    Shape(in_flight=500, delay_s=0.05, lines=200_000, runs=3, least_of_ideal=0.95),
)


def measure(rig: Rig) -> Measurement:
    """256 in flight on a backend that answers at once."""
    return _measure(rig, USUAL)


def measure_wide(rig: Rig) -> Measurement:
    """Many more in flight, and backends that take their time."""
    tables: list[Table] = []
    floors: list[Floor] = []
    raw: dict[str, object] = {}
    for shape in WIDE:
        settings = {
            "backend": [
                {
                    "name": "bench",
                    "base_url": rig.backend.base_url,
                    "max_in_flight": shape.in_flight,
                }
            ]
        }
        with rig.with_fresh_server(f"wide-{shape.in_flight}", settings=settings) as fresh:
            one = _measure(fresh, shape)
        tables += one.tables
        floors += one.floors
        raw[shape.name] = one.raw
    return Measurement(tables=tables, floors=floors, raw=raw)


def _measure(rig: Rig, shape: Shape) -> Measurement:
    lines = rig.size.lines(shape.lines)
    file_id = rig.uploaded(lines)
    ran: dict[str, list[dict[str, float]]] = {AIOHTTP: [], RAW: [], "Batchline": []}
    for run in range(rig.size.times(shape.runs)):
        turn = {client: _client_run(rig, shape, client, lines) for client in (AIOHTTP, RAW)}
        turn["Batchline"] = our_run(rig, shape, file_id, lines)
        void = lines >= _JUDGED_FROM and max(one["backend_busy"] for one in turn.values())
        for name, one in turn.items():
            if void <= SATURATED:
                ran[name].append(one)
        rig.say(
            f"run {run + 1}{' VOID, the backend was too busy' if void > SATURATED else ''}: "
            + ", ".join(
                f"{name} {one['cpu_us']:.0f} us and {one['lines_per_s']:,.0f} lines/s"
                for name, one in turn.items()
            )
        )
    if not ran[RAW]:
        raise RuntimeError(f"every run of {shape.name} was void")
    title = f"{lines:,} lines, {shape.name}"
    return Measurement(
        tables=[
            Table(f"CPU of each process: {title}", _cpu_rows(ran, lines)),
            Table(f"Speed, from the first request to the last answer: {title}", _speed_rows(ran)),
        ],
        floors=_floors(shape, ran),
        raw={"lines": lines, **ran},
    )


def _cpu_rows(ran: dict[str, list[dict[str, float]]], lines: int) -> list[Row]:
    rows: list[Row] = []
    for client in _CLIENTS:
        costs = [one["cpu_us"] for one in ran[client]]
        rows.append(
            {"process": client, "CPU us a line": spread(costs), "CPU s": spread(costs, lines / 1e6)}
        )
    for role, name in _ROLES.items():
        costs = [one[f"{role}_cpu_us"] for one in ran["Batchline"]]
        rows.append(
            {"process": name, "CPU us a line": spread(costs), "CPU s": spread(costs, lines / 1e6)}
        )
    return rows


def _speed_rows(ran: dict[str, list[dict[str, float]]]) -> list[Row]:
    return [
        {
            "client": name,
            "lines/s": spread([one["lines_per_s"] for one in runs]),
            "wall s": spread([one["wall_s"] for one in runs]),
            "backend busy": spread([one["backend_busy"] for one in runs]),
        }
        for name, runs in ran.items()
    ]


def _floors(shape: Shape, ran: dict[str, list[dict[str, float]]]) -> list[Floor]:
    ours, at = ran["Batchline"], shape.name
    floors = []
    if shape.most_beyond_raw is not None:
        beyond = [one["cpu_us"] - raw["cpu_us"] for one, raw in zip(ours, ran[RAW], strict=True)]
        floors.append(
            Floor(
                f"worker CPU beyond our client alone, us a line, {at} (median)",
                median(beyond),
                at_most=shape.most_beyond_raw,
            )
        )
    if shape.least_times_aiohttp is not None:
        times = [
            one["lines_per_s"] / bare["lines_per_s"]
            for one, bare in zip(ours, ran[AIOHTTP], strict=True)
        ]
        floors.append(
            Floor(
                f"lines/s, times the bare aiohttp loop's, {at} (median)",
                median(times),
                at_least=shape.least_times_aiohttp,
            )
        )
    if shape.most is not None:
        cost = median([one["cpu_us"] for one in ours])
        floors.append(Floor(f"worker CPU, us a line, {at} (median)", cost, at_most=shape.most))
    if shape.least_of_ideal is not None:
        share = median([one["lines_per_s"] for one in ours]) * shape.delay_s / shape.in_flight
        floors.append(
            Floor(f"share of the ideal rate, {at} (median)", share, at_least=shape.least_of_ideal)
        )
    return floors


def _client_run(rig: Rig, shape: Shape, client: str, lines: int) -> dict[str, float]:
    rig.backend.reset(shape.delay_s)
    before = rig.backend.stats()
    ran = rig.client_alone(_CLIENTS[client], lines, shape.in_flight)
    after = rig.backend.stats()
    return {
        "cpu_us": ran.cpu_s / lines * 1e6,
        "lines_per_s": lines / ran.wall_s,
        "wall_s": ran.wall_s,
        "backend_busy": (after.cpu_s - before.cpu_s) / ran.wall_s,
    }


def our_run(rig: Rig, shape: Shape, file_id: str, lines: int) -> dict[str, float]:
    rig.backend.reset(shape.delay_s)
    before = rig.backend.stats()
    with CpuMeter(rig.server) as meter:
        created = time.perf_counter()
        batch = rig.create(file_id)
        # Seldom: an answer costs the control process half a millisecond.
        rig.completed(batch.id, lines, poll_s=0.25 if lines > 20_000 else 0.02)
        whole_s = time.perf_counter() - created
    after = rig.backend.stats()
    wall_s = (after.last_answer_ns - after.first_arrival_ns) / 1e9
    found = {
        "lines_per_s": lines / wall_s,
        "wall_s": wall_s,
        "create_to_completed_s": whole_s,
        "backend_busy": (after.cpu_s - before.cpu_s) / wall_s,
        "max_in_flight": float(after.max_in_flight),
    }
    for role, spent_s in meter.spent.items():
        found[f"{role}_cpu_us"] = spent_s / lines * 1e6
    found["cpu_us"] = found["worker_cpu_us"]
    return found
