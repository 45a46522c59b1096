"""Slots: tasks that go from line to line, started when a line may go and ended when none may.

The loop over lines is exempt from task-group style (design.md 5): a slot is a plain task, and there
are as many as lines are in flight.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from enum import Enum, auto
from functools import partial
from typing import Any, Final, Protocol

from batchline.executor import messages as m
from batchline.executor import routed
from batchline.executor.byte_budget import ByteBudget
from batchline.executor.lane import Lane
from batchline.executor.line import OPEN, Line, Trial
from batchline.executor.routed import RoutedLane
from batchline.executor.shard_run import ShardRun
from batchline.executor.shards import Shards


class Ended(Enum):
    """How an attempt left its slot."""

    ANSWERED = auto()  # the line settled or waits for a retry: the backend did its part
    FAULT = auto()  # a backend outcome
    NOT_ADMITTED = auto()  # the gate closed first
    UNREADABLE = auto()  # the input is damaged
    ABORTED = auto()  # the slot was cancelled


# Through its class each look at a member costs 0.1 us on Python 3.11, and a line has ten of them.
DONE: Final = Ended.ANSWERED
FAULT: Final = Ended.FAULT
UNREADABLE: Final = Ended.UNREADABLE
_ABORTED: Final = Ended.ABORTED


class Attempt(Protocol):
    """One attempt at `line`, which the lane gave: all of it, but for what a slot's end asks for."""

    def __call__(self, lane: Lane, line: Line) -> Coroutine[Any, Any, Ended]: ...


class Slots:
    """Of one worker, for all its lanes. Used on its event loop.

    While `rests` is set no line goes, of any shard. `attempt` runs one; `trial_worked` hears of a
    lane's trial that was answered; `fail` ends all.
    """

    def __init__(
        self,
        lanes: Mapping[str, Lane],
        shards: Shards,
        budget: ByteBudget,
        *,
        send: Callable[[m.ToControl], None],
        attempt: Attempt,
        trial_worked: Callable[[Lane], None],
        fail: Callable[[Exception], None],
    ) -> None:
        self.rests = False
        self._lanes = lanes
        self._routed = [lane for lane in lanes.values() if isinstance(lane, RoutedLane)]
        self._shards = shards
        self._budget = budget
        self._send = send
        self._attempt = attempt
        self._trial_worked = trial_worked
        self._fail = fail

    # -- who may look for lines ------------------------------------------------------------

    def offer(self, run: ShardRun) -> None:
        """`run` may have lines: let every lane that may take them look."""
        if not run.has_line:
            return
        if lanes := routed.lanes_with(run):
            self._pump_evenly(lanes)
            return
        for backend in run.work.backends:
            self._lanes[backend].offer(run)
        for backend in run.work.backends:
            self.pump(self._lanes[backend])

    def pump_all(self) -> None:
        """As `pump`, for every lane."""
        if self._routed:
            self._pump_evenly(self._routed)
            return
        for lane in self._lanes.values():
            self.pump(lane)

    def pump_others(self, lane: Lane) -> None:
        """`lane` admits nothing more: what was left to it may go elsewhere."""
        if lane in self._routed:
            self.pump_all()

    def _pump_evenly(self, lanes: Sequence[RoutedLane]) -> None:
        """As `pump` for all of them, each line at the one with the most room."""
        left = list(lanes)
        while left:
            lane = routed.emptiest(left)
            if not self._start(lane):
                left.remove(lane)

    def pump(self, lane: Lane) -> None:
        """Start a slot for every line that may go now."""
        while self._start(lane):
            pass

    # -- one slot --------------------------------------------------------------------------

    def _start(self, lane: Lane) -> bool:
        """Start a slot for the next line, if one may go now."""
        line = self._take(lane)
        if line is None:
            return False
        line.task = asyncio.create_task(self._slot(lane, line))
        line.task.add_done_callback(partial(self._never_began, lane, line))
        return True

    def _take(self, lane: Lane) -> Line | None:
        if self.rests:
            return None
        budget = self._budget
        # At least one line is always allowed, or a line above the budget would never go.
        if budget.held < budget.limit:
            line = lane.take()
        elif budget.beside.allows(budget.held):
            line = lane.take(most_bytes=budget.beside.small_bytes)
        else:
            return None
        if line is None:
            return None
        line.begin(lane.backend)
        budget.held += line.length
        run = line.run
        if run.cursor >= run.entry_count and not run.handed and not run.aside:
            self._shards.handing.handed_out(run)
        return line

    async def _slot(self, lane: Lane, first: Line) -> None:
        """Send one line after another while the lane gives lines."""
        task = asyncio.current_task()
        line: Line | None = first
        while line is not None:
            line.task = task
            ended = _ABORTED
            try:
                try:
                    ended = await self._attempt(lane, line)
                finally:
                    line.task = None
                    self._ended(lane, line, ended)
                line = self._take(lane)
            except asyncio.CancelledError:
                # Aborted by us: this slot ends, and its permit may serve another line.
                asyncio.get_running_loop().call_soon(self.pump, lane)
                raise
            except Exception as exc:  # noqa: BLE001  # a fault of ours must end the worker loudly
                self._fail(exc)
                return

    def _never_began(self, lane: Lane, line: Line, task: asyncio.Task[None]) -> None:
        """Make up for a slot that was cancelled before its first step, when not even a `finally`
        runs: its line would be under way for ever, and keep its shard and its permit."""
        if line.task is task:  # a slot that began has taken this back
            line.task = None
            self._ended(lane, line, _ABORTED)
            self.pump(lane)

    def _ended(self, lane: Lane, line: Line, ended: Ended) -> None:
        """Whatever happened: the permit and the bytes are free, and the shard may be over."""
        run = line.run
        if run.work.announced:
            self._send(m.Tried(run.work.shard.key, line.index))
        budget = self._budget
        held = budget.held
        budget.held = held - line.held_bytes
        line.held_bytes = 0
        answered = ended is DONE
        if line.trial:
            self._trial_over(lane, line, ended)
        lane.ended(line, answered)
        if lane.rates is not None:
            lane.rates.over(line, written=line.written)
        if run.gate is not OPEN:
            run.note_end(line, aborted=ended is _ABORTED)
        if not answered:
            if ended is UNREADABLE:
                self._shards.unreadable(run)
            if line in run.in_flight:  # neither settled nor waiting for a retry
                run.put_back(line)
        if run.returned:
            self.offer(run)
        if held >= budget.limit:
            budget.beside.freed(budget.held)
            self.pump_all()
        if not run.in_flight:  # else it is not over
            self._shards.release_if_over(run)
        if lane.owes_permits:
            self.settle_permits(lane)

    def _trial_over(self, lane: Lane, line: Line, ended: Ended) -> None:
        """Say how it went, where the fault itself does not say it."""
        worked = ended is DONE
        if line.trial is Trial.MODEL:
            self._send(m.ModelTried(lane.backend, line.run.work.model, worked=worked))
        elif ended is not FAULT:
            self._send(m.TrialOver(lane.backend, worked=worked))
            if worked:
                self._trial_worked(lane)

    def settle_permits(self, lane: Lane) -> None:
        """Say that no more is in flight than `lane` has permits for, once that is so."""
        if lane.owes_permits and lane.in_flight <= lane.permits:
            lane.owes_permits = False
            self._send(m.PermitsHeld(lane.backend, lane.permits, lane.permits_order))
