"""Who waits for whose files to be checked: the real queue of jobs against first in, first out.

Virtual time: a child checks RATE_MB_S where it has a core, and CORES are shared by those that run.
Real: what a child costs in memory, and what a decision costs.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from batchline.domain.job_queue import JobQueue, JobTerms
from batchline.domain.lines import custom_id_of
from batchline.domain.model import Endpoint
from batchline.service.jobs import Jobs
from batchline.service.validation import ValidationJob, validate
from bench.inputs import write_input
from bench.processes import anonymous_bytes
from bench.report import Floor, Measurement, Row, Table, percentile
from bench.rig import Rig

MB: Final = 1_000_000.0
RATE_MB_S: Final = 80.0
CORES: Final = 2
PLACES: Final = 2
MOST_SLOWDOWN: Final = 12.0  # two that share a core each with one beside, and its turn among others
SEEDS: Final = (1, 2, 3)


@dataclass(slots=True, eq=False)
class _File:
    name: str
    project: str
    mb: float
    arrives: float = 0.0
    ended: float = 0.0
    left_mb: float = field(init=False)

    def __post_init__(self) -> None:
        self.left_mb = self.mb

    @property
    def slowdown(self) -> float:
        """Its time, as a multiple of what it takes alone."""
        return (self.ended - self.arrives) / (self.mb / RATE_MB_S)


class _Queue(Protocol):
    def enter(self, file: _File) -> None: ...

    def begin(self) -> _File | None: ...

    def over(self, file: _File) -> None: ...


class _FirstInFirstOut:
    """What was before: two places, one queue."""

    def __init__(self) -> None:
        self._waiting: deque[_File] = deque()
        self._running = 0

    def enter(self, file: _File) -> None:
        self._waiting.append(file)

    def begin(self) -> _File | None:
        if self._running == PLACES or not self._waiting:
            return None
        self._running += 1
        return self._waiting.popleft()

    def over(self, file: _File) -> None:  # noqa: ARG002  # of the protocol
        self._running -= 1


class _Ours:
    def __init__(self) -> None:
        self._queue = JobQueue(places=PLACES)
        self._files: dict[int, _File] = {}
        self._tickets: dict[_File, int] = {}

    def enter(self, file: _File) -> None:
        ticket = self._queue.enter(JobTerms(project=file.project, work=file.mb * MB))
        self._files[ticket], self._tickets[file] = file, ticket

    def begin(self) -> _File | None:
        ticket = self._queue.begin_next(0.0)
        return None if ticket is None else self._files[ticket]

    def over(self, file: _File) -> None:
        self._queue.leave(self._tickets[file])


POLICIES: Final[dict[str, Callable[[], _Queue]]] = {"FIFO": _FirstInFirstOut, "ours": _Ours}


def _simulate(files: Sequence[_File], queue: _Queue) -> int:
    """Check every file; the most that ran at once."""
    coming = deque(sorted(files, key=lambda file: file.arrives))
    running: list[_File] = []
    now, most = 0.0, 0
    while coming or running:
        rate = RATE_MB_S * min(1.0, CORES / len(running)) if running else 1.0
        ends = min((now + file.left_mb / rate for file in running), default=float("inf"))
        until = min(ends, coming[0].arrives if coming else float("inf"))
        for file in running:
            file.left_mb -= (until - now) * rate
        now = until
        for file in [one for one in running if one.left_mb < 1e-9]:
            running.remove(file)
            file.ended = now
            queue.over(file)
        while coming and coming[0].arrives <= now:
            queue.enter(coming.popleft())
        while (begun := queue.begin()) is not None:
            running.append(begun)
        most = max(most, len(running))
    return most


def measure(rig: Rig) -> Measurement:
    """All of it; a smaller size takes fewer files."""
    part = rig.size.percent / 100
    flood, small = _flood(max(4, round(50 * part)))
    mixed = _mixed(max(50, round(2_000 * part)))
    children = asyncio.run(_children(rig.size.lines(500_000)))
    costs = _costs(max(100, round(5_000 * part)))
    return Measurement(
        tables=[flood, mixed, children, costs],
        floors=[
            Floor(
                "slowdown of the check of a small file behind another project's flood",
                small,
                at_most=MOST_SLOWDOWN,
            )
        ],
        raw={
            "flood": flood.rows,
            "mixed": mixed.rows,
            "children": children.rows,
            "costs": costs.rows,
        },
    )


def _flood(count: int) -> tuple[Table, float]:
    """One project brings `count` files of 200 MB and two of 10 GB; others come a second later."""
    table: list[Row] = []
    small = 0.0
    for name, make in POLICIES.items():
        many = [_File(f"m{at}", "many", 200.0) for at in range(count)]
        huge = [_File(f"h{at}", "many", 10_000.0) for at in range(2)]
        theirs = [
            _File("1 MB", "b", 1.0, arrives=1.0),
            _File("30 MB", "c", 30.0, arrives=1.0),
            _File("200 MB", "d", 200.0, arrives=1.0),
            _File("1 MB of the same project", "many", 1.0, arrives=1.0),
        ]
        most = _simulate([*huge, *many, *theirs], make())
        row: Row = {"order": name}
        row |= {f"{file.name}, s": file.ended - file.arrives for file in theirs}
        row["the flood, s"] = max(file.ended for file in [*huge, *many])
        row["most at once"] = most
        table.append(row)
        small = theirs[0].slowdown
    title = (
        f"Seconds until checked (virtual time; {RATE_MB_S:g} MB/s a core, {CORES} cores), behind"
        f" two files of 10 GB and {count} of 200 MB of one project, a second after them"
    )
    return Table(title, table), small


def _mixed(count: int) -> Table:
    """Files of 0.1 MB to 2 GB of forty projects, at a load of 0.8, half of it of one of them."""
    table: list[Row] = []
    for name, make in POLICIES.items():
        slowdowns: dict[str, list[float]] = {"small": [], "middling": [], "large": []}
        for seed in SEEDS:
            files = _heavy_tailed(count, seed)
            _simulate(files, make())
            for file in files:
                if file.project != "many":
                    size = "small" if file.mb < 2 else "middling" if file.mb < 50 else "large"
                    slowdowns[size].append(file.slowdown)
        row: Row = {"order": name}
        for size, found in slowdowns.items():
            row |= {f"{size} p{p}": percentile(found, p) for p in (50, 99, 100)}
        table.append(row)
    title = (
        "Slowdown (time / time alone) of the files of 39 projects beside one that brings half of"
        " all work; small: below 2 MB, large: 50 MB and more"
    )
    return Table(title, table)


def _heavy_tailed(count: int, seed: int) -> list[_File]:
    chance = random.Random(seed)  # noqa: S311  # sizes, not secrets
    files = []
    now = 0.0
    for number in range(count):
        mb = min(2_000.0, 0.1 * chance.paretovariate(0.6))
        project = "many" if chance.random() < 0.5 else f"p{chance.randrange(39)}"
        files.append(_File(f"f{number}", project, mb, arrives=now))
        now += chance.expovariate(1.0)
    # Bring the load to 0.8.
    busy_s = sum(file.mb for file in files) / (CORES * RATE_MB_S)
    for file in files:
        file.arrives *= busy_s / 0.8 / now
    return files


async def _children(lines: int) -> Table:
    """What a child holds: idle, and at most while it checks a file of so many lines."""
    with tempfile.TemporaryDirectory(prefix="batchline-bench-") as work:
        source, children = Path(work) / "input", Path(work) / "children"
        children.mkdir()
        write_input(source, lines)
        jobs = Jobs(children)
        await jobs.run(custom_id_of, b"{}")  # so that it is there
        (pid,) = (int(path.name) for path in children.iterdir() if path.name.isdigit())
        before = anonymous_bytes(pid)
        job = ValidationJob(
            input_path=str(source),
            input_bytes=source.stat().st_size,
            plan_path=str(Path(work) / "plan"),
            endpoint=Endpoint.CHAT_COMPLETIONS,
            max_file_bytes=2**62,
            max_lines=2**62,
            max_line_bytes=2**62,
        )
        running = asyncio.create_task(jobs.run(validate, job))
        most = before
        while not running.done():
            await asyncio.wait([running], timeout=0.02)
            most = max(most, anonymous_bytes(pid))
        if running.result().lines != lines:
            raise RuntimeError("the file was not checked")
        after = anonymous_bytes(pid)
        await jobs.close()
    mib = 1024 * 1024
    row: Row = {
        "lines": lines,
        "idle, MiB": before / mib,
        "at most, MiB": most / mib,
        "idle again, MiB": after / mib,
    }
    return Table("Anonymous memory of a child; it exists while it is used, one is kept", [row])


def _costs(count: int) -> Table:
    """CPU of entering, beginning and ending a job, while so many wait."""
    table: list[Row] = []
    for waiting in (10, count):
        queue = JobQueue(places=PLACES)
        chance = random.Random(1)  # noqa: S311

        def terms(chance: random.Random = chance) -> JobTerms:
            return JobTerms(
                project=f"p{chance.randrange(200)}", work=MB * chance.paretovariate(0.6)
            )

        for _ in range(waiting):
            queue.enter(terms())
        rounds = 2_000
        running: deque[int] = deque()
        began = time.process_time()
        for _ in range(rounds):
            queue.enter(terms())
            while (ticket := queue.begin_next(0.0)) is not None:
                running.append(ticket)
            queue.leave(running.popleft())
        us = (time.process_time() - began) / rounds * 1e6
        table.append({"waiting jobs": waiting, "CPU a job, us": us})
    return Table("CPU of the queue for one job, of 200 projects", table)
