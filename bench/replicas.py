"""Replicas with prefix caches in virtual time, fed by the real lanes of the dispatch.

The model, the same for every way of routing: a replica runs up to `max_in_flight` requests. It
fills prompts in the order in which they came, `prefill_per_s` tokens a second of those that are not
cached; then each request takes `decode_s`, whatever else runs. Whoever comes after a request with
the same prefix finds it cached, since that one is filled first. The cache holds `cache_tokens` of
prefixes, least recently used first out. No clock, no socket, no randomness beyond the workload's
seed.
"""

from __future__ import annotations

import heapq
import itertools
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from batchline.domain import bitmap, plan
from batchline.domain.ids import BatchId
from batchline.domain.model import Shard, ShardKey
from batchline.executor import routed
from batchline.executor.contract import BackendSettings, ShardWork
from batchline.executor.lane import Lane
from batchline.executor.line import Line
from batchline.executor.local import OPEN_SHARDS
from batchline.executor.routed import RoutedLane
from batchline.executor.shard_run import ShardRun
from bench.nowhere import Nowhere

BATCH: Final = BatchId("batch_" + "0" * 32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What a replica can do. The defaults are of the order of an 8B model on one large GPU."""

    max_in_flight: int = 64
    prefill_per_s: float = 8_000.0
    decode_s: float = 2.0
    cache_tokens: int = 200_000
    weight: float = 1.0


@dataclass(slots=True)
class Replica:
    """One engine's cache and what went through it."""

    engine: Engine
    requests: int = 0
    cached_tokens: int = 0
    prompt_tokens: int = 0
    _cache: OrderedDict[int, int] = field(default_factory=OrderedDict)  # prefix to its tokens
    _held: int = 0
    _filled_at: float = 0.0  # when every prompt that came so far is filled

    def arrive(self, now: float, prefix: int, prefix_tokens: int, tail_tokens: int) -> float:
        """When a request that comes now is answered."""
        self.requests += 1
        self.prompt_tokens += prefix_tokens + tail_tokens
        uncached = prefix_tokens + tail_tokens
        if prefix in self._cache:
            self._cache.move_to_end(prefix)
            self.cached_tokens += prefix_tokens
            uncached -= prefix_tokens
        else:
            self._keep(prefix, prefix_tokens)
        start = max(now, self._filled_at)
        self._filled_at = start + uncached / self.engine.prefill_per_s
        return self._filled_at + self.engine.decode_s

    def _keep(self, prefix: int, prefix_tokens: int) -> None:
        self._held += prefix_tokens
        self._cache[prefix] = prefix_tokens
        while self._held > self.engine.cache_tokens:
            _, tokens = self._cache.popitem(last=False)
            self._held -= tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Lines in plan order: the group of each, from 1. Every group's prefix is as long."""

    groups: Sequence[int]
    prefix_tokens: int
    tail_tokens: int = 100


@dataclass(slots=True)
class Outcome:
    replicas: list[Replica]
    seconds: float

    @property
    def cached_share(self) -> float:
        prompts = sum(one.prompt_tokens for one in self.replicas)
        return sum(one.cached_tokens for one in self.replicas) / prompts


def bound(workload: Workload) -> float:
    """The cached share when every prefix is computed once in all."""
    lines, prefix = len(workload.groups), workload.prefix_tokens
    saved = (lines - len(set(workload.groups))) * prefix
    return saved / (lines * (prefix + workload.tail_tokens))


class Dispatch:
    """Workers as lanes see them: each has its part of the permits, and shards of its own."""

    def __init__(self, engines: Sequence[Engine], *, workers: int) -> None:
        settings = [
            BackendSettings(name=f"replica-{n}", base_url="http://r/v1", weight=one.weight)
            for n, one in enumerate(engines)
        ]
        self.workers: list[dict[str, Lane]] = []
        for worker in range(workers):
            lanes = dict(routed.lanes_of(settings, (Nowhere() for _ in settings)))
            for lane, engine in zip(lanes.values(), engines, strict=True):
                share, rest = divmod(engine.max_in_flight, workers)
                lane.permits = share + (worker < rest)
            self.workers.append(lanes)

    def offer(self, worker: int, run: ShardRun) -> None:
        if not routed.lanes_with(run):
            for lane in self.workers[worker].values():
                lane.runs.add(run)

    def taken(self, worker: int) -> Iterator[tuple[Lane, Line]]:
        """Every line that may go now, as the worker hands them out."""
        left = list(self.workers[worker].values())
        while left:
            lanes = [lane for lane in left if isinstance(lane, RoutedLane)]
            lane = routed.emptiest(lanes) if lanes else left[0]
            line = lane.take()
            if line is None:
                left.remove(lane)
            else:
                yield lane, line


def run(
    workload: Workload, engines: Sequence[Engine], *, hashed: bool, workers: int = 2
) -> Outcome:
    """Play the workload. `hashed` False: the plan has no prefix hashes, as before decision 0024."""
    dispatch = Dispatch(engines, workers=workers)
    replicas = {f"replica-{n}": Replica(engine) for n, engine in enumerate(engines)}
    waiting = deque(shards(workload, hashed=hashed))
    held: list[list[tuple[ShardRun, int]]] = [[] for _ in range(workers)]  # with its first line
    of_run: dict[ShardRun, int] = {}
    events: list[tuple[float, int, int, Lane, Line]] = []
    order = itertools.count()
    now = 0.0

    def refill(worker: int) -> None:
        held[worker] = [(one, first) for one, first in held[worker] if one.has_line]
        while waiting and len(held[worker]) < OPEN_SHARDS:
            first, entries = waiting.popleft()
            shard = opened(dispatch.workers[worker], first, entries)
            of_run[shard] = first
            held[worker].append((shard, first))
            dispatch.offer(worker, shard)

    def start(worker: int) -> None:
        refill(worker)
        for lane, line in dispatch.taken(worker):
            prefix = workload.groups[of_run[line.run] + line.index]
            replica = replicas[lane.backend]
            ends = replica.arrive(now, prefix, workload.prefix_tokens, workload.tail_tokens)
            heapq.heappush(events, (ends, next(order), worker, lane, line))
            refill(worker)

    for worker in range(workers):
        start(worker)
    while events:
        now, _, worker, lane, line = heapq.heappop(events)
        lane.ended(line, answered=True)
        line.run.settle(line, b"", succeeded=True, usage=None)
        start(worker)
    return Outcome(list(replicas.values()), now)


def shards(workload: Workload, *, hashed: bool) -> Iterator[tuple[int, bytes]]:
    entries = [
        plan.ENTRY.pack(0, 1, 1 + n, _hash_of(group) if hashed else 0)
        for n, group in enumerate(workload.groups)
    ]
    for first, count in plan.shard_spans(len(entries)):
        yield first, b"".join(entries[first : first + count])


def _hash_of(group: int) -> int:
    """As a plan has it: the same for the same group, and spread."""
    return (group * 0x9E3779B97F4A7C15 + 1) & ((1 << 64) - 1) or 1


def opened(lanes: dict[str, Lane], first: int, entries: bytes) -> ShardRun:
    count = len(entries) // plan.ENTRY_BYTES
    work = ShardWork(
        shard=Shard(
            key=ShardKey(batch_id=BATCH, number=first),
            first_entry=first,
            entries=count,
            model="m",
            epoch=1,
            settled=bytes(bitmap.empty(count)),
        ),
        endpoint="/v1/chat/completions",
        input_path="unused",
        plan_path="unused",
        backends=list(lanes),
    )
    shard = ShardRun.open(work, input_fd=-1, entries=entries)
    routed.share_out(shard, lanes)
    return shard
