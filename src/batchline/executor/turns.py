"""Whose line is next at one lane: batches of all projects that are open there, in fair turns.

A batch that is alone goes line by line, at no cost. Beside others, each line moves the tag of its
batch on by its stride, and the lowest tag is next (start-time fair queueing, as between shards in
`domain/fairness.py`), so that a small batch that comes beside a huge one is done after as many
lines as its size asks for, whatever the size of the other. Strides follow from the `Turn` of each
batch and from who else is there; they change when a batch comes or goes, not with the lines.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from heapq import heapify, heappop, heappush, heapreplace
from typing import Protocol

from batchline.domain.ids import BatchId
from batchline.domain.urgency import first_part, raised_weight
from batchline.executor.contract import ShardWork
from batchline.executor.line import Line


class Source(Protocol):
    """Where lines come from: a shard, or a lane's own look at one that others serve too."""

    @property
    def work(self) -> ShardWork: ...

    @property
    def batch_id(self) -> BatchId: ...

    def take(self) -> Line | None:
        """The next line to dispatch, now counted as in flight; None when there is none now."""

    def take_small(self, most_bytes: int) -> Line | None:
        """As `take`, of the lines of at most so many bytes; larger ones keep their place."""

    @property
    def has_line(self) -> bool:
        """Whether `take` could give a line, now or later."""


class _Flow:
    """The shards of one batch, oldest first. `stride`: what a line costs while others are there."""

    __slots__ = ("runs", "stride", "tag", "turn")

    def __init__(self, run: Source, tag: float) -> None:
        self.runs = {run: None}
        self.turn = run.work.turn
        self.tag = tag
        self.stride = 1.0

    def next_line(self) -> Line | None:
        """The next line; None when there is none now. Shards without lines are dropped."""
        line, exhausted = None, None
        for run in self.runs:
            line = run.take()
            if line is not None:
                if exhausted is None:  # nearly always
                    return line
                break
            if not run.has_line:  # else a suspect is in flight, and the next waits for its end
                exhausted = [*(exhausted or ()), run]
        for run in exhausted or ():
            del self.runs[run]
        return line


class Turns:
    """The shards that may have lines for one lane. Owned by the worker's event loop."""

    __slots__ = ("_alone", "_flows", "_heap", "_now")

    def __init__(self, runs: Iterable[Source] = ()) -> None:
        self._flows: dict[BatchId, _Flow] = {}
        self._alone: _Flow | None = None
        self._heap: list[tuple[float, int, _Flow]] = []
        self._now = 0.0
        for run in runs:
            self.add(run)

    def __bool__(self) -> bool:
        return bool(self._flows)

    def __iter__(self) -> Iterator[Source]:
        for flow in self._flows.values():
            yield from flow.runs

    def add(self, run: Source) -> None:
        """`run` may have lines; harmless when that is known."""
        flow = self._flows.get(run.batch_id)
        if flow is None:
            # From now on, not from when it was last here: nothing is saved up.
            self._flows[run.batch_id] = _Flow(run, self._now)
            self._share_anew()
        elif run not in flow.runs:
            flow.runs[run] = None
            if flow.turn != run.work.turn:  # what was decided last holds
                flow.turn = run.work.turn
                self._share_anew()

    def add_first(self, run: Source) -> None:
        """As `add`; it comes before all others of its batch."""
        self.add(run)
        runs = self._flows[run.batch_id].runs
        others = [other for other in runs if other is not run]
        runs.clear()
        runs.update(dict.fromkeys((run, *others)))

    def discard(self, run: Source) -> None:
        """`run` has no lines any more."""
        flow = self._flows.get(run.batch_id)
        if flow is not None:
            flow.runs.pop(run, None)
            if not flow.runs:
                del self._flows[run.batch_id]
                self._share_anew()

    def next_line(self) -> Line | None:
        """The next line; None when nobody has one now."""
        alone = self._alone
        if alone is not None:
            line = alone.next_line()
            if not alone.runs:
                self._drop_empty()
            return line
        heap = self._heap
        line, emptied, aside = None, False, []
        while line is None and heap:
            tag, number, flow = heap[0]
            line = flow.next_line()
            if line is not None:
                self._now = tag
                flow.tag = tag + flow.stride
                heapreplace(heap, (flow.tag, number, flow))
            else:
                emptied |= not flow.runs
                aside.append(heappop(heap))
        for entry in aside:
            heappush(heap, entry)
        if emptied:
            self._drop_empty()
        return line

    def _drop_empty(self) -> None:
        self._flows = {batch_id: flow for batch_id, flow in self._flows.items() if flow.runs}
        self._share_anew()

    def _share_anew(self) -> None:
        """Strides, and the heap, after somebody came or went."""
        flows = list(self._flows.values())
        self._alone = flows[0] if len(flows) == 1 else None
        if self._alone is not None:
            self._alone.tag = self._now
        else:
            _set_strides(flows)
        self._heap = [(flow.tag, number, flow) for number, flow in enumerate(flows)]
        heapify(self._heap)


def _set_strides(flows: list[_Flow]) -> None:
    """Between projects by weight, between the batches of one in turns, those in danger first."""
    weights = {flow.turn.project: flow.turn.weight for flow in flows}
    urgent = {flow.turn.project: flow.turn.urgent for flow in flows if flow.turn.urgent}
    of_all = sum(weights.values())
    of_urgent = sum(weights[project] for project in urgent)
    first = Counter(flow.turn.project for flow in flows if flow.turn.first)
    others = Counter(flow.turn.project for flow in flows if not flow.turn.first)
    for flow in flows:
        turn, project = flow.turn, flow.turn.project
        weight = turn.weight
        if project in urgent:
            weight = raised_weight(
                weight, of_all=of_all, of_urgent=of_urgent, urgent_share=urgent[project]
            )
        beside = others[project]
        part_of_first = first_part(beside) if first[project] else 0.0
        part = part_of_first / first[project] if turn.first else 1.0
        flow.stride = (beside + part_of_first) / (part * weight)
