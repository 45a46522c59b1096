"""Whose turn it is: shares, deadlines and small batches in virtual time, and what a decision costs.

The room and the baselines are those of `scheduling_model.py`. Everything but the cost of a decision
is virtual and the same on every machine.
"""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Final

from batchline.domain.ids import BatchId, ProjectId
from batchline.domain.shares import Shares, Turn
from batchline.domain.wanting import Member
from batchline.executor.turns import Turns
from bench.report import Floor, Measurement, Row, Table, percentile
from bench.rig import Rig
from bench.scheduling_model import (
    CAPACITY,
    REAL_LINES,
    SHARD_LINES,
    Job,
    Ordered,
    Ours,
    Outcome,
    heavy_tailed,
    simulate,
)

HOUR: Final = 3600.0
WINDOWS: Final = ((HOUR, 4.0), (6 * HOUR, 4.0), (24 * HOUR, 2.0))
LOADS: Final = (0.7, 0.9, 0.95)
SEEDS: Final = (1, 2, 3)
MOST_APART: Final = 2.0  # shards, over an hour
LEAST_BESIDE_A_FLOOD: Final = 0.78  # 0.8 is promised; the rest is for shards that run
MOST_SLOWDOWN: Final = 25.0  # of 99 % of small batches, at a load of 0.7
POLICIES: Final[Mapping[str, Callable[[], Ordered | Ours]]] = {
    "FIFO": lambda: Ordered(lambda job: job.arrives),
    "EDF": lambda: Ordered(lambda job: job.deadline),
    "ours": Ours,
}


def measure(rig: Rig) -> Measurement:
    """All of it; a smaller size takes fewer hours, batches and seeds."""
    part = rig.size.percent / 100
    shares, apart = _shares(max(1, round(12 * part)))
    flood, least = _flood(max(1.0, 6 * part))
    outcomes = {
        load: [
            {name: simulate(copy.deepcopy(jobs), make()) for name, make in POLICIES.items()}
            for jobs in (_jobs(load, seed, part) for seed in SEEDS[: max(1, round(3 * part))])
        ]
        for load in LOADS
    }
    deadlines, misses = _deadlines(outcomes)
    slowdowns, small = _slowdowns(outcomes)
    costs = _costs(max(100, round(3_000 * part)))
    return Measurement(
        tables=[shares, flood, deadlines, slowdowns, costs],
        floors=[
            Floor(
                "distance from the fair share over an hour, shards, 200 projects (worst)",
                apart,
                at_most=MOST_APART,
            ),
            Floor("least share beside a flood", least, at_least=LEAST_BESIDE_A_FLOOD),
            Floor("windows missed at a load of 0.7, beyond EDF's", float(misses), at_most=0),
            Floor("slowdown of small batches at a load of 0.7 (p99)", small, at_most=MOST_SLOWDOWN),
        ],
        raw={
            "shares": shares.rows,
            "flood": flood.rows,
            "deadlines": deadlines.rows,
            "slowdowns": slowdowns.rows,
            "costs": costs.rows,
        },
    )


# -- shares ----------------------------------------------------------------------------------------


