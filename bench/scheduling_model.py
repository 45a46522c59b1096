"""A machine room in virtual time: batches come, permits serve lines, a policy says whose.

The model: `PERMITS` requests run at once, whoever sends them; a line holds its permit for its
tokens divided by the speed of one request, which does not depend on what runs beside it. A line of
the model stands for 50 real ones and a shard has 20, so that a shard is 1,000 real lines. Results
count when their line ends and are told to the policy in groups. `ours` is the server's code:
`domain/shares.py` chooses shards for workers by the rules of `executor/local.py`, and
`executor/turns.py` the lines of each worker; permits are split between the workers that have
shards, as `executor/permits.py` does. The baselines take, for every free permit, the next line of
the batch that came first (`fifo`) or whose window closes first (`edf`), without shards or workers.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from batchline.domain.ids import ProjectId
from batchline.domain.shares import Charge, Shares, Turn
from batchline.domain.wanting import Member
from batchline.executor.local import MOST_OPEN, OPEN_SHARDS
from batchline.executor.turns import Turns

PERMITS: Final = 64
WORKERS: Final = 4
SHARD_LINES: Final = 20
REAL_LINES: Final = 50  # that a line stands for
LINE_S: Final = 10.0  # of a line with MEAN_TOKENS
MEAN_TOKENS: Final = 1_000
CAPACITY: Final = PERMITS * MEAN_TOKENS / LINE_S  # tokens a second
_GROUP: Final = 5  # lines whose results are told together
_BACKEND: Final = "backend"
_MODEL: Final = "model"


@dataclass(slots=True, eq=False)
class Job:
    """A batch of the model."""

    number: int
    project: str
    arrives: float
    lines: int
    tokens: int  # of each line
    window_s: float
    weight: float = 1.0
    left: int = 0  # lines without a result
    untaken: int = 0
    ended: float = math.inf

    def __post_init__(self) -> None:
        self.left = self.untaken = self.lines

    @property
    def deadline(self) -> float:
        return self.arrives + self.window_s

    @property
    def alone_s(self) -> float:
        """How long it would take with the whole room to itself."""
        return max(self.lines * self.tokens / CAPACITY, self.tokens * LINE_S / MEAN_TOKENS)

    @property
    def slowdown(self) -> float:
        return (self.ended - self.arrives) / self.alone_s


@dataclass(slots=True)
class Outcome:
    """What a run of the model gave: `served` has (time, job) of each line, in order."""

    jobs: Sequence[Job]
    served: list[tuple[float, Job]]
    idle_s: float  # permits that were free although a line waited, times seconds

    @property
    def misses(self) -> int:
        return sum(job.ended > job.deadline for job in self.jobs)


class Ordered:
    """A baseline: the batch with the smallest key has every free permit."""

    def __init__(self, key: Callable[[Job], float]) -> None:
        self._key = key
        self._waiting: list[tuple[float, int, Job]] = []
        self._in_flight = 0

    def arrive(self, job: Job) -> None:
        heapq.heappush(self._waiting, (self._key(job), job.number, job))

    def start(self, now: float) -> Iterator[tuple[Job, Any]]:  # noqa: ARG002  # the order is fixed
        while self._waiting and self._in_flight < PERMITS:
            job = self._waiting[0][2]
            job.untaken -= 1
            if not job.untaken:
                heapq.heappop(self._waiting)
            self._in_flight += 1
            yield job, None

    def end(self, job: Job, run: Any) -> None:  # noqa: ARG002  # as above
        self._in_flight -= 1


@dataclass(slots=True, eq=False)
class _Run:
    """A shard that is open; stands in for `ShardRun` and its work."""

    job: Job
    worker: int
    lines: int
    turn: Turn
    charge: Charge
    left: int = 0
    ended: int = 0

    @property
    def batch_id(self) -> int:
        return self.job.number

    @property
    def work(self) -> _Run:
        return self

    @property
    def has_line(self) -> bool:
        return self.left > 0

    def take(self) -> _Run | None:
        if not self.left:
            return None
        self.left -= 1
        return self


@dataclass(slots=True, eq=False)
class _Worker:
    turns: Turns = field(default_factory=Turns)
    open: list[_Run] = field(default_factory=list)  # with lines that were not sent
    held: int = 0
    in_flight: int = 0


class Ours:
    """The server's own scheduling."""

    def __init__(self, **settings: float) -> None:
        self._shares = Shares(**settings)
        self._jobs: dict[int, Job] = {}
        self._shards: dict[int, list[int]] = {}  # lines of each that waits
        self._workers = [_Worker() for _ in range(WORKERS)]
        self._look = True

    def arrive(self, job: Job) -> None:
        whole, rest = divmod(job.lines, SHARD_LINES)
        self._jobs[job.number] = job
        self._shards[job.number] = [SHARD_LINES] * whole + ([rest] if rest else [])
        member = Member(
            sequence=job.number,
            project=ProjectId(job.project),
            created_at=int(job.arrives),
            expires_at=int(job.deadline),
            lines=job.lines,
        )
        self._shares.add(member, weight=job.weight)
        self._shares.waits(job.number, _MODEL)
        self._look = True

    def start(self, now: float) -> Iterator[tuple[Job, Any]]:
        progress = True
        while progress:
            if self._look:
                self._fill(now)
            progress = False
            wanting = sum(bool(worker.held) for worker in self._workers)
            permits = PERMITS // max(1, wanting)
            for worker in self._workers:
                while worker.in_flight < permits:
                    run: Any = worker.turns.next_line()
                    if run is None:
                        break
                    worker.in_flight += 1
                    if not run.left:
                        worker.open.remove(run)
                        self._look = progress = True
                    yield run.job, run

    def _fill(self, now: float) -> None:
        self._look = False
        gave = True
        while gave:
            gave = False
            for worker in self._workers:
                gave |= len(worker.open) < MOST_OPEN and self._give(worker, now)

    def _give(self, worker: _Worker, now: float) -> bool:
        beside: dict[ProjectId, list[int]] | None = None
        if len(worker.open) >= OPEN_SHARDS:
            beside = {}
            for run in worker.open:
                beside.setdefault(ProjectId(run.job.project), []).append(run.job.number)
        chosen = self._shares.choose(_BACKEND, [_MODEL], now=now, beside=beside)
        if chosen is None:
            return False
        number, place = chosen[0], str(self._workers.index(worker))
        turn = self._shares.turn(number, _MODEL, backend=_BACKEND, place=place)
        lines = self._shards[number].pop()
        if not self._shards[number]:
            self._shares.rests(number, _MODEL)
        charge = self._shares.take(
            number, _MODEL, backend=_BACKEND, place=place, done=0, failed=0, tokens=0, lines=lines
        )
        run = _Run(self._jobs[number], self._workers.index(worker), lines, turn, charge, left=lines)
        worker.open.append(run)
        worker.held += 1
        worker.turns.add(run)  # type: ignore[arg-type]  # has what of a ShardRun is looked at
        return True

    def end(self, job: Job, run: Any) -> None:
        worker = self._workers[run.worker]
        worker.in_flight -= 1
        run.ended += 1
        over = run.ended == run.lines
        if over or run.ended % _GROUP == 0:
            self._shares.settled(
                run.charge, done=run.ended, failed=0, tokens=run.ended * job.tokens
            )
        if over:
            self._shares.returned(run.charge)
            worker.held -= 1
        if not job.left:
            self._shares.remove(job.number)
            del self._jobs[job.number], self._shards[job.number]


