"""Attempts that broke: what they say of the backend, and which do not count (decision 0024).

An attempt that is cut off (its connection ends, its time is up, or a proxy says so in the backend's
place) may have met a backend that went down with everything it had, or may itself be what the
backend cannot take. The backend is looked at: when it does not answer, the attempt is *lost*. Its
line is none the worse for it and goes on elsewhere at once, but for so many times only, since a
line that ends every backend it comes to must come to an end as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from batchline.domain.attempts import Outcome
from batchline.executor import messages as m
from batchline.executor.lane import Lane
from batchline.executor.line import Gate, Line, Trial
from batchline.executor.looks import FULL, LOOK_S, Found, look_at
from batchline.executor.routed import BROKEN_IN_A_ROW, RoutedLane
from batchline.executor.shard_run import ShardRun
from batchline.executor.verdict import Verdict

FREE_LOSSES: Final = 3  # of one line; the next ones count as attempts
# A trial would be held by a backend that says nothing. By then the catalogue's looks have decided.
SILENT_S: Final = 15.0


class Failover:
    """One worker's. Its event loop is the only reader and writer."""

    def __init__(
        self,
        *,
        send: Callable[[m.ToControl], None],
        settle: Callable[[Line, Verdict], None],
        offer: Callable[[ShardRun], None],
        fail: Callable[[Exception], None],
    ) -> None:
        """`settle` gives a line its result, `offer` has lanes look at a shard, `fail` ends all."""
        self._send = send
        self._settle = settle
        self._offer = offer
        self._fail = fail
        self._last: dict[Line, Verdict] = {}  # no attempts left, and in doubt whether this counts
        self._doubtful: dict[Lane, dict[Line, Verdict]] = {}  # cut off since its last look began
        self._looks: dict[Lane, asyncio.Task[None]] = {}

    def note(self, lane: Lane, line: Line, found: Verdict) -> bool:
        """An attempt at `line` broke; whether its trial, if it was one, failed by that.

        A trial fails that was cut off, and where another backend answers any that broke.
        """
        if lane.backend not in line.failed_at:
            line.failed_at = (*line.failed_at, lane.backend)
        if found.outcome is Outcome.UNABLE:
            return False  # it is in order, and would say so of every such line
        if isinstance(lane, RoutedLane):
            lane.breaking = line
        if line.trial is Trial.BACKEND and (found.cut_off or _another_answers(lane, line)):
            self._close(lane, Outcome.BROKEN, found.reason, trial=True)
            failed = True
        else:
            failed = False
        if found.cut_off and line.run.gate is Gate.OPEN:
            self._doubt(lane, line, found)
        else:
            self._in_a_row(lane, line, found)
        return failed

    def holds(self, lane: Lane, line: Line, found: Verdict) -> bool:
        """Whether the verdict, the line's last by its count, waits for a look at the backend."""
        run = line.run
        if line not in self._doubtful.get(lane, {}):
            return False
        run.in_flight.discard(line)
        self._last[line] = found
        # The look that is under way and its own end sooner; if not, the line waits no longer.
        run.waiting[line] = asyncio.get_running_loop().call_later(3 * LOOK_S, self._count, line)
        return True

    def close(self) -> None:
        """Look at nothing any more."""
        for look in self._looks.values():
            look.cancel()

    def _in_a_row(self, lane: Lane, line: Line, found: Verdict) -> None:
        """One more attempt broke: too many, while another backend answers, are the backend's."""
        if not isinstance(lane, RoutedLane):
            return
        lane.broken += 1
        if lane.broken >= BROKEN_IN_A_ROW and lane.admitting and _another_answers(lane, line):
            self._close(lane, Outcome.BROKEN, found.reason, trial=False)

    # -- looks -----------------------------------------------------------------------------

    def _doubt(self, lane: Lane, line: Line, found: Verdict) -> None:
        self._doubtful.setdefault(lane, {})[line] = found
        if lane not in self._looks:
            self._looks[lane] = asyncio.get_running_loop().create_task(self._look(lane))

    async def _look(self, lane: Lane) -> None:
        """Ask the backend, again for those that were cut off meanwhile."""
        try:
            await asyncio.sleep(0)  # what was cut off in this loop step is asked about in one look
            while lines := self._doubtful.pop(lane, None):
                answers = lane.answers
                look = await look_at(lane.transport)
                # A line that is answered meanwhile is an answer: some servers let a look wait
                # behind requests.
                lives = look.found is Found.SILENT and lane.answers != answers
                if lives or look.found is Found.ALIVE:
                    self._stands(lane, lines)
                else:
                    wait_s = SILENT_S if look.found is Found.SILENT else None
                    self._close(lane, Outcome.NOT_SENT, look.reason, trial=False, wait_s=wait_s)
                    self._lost(lane, lines)
                    # What was cut off while nothing answered met the same, and needs no look.
                    self._lost(lane, self._doubtful.pop(lane, {}))
        except Exception as exc:  # noqa: BLE001  # a fault of ours must end the worker loudly
            self._fail(exc)
        finally:
            del self._looks[lane]

    def _stands(self, lane: Lane, lines: Mapping[Line, Verdict]) -> None:
        """The backend lives: the attempts count, but for those that it was too full for."""
        full = [line for line, found in lines.items() if found.page == FULL]
        for line in full:
            line.attempt -= 1
        self._go_on(lane, full)
        for line, found in lines.items():
            if found.page != FULL:
                self._in_a_row(lane, line, found)
                if self._is_newest(lane, line):
                    self._count(line)

    def _is_newest(self, lane: Lane, line: Line) -> bool:
        """Whether a look that is over was about the last attempt of the line, or an earlier one."""
        return line.backend == lane.backend and line not in self._doubtful.get(lane, ())

    def _count(self, line: Line) -> None:
        """The attempt counts: a line that waited for that is settled."""
        found = self._last.pop(line, None)
        timer = line.run.waiting.get(line)
        if found is not None and timer is not None:
            timer.cancel()
            del line.run.waiting[line]
            self._settle(line, found)

    def _lost(self, lane: Lane, lines: Mapping[Line, Verdict]) -> None:
        """The attempts do not count; lines that wait go on as soon as somebody takes them.

        Those that were lost too often count. Theirs too have the circuit closed, or where a proxy
        answers at once all their attempts would go by in one outage.
        """
        free = [line for line in lines if line.losses < FREE_LOSSES]
        for line in lines:
            if line.losses >= FREE_LOSSES and self._is_newest(lane, line):
                self._count(line)
        for line in free:
            line.losses += 1
            line.attempt -= 1
        self._go_on(lane, free)

    def _go_on(self, lane: Lane, lines: Iterable[Line]) -> None:
        """Lines whose attempt does not count are next, if they were not tried again already."""
        runs: dict[ShardRun, None] = {}
        for line in lines:
            if not self._is_newest(lane, line):
                continue
            self._last.pop(line, None)
            run = line.run
            if (timer := run.waiting.pop(line, None)) is not None:
                timer.cancel()
                run.returned.append(line)
                runs.setdefault(run)
        for run in runs:
            self._offer(run)

    def _close(
        self,
        lane: Lane,
        outcome: Outcome,
        reason: str,
        *,
        trial: bool,
        wait_s: float | None = None,
    ) -> None:
        lane.fault()
        self._send(
            m.BackendFault(
                backend=lane.backend,
                outcome=outcome.value,
                reason=reason,
                retry_after_s=wait_s,
                trial=trial,
            )
        )


def _another_answers(lane: Lane, line: Line) -> bool:
    """Whether the shard has a lane beside this one whose last attempt went well."""
    return any(
        other.lane is not lane and other.admits and not other.lane.broken
        for other in line.run.shares
    )
