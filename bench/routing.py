"""Routing: cached prompts and time over four replicas in virtual time, and what a line costs.

The first three tables are of the model in `bench/replicas.py` and come out the same everywhere. The
last is CPU time of this machine: read its ratios.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import Final

from batchline.executor import routed
from batchline.executor.lane import Lane
from bench.replicas import Dispatch, Engine, Workload, bound, opened, run, shards
from bench.report import Floor, Measurement, Row, Table, spread
from bench.rig import Rig

REPLICAS: Final = 4
LINES: Final = 20_000
PREFIX_TOKENS: Final = 2_000
WEIGHTS: Final = (3.0, 2.0, 1.0, 1.0)


def measure(rig: Rig) -> Measurement:
    """Everything; the rig's server is not needed."""
    lines = rig.size.lines(LINES, least=2_000)
    caches, floors, raw = _caches(lines)
    rig.say("caches played")
    balance, more = _balance(lines)
    floors += more
    costs, more = _costs(rig.size.lines(LINES * 5, least=2_000), runs=rig.size.times(5))
    floors += more
    return Measurement(
        tables=[
            Table(
                f"Cached share of prompt tokens, {REPLICAS} replicas, {lines:,} lines,"
                f" prefixes of {PREFIX_TOKENS:,} tokens, 2 workers (virtual)",
                caches,
            ),
            Table(f"Unequal replicas, {lines:,} lines (virtual)", balance),
            Table("CPU a line of taking it and ending it", costs),
        ],
        floors=floors,
        raw=raw,
    )


# -- caches ------------------------------------------------------------------------------------