def simulate(jobs: Sequence[Job], policy: Ordered | Ours, *, until: float = math.inf) -> Outcome:
    """Run the jobs, which come in order of arrival, until all are done or the time is up."""
    running: list[tuple[float, int, Job, Any]] = []
    served: list[tuple[float, Job]] = []
    coming = 0
    number = 0
    now = idle_s = 0.0
    waiting = 0  # lines that came and were not started
    while (coming < len(jobs) or running) and now < until:
        before = now
        arrives = jobs[coming].arrives if coming < len(jobs) else math.inf
        now = min(arrives, running[0][0] if running else math.inf)
        idle_s += min(PERMITS - len(running), waiting) * (now - before)
        if now == arrives:
            policy.arrive(jobs[coming])
            waiting += jobs[coming].lines
            coming += 1
        else:
            _, _, job, run = heapq.heappop(running)
            job.left -= 1
            if not job.left:
                job.ended = now
            served.append((now, job))
            policy.end(job, run)
        for job, run in policy.start(now):
            waiting -= 1
            number += 1
            ends = now + job.tokens * LINE_S / MEAN_TOKENS
            heapq.heappush(running, (ends, number, job, run))
    return Outcome(jobs, served, idle_s)


def heavy_tailed(
    seed: int,
    *,
    batches: int,
    projects: int,
    load: float,
    hours: float,
    windows: Sequence[tuple[float, float]],
) -> list[Job]:
    """Batches over some hours whose work adds up to `load` of the room's.

    Sizes are Pareto (alpha 0.7, cut off at 10,000 times the least), projects are chosen by Zipf,
    lines have 1,000 tokens or half or twice that. `windows` are (window, least slack): a batch has
    the shortest window that is at least `slack` times what it takes alone, by chance a longer one.
    """
    rng = random.Random(seed)  # noqa: S311  # a model
    sizes = [min(10_000.0, rng.paretovariate(0.7)) for _ in range(batches)]
    tokens = [rng.choice((500, 1_000, 2_000)) for _ in range(batches)]
    scale = load * CAPACITY * hours * 3600 / sum(s * t for s, t in zip(sizes, tokens, strict=True))
    popular = [1 / (n + 1) for n in range(projects)]
    jobs = []
    for number in range(batches):
        lines = max(1, round(sizes[number] * scale))
        alone_s = lines * tokens[number] / CAPACITY
        fitting = [window for window, slack in windows if window >= slack * alone_s]
        jobs.append(
            Job(
                number=number,
                project=f"p{rng.choices(range(projects), popular)[0]:03}",
                arrives=rng.uniform(0, hours * 3600),
                lines=lines,
                tokens=tokens[number],
                window_s=rng.choice(fitting or [windows[-1][0]]),
            )
        )
    jobs.sort(key=lambda job: job.arrives)
    for number, job in enumerate(jobs):
        job.number = number
    return jobs