def _shares(hours: int) -> tuple[Table, float]:
    """Projects that always have something to run: what each got in an hour, against its weight."""
    table: list[Row] = []
    most_of_200 = 0.0
    for projects in (20, 200, 400):
        outcome = simulate(_backlog(projects), Ours(), until=hours * HOUR)
        by_hour = [_apart(outcome, hour) for hour in range(hours)]
        settled = [one for apart in by_hour[hours // 3 :] for one in apart]
        most = max(shards for _, shards in settled)
        row: Row = {"projects": projects}
        row |= {f"apart p{p}": percentile([part for part, _ in settled], p) for p in (50, 95, 100)}
        row["most, shards"] = most
        row["most in the first hour, shards"] = max(shards for _, shards in by_hour[0])
        table.append(row)
        if projects == 200:
            most_of_200 = most
    title = (
        "Shares: |attained / fair - 1| of each project in each hour after a third of the time, and"
        " the same in shards (weights 1, 2, 4; lines of 500, 1,000, 2,000 tokens)"
    )
    return Table(title, table), most_of_200


def _backlog(projects: int) -> list[Job]:
    return [
        Job(
            number=number,
            project=f"p{number}",
            arrives=0.0,
            lines=1_000_000,
            tokens=(500, 1_000, 2_000)[number // 3 % 3],
            window_s=1e9,
            weight=float((1, 2, 4)[number % 3]),
        )
        for number in range(projects)
    ]


def _apart(outcome: Outcome, hour: int) -> list[tuple[float, float]]:
    """How far each project was from its share in that hour: as a part of it, and in shards."""
    got = Counter[str]()
    for at, job in outcome.served:
        if hour * HOUR <= at < (hour + 1) * HOUR:
            got[job.project] += job.tokens
    of_all = sum(job.weight for job in outcome.jobs)
    apart = []
    for job in outcome.jobs:
        fair = got.total() * job.weight / of_all
        off = abs(got[job.project] - fair)
        apart.append((off / fair, off / (SHARD_LINES * job.tokens)))
    return apart


def _flood(hours: float) -> tuple[Table, float]:
    """One project of ten asks for ten times the room, all of it within an hour each time."""
    jobs = _backlog(9)
    for job in jobs:
        job.weight, job.tokens = 1.0, 1_000
    lines = round(CAPACITY * HOUR / 1_000)
    for wave in range(int(hours)):
        for _ in range(10):
            jobs.append(Job(len(jobs), "flood", wave * HOUR + 1, lines, 1_000, HOUR))
    outcome = simulate(jobs, Ours(), until=(hours - 0.1) * HOUR)
    got = Counter[str]()
    for at, job in outcome.served:
        if at > 0.5 * HOUR:
            got[job.project] += job.tokens
    shares = {project: tokens / got.total() * 10 for project, tokens in got.items()}
    least = min(share for project, share in shares.items() if project != "flood")
    row: Row = {"the flood": shares["flood"], "others, least": least}
    title = "Attained share, of the fair one, beside a project that asks for ten times the room"
    return Table(title, [row]), least


# -- deadlines and small batches -------------------------------------------------------------------


def _jobs(load: float, seed: int, part: float) -> list[Job]:
    hours = 24 * max(0.1, part)
    return heavy_tailed(
        seed,
        batches=max(100, round(2_000 * part)),
        projects=300,
        load=load,
        hours=hours,
        windows=WINDOWS,
    )


Runs = Mapping[float, Sequence[Mapping[str, Outcome]]]


def _deadlines(outcomes: Runs) -> tuple[Table, int]:
    table: list[Row] = []
    for load, runs in outcomes.items():
        row: Row = {"load": load, "batches": sum(len(run["EDF"].jobs) for run in runs)}
        for name in POLICIES:
            row[f"{name}: missed"] = sum(run[name].misses for run in runs)
        late = [
            (job.ended - job.deadline) / job.window_s
            for run in runs
            for job in run["ours"].jobs
            if job.ended > job.deadline
        ]
        row["ours: most late, of the window"] = max(late, default=0.0)
        row["ours: permits idle while lines wait"] = sum(
            run["ours"].idle_s / sum(job.tokens * job.lines / 100 for job in run["ours"].jobs)
            for run in runs
        ) / len(runs)
        table.append(row)
    beyond = sum(max(0, run["ours"].misses - run["EDF"].misses) for run in outcomes[LOADS[0]])
    return Table("Windows missed (EDF is the optimum wherever it misses none)", table), beyond


def _slowdowns(outcomes: Runs) -> tuple[Table, float]:
    """Time from creation to the last result, in times of what it takes alone."""
    sizes = {
        f"up to {SHARD_LINES * REAL_LINES:,} lines": (0, SHARD_LINES),
        f"up to {20 * SHARD_LINES * REAL_LINES:,}": (SHARD_LINES, 20 * SHARD_LINES),
        "more": (20 * SHARD_LINES, 10**9),
    }
    table: list[Row] = []
    small = 0.0
    for load, runs in outcomes.items():
        for size, (above, upto) in sizes.items():
            row: Row = {"load": load, "size": size}
            for name in POLICIES:
                found = [
                    job.slowdown
                    for run in runs
                    for job in run[name].jobs
                    if above < job.lines <= upto
                ]
                row["batches"] = len(found)
                for percent in (50, 99):
                    row[f"{name} p{percent}"] = percentile(found, percent) if found else 0.0
            if load == LOADS[0] and above == 0:
                small = float(row["ours p99"])
            table.append(row)
    return Table("Slowdown: time to the end, in times of the time alone", table), small


# -- cost ------------------------------------------------------------------------------------------


def _costs(decisions: int) -> Table:
    table: list[Row] = []
    for batches, projects in ((100, 10), (10_000, 300), (10_000, 1), (10_000, 10_000)):
        took = _decisions(batches, projects, decisions)
        table.append(
            {
                "what": f"a shard: {batches:,} batches of {projects:,} projects",
                "median us": median(took),
                "mean us": sum(took) / len(took),
                "most us": max(took),
            }
        )
    for batches in (1, 2, 16):
        took = [_lines(batches, decisions) for _ in range(7)]
        what = f"a line: {batches} batch{'es' * (batches > 1)} open"
        table.append(
            {
                "what": what,
                "median us": median(took),
                "mean us": sum(took) / 7,
                "most us": max(took),
            }
        )
    return Table("CPU of a decision, from the choice to what its shard cost (this machine)", table)


def _decisions(batches: int, projects: int, decisions: int) -> list[float]:
    book, now = Shares(), 1e6
    for number in range(batches):
        project = ProjectId(f"p{number % projects}")
        member = Member(number, project, int(now), int(now) + 86_400, 100_000)
        book.add(member, weight=1.0)
        book.waits(number, "m")
    book.choose("b", ["m"], now=now)
    took = []
    for _ in range(decisions):
        now += 0.01
        began = time.process_time()
        chosen = book.choose("b", ["m"], now=now)
        if chosen is not None:
            book.turn(*chosen, backend="b", place="w")
            charge = book.take(
                *chosen, backend="b", place="w", done=0, failed=0, tokens=0, lines=1_000
            )
            book.settled(charge, done=1_000, failed=0, tokens=500_000)
            book.returned(charge)
        took.append((time.process_time() - began) * 1e6)
    return took


class _Endless:
    """A shard that always has a line."""

    has_line = True

    def __init__(self, number: int) -> None:
        self.batch_id = BatchId(f"b{number}")
        self.turn = Turn(project=f"p{number}")

    @property
    def work(self) -> _Endless:
        return self

    def take(self) -> _Endless:
        return self


def _lines(batches: int, lines: int) -> float:
    turns = Turns()
    for number in range(batches):
        turns.add(_Endless(number))  # type: ignore[arg-type]  # has what of a ShardRun is looked at
    began = time.process_time()
    for _ in range(lines):
        turns.next_line()
    return (time.process_time() - began) * 1e6 / lines