def workloads(lines: int) -> dict[str, Sequence[int]]:
    """Groups of lines in plan order."""
    draw = random.Random(7)  # noqa: S311  # the same workload in every run
    found: dict[str, Sequence[int]] = {
        f"groups of {size}": [1 + n // size for n in range(lines)] for size in (2, 8, 50, 400)
    }
    zipf: list[int] = []
    group = 0
    while len(zipf) < lines:
        group += 1
        zipf += [group] * min(3_000, max(1, round(draw.paretovariate(0.9))))
    found["sizes by Pareto (0.9)"] = zipf[:lines]
    found["one prefix for all"] = [1] * lines
    return found


def _caches(lines: int) -> tuple[list[Row], list[Floor], dict[str, object]]:
    engines = [Engine() for _ in range(REPLICAS)]
    rows: list[Row] = []
    floors: list[Floor] = []
    raw: dict[str, object] = {}
    for name, groups in workloads(lines).items():
        workload = Workload(groups=groups, prefix_tokens=PREFIX_TOKENS)
        without = run(workload, engines, hashed=False)
        ours = run(workload, engines, hashed=True)
        best = bound(workload)
        rows.append(
            {
                "workload": name,
                "by room alone": f"{without.cached_share:.1%}",
                "with affinity": f"{ours.cached_share:.1%}",
                "bound": f"{best:.1%}",
                "time, of by room": f"{ours.seconds / without.seconds:.1%}",
            }
        )
        floors.append(
            Floor(
                f"{name}: share of the bound that is cached",
                ours.cached_share / best,
                at_least=0.85,
            )
        )
        floors.append(
            Floor(f"{name}: time, of by room", ours.seconds / without.seconds, at_most=1.02)
        )
        raw[name] = {
            "by_room": without.cached_share,
            "affinity": ours.cached_share,
            "bound": best,
            "time_ratio": ours.seconds / without.seconds,
        }
    return rows, floors, raw


# -- balance -----------------------------------------------------------------------------------


def _balance(lines: int) -> tuple[list[Row], list[Floor]]:
    rows: list[Row] = []
    floors: list[Floor] = []
    unequal = [Engine(), Engine(), Engine(), Engine(decode_s=8.0, prefill_per_s=2_000.0)]
    per_s = [one.max_in_flight / one.decode_s for one in unequal]
    least_s = lines / sum(per_s)  # all slots at work from beginning to end, and prompts for nothing
    for what, hashed in (("no prefixes", False), ("groups of 50", True)):
        workload = Workload(groups=[1 + n // 50 for n in range(lines)], prefix_tokens=100)
        ran = run(workload, unequal, hashed=hashed)
        rows.append(
            {
                "case": f"one of four is four times slower, {what}",
                "shares of the lines": _shares([one.requests for one in ran.replicas]),
                "asked for": _shares(per_s),
                "time, of the least": f"{ran.seconds / least_s:.1%}",
            }
        )
        floors.append(
            Floor(f"slow replica, {what}: time, of the least", ran.seconds / least_s, at_most=1.15)
        )
    dispatch = Dispatch([Engine(max_in_flight=1_000, weight=one) for one in WEIGHTS], workers=1)
    workload = Workload(groups=[0] * 700, prefix_tokens=0)
    ((first, entries),) = shards(workload, hashed=False)
    dispatch.offer(0, opened(dispatch.workers[0], first, entries))
    got = Counter(lane.backend for lane, _ in dispatch.taken(0))
    found = [got[name] for name in dispatch.workers[0]]
    rows.append(
        {
            "case": "weights 3, 2, 1, 1, room for all",
            "shares of the lines": _shares(found),
            "asked for": _shares(WEIGHTS),
            "time, of the least": "",
        }
    )
    worst = max(
        abs(one / sum(found) - asked / sum(WEIGHTS))
        for one, asked in zip(found, WEIGHTS, strict=True)
    )
    floors.append(Floor("weights: error of a share", worst, at_most=0.005))
    return rows, floors


def _shares(parts: Sequence[float]) -> str:
    return ", ".join(f"{part / sum(parts):.1%}" for part in parts)


# -- costs -------------------------------------------------------------------------------------

_CASES: Final = {
    "one backend": (1, 0),
    "two, no prefixes": (2, 0),
    "four, no prefixes": (4, 0),
    "four, groups of 50": (4, 50),
    "four, groups of 4": (4, 4),
}


def _costs(lines: int, *, runs: int) -> tuple[list[Row], list[Floor]]:
    taken: dict[str, list[float]] = {name: [] for name in _CASES}
    opening: dict[str, list[float]] = {name: [] for name in _CASES}
    for _ in range(runs):
        for name, (backends, group) in _CASES.items():
            open_us, take_us = _cost(lines, backends, group)
            opening[name].append(open_us)
            taken[name].append(take_us)
    base = median(taken["one backend"]) + median(opening["one backend"])
    rows: list[Row] = [
        {
            "case": name,
            "opening a shard, us a line": spread(opening[name]),
            "taking and ending, us a line": spread(taken[name]),
            "beyond one backend, us a line": median(taken[name]) + median(opening[name]) - base,
        }
        for name in _CASES
    ]
    worst = max(float(row["beyond one backend, us a line"]) for row in rows)
    return rows, [Floor("routing: CPU a line beyond one backend, us", worst, at_most=4.0)]


def _cost(lines: int, backends: int, group: int) -> tuple[float, float]:
    """CPU microseconds a line: of opening shards, and of one lane's turns."""
    dispatch = Dispatch([Engine(max_in_flight=64)] * backends, workers=1)
    groups = [1 + n // group if group else 0 for n in range(lines)]
    workload = Workload(groups=groups, prefix_tokens=0)
    lanes = list(dispatch.workers[0].values())
    open_s = take_s = 0.0
    for first, entries in shards(workload, hashed=bool(group)):
        began = time.process_time()
        shard = opened(dispatch.workers[0], first, entries)
        dispatch.offer(0, shard)
        open_s += time.process_time() - began
        began = time.process_time()
        _turns(lanes)
        take_s += time.process_time() - began
        routed.leave(shard, dispatch.workers[0])
    return open_s / lines * 1e6, take_s / lines * 1e6


def _turns(lanes: Sequence[Lane]) -> None:
    """Lanes that are at work: each takes a line when one of its own has ended."""
    left = list(lanes)
    while left:
        for lane in list(left):
            line = lane.take()
            if line is None:
                left.remove(lane)
            else:
                line.run.in_flight.discard(line)
                lane.ended(line, answered=True)
