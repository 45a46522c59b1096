"""A simulated inference engine with a prefix cache, and batches sent to one or several of it.

Virtual time: nothing is measured, and the same input always gives the same figures. The engine is
modelled on vLLM: prompts are cut into blocks of BLOCK_TOKENS, a block is known by everything up to
its end, blocks of running requests are pinned, others stay until their room is needed, the least
recently used first and of one request the last first. A step computes at most STEP_TOKENS of
prompts and one token of every running answer.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

BLOCK_TOKENS: Final = 16
CACHE_BLOCKS: Final = 8_192  # 131,072 tokens: 16 GiB for a model of 8 B parameters with GQA
IN_FLIGHT: Final = 48  # requests at each replica
STEP_TOKENS: Final = 8_192
STEP_S: Final = 0.008  # reading the weights
PREFILL_TOKEN_S: Final = 1 / 20_000
DECODE_TOKEN_S: Final = 0.00005


@dataclass(frozen=True, slots=True)
class Request:
    """One line: its prompt's blocks by their chained ids, and how many tokens it generates.

    `group` is the plan's `prefix_hash`.
    """

    blocks: Sequence[int]
    output_tokens: int
    group: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """`makespan_s` until the last answer; how many of the prompts' blocks came from the cache."""

    makespan_s: float
    blocks: int
    cached: int

    @property
    def cached_share(self) -> float:
        return self.cached / self.blocks


class Source(Protocol):
    """Where a replica gets its next request."""

    def take(self, replica: int) -> Request | None:
        """The next one; None when there is none for anybody any more."""


class InOrder:
    """Whoever has room takes the next request."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self._left = deque(requests)

    def take(self, replica: int) -> Request | None:  # noqa: ARG002  # all alike
        return self._left.popleft() if self._left else None


class ByGroup:
    """Whoever has room takes the next request of a group that is its own, out of those that are
    near the front; else the next one of no group; else that of the group with the most left.

    Work-conserving, and a group stays where it began unless somebody would be idle.
    """

    def __init__(self, requests: Sequence[Request], replicas: int, *, window: int = 1_000) -> None:
        self._waiting = deque(requests)
        self._window = window
        self._replicas = replicas
        self._near = 0
        self._groups: OrderedDict[int, deque[Request]] = OrderedDict()
        self._of: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(replicas)]

    def take(self, replica: int) -> Request | None:
        while self._waiting and self._near < self._window:
            request = self._waiting.popleft()
            if request.group not in self._groups:
                self._groups[request.group] = deque()
                if request.group:
                    self._of[request.group % 1_000_003 % self._replicas][request.group] = None
            self._groups[request.group].append(request)
            self._near += 1
        if not self._near:
            return None
        own = self._of[replica]
        group = next(iter(own), 0)
        if group not in self._groups:  # nothing of its own, and nothing that is nobody's
            group = max(self._groups, key=lambda one: len(self._groups[one]))
        queue = self._groups[group]
        request = queue.popleft()
        self._near -= 1
        if not queue:
            del self._groups[group]
            for owned in self._of:
                owned.pop(group, None)
        return request


@dataclass(slots=True)
class _Running:
    request: Request
    computed: int  # blocks of the prompt
    generated: int = 0


class _Cache:
    """Blocks by id: pinned while a running request has them, else in order of their last use."""

    def __init__(self, blocks: int) -> None:
        self._room = blocks
        self._pins: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    def known(self, blocks: Sequence[int]) -> int:
        """How many of the first blocks are there."""
        count = 0
        for block in blocks:
            if block not in self._pins and block not in self._idle:
                break
            count += 1
        return count

    def has_room(self, blocks: int) -> bool:
        return len(self._pins) + blocks <= self._room

    def pin(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            self._idle.pop(block, None)
            self._pins[block] = self._pins.get(block, 0) + 1
        while len(self._pins) + len(self._idle) > self._room and self._idle:
            self._idle.popitem(last=False)

    def let_go(self, blocks: Sequence[int]) -> None:
        for block in reversed(blocks):
            if self._pins[block] > 1:
                self._pins[block] -= 1
            else:
                del self._pins[block]
                self._idle[block] = None


@dataclass(slots=True)
class _Replica:
    number: int
    cache: _Cache
    now_s: float = 0.0
    waiting: Request | None = None
    running: list[_Running] = field(default_factory=list)
    blocks: int = 0
    cached: int = 0
    over: bool = False

    def step(self, source: Source) -> None:
        """Fill up with requests, and do one step with them."""
        while len(self.running) < IN_FLIGHT:
            request = self.waiting or source.take(self.number)
            self.waiting = None
            if request is None:
                break
            if not self.cache.has_room(len(request.blocks)) and self.running:
                self.waiting = request
                break
            # In the cache from here on: whoever is admitted next does not compute them again.
            known = self.cache.known(request.blocks)
            self.cache.pin(request.blocks)
            self.blocks += len(request.blocks)
            self.cached += known
            self.running.append(_Running(request, known))
        if not self.running:
            self.over = True
            return
        budget = STEP_TOKENS // BLOCK_TOKENS
        computed = generated = 0
        for one in self.running:
            missing = len(one.request.blocks) - one.computed
            some = min(missing, budget - computed)
            one.computed += some
            computed += some
            if some == missing:
                one.generated += 1
                generated += 1
        self.now_s += (
            STEP_S + computed * BLOCK_TOKENS * PREFILL_TOKEN_S + generated * DECODE_TOKEN_S
        )
        for one in self.running:
            if one.generated >= one.request.output_tokens:
                self.cache.let_go(one.request.blocks)
        self.running = [one for one in self.running if one.generated < one.request.output_tokens]


def run(source: Source, replicas: int) -> Outcome:
    """Everything that `source` has, at `replicas` engines of their own clocks and caches."""
    engines = [_Replica(number, _Cache(CACHE_BLOCKS)) for number in range(replicas)]
    while working := [engine for engine in engines if not engine.over]:
        min(working, key=lambda engine: engine.now_s).step(source)
    return Outcome(
        max(engine.now_s for engine in engines),
        sum(engine.blocks for engine in engines),
        sum(engine.cached for engine in engines),
    )


def bound(requests: Sequence[Request], replicas: int) -> Outcome:
    """What no order can better: every distinct block is computed once anywhere, every step is full.

    Whether both can be had at once is another question: the optimum is somewhere below.
    """
    blocks = sum(len(request.blocks) for request in requests)
    distinct = len({block for request in requests for block in request.blocks})
    tokens = sum(request.output_tokens for request in requests)
    busy_s = (
        distinct * BLOCK_TOKENS * PREFILL_TOKEN_S
        + tokens * DECODE_TOKEN_S
        + tokens / IN_FLIGHT * STEP_S
    )
    return Outcome(busy_s / replicas, blocks, blocks - distinct)
