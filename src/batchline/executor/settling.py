"""What follows from a verdict: a line settles, waits for a retry, or its backend is at fault."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Final, assert_never

from batchline.domain import results
from batchline.domain.attempts import (
    Outcome,
    RetryIn,
    RetryPolicy,
    Settle,
    WaitForBackend,
    WaitForModel,
    decide,
)
from batchline.domain.model import Usage
from batchline.domain.results import Failure
from batchline.executor import messages as m
from batchline.executor.byte_budget import ByteBudget
from batchline.executor.circuit import trial_again_s
from batchline.executor.failover import Failover
from batchline.executor.lane import Lane
from batchline.executor.line import FENCED, OPEN, Line, Trial
from batchline.executor.proxies import Proxies
from batchline.executor.shard_run import ShardRun
from batchline.executor.shards import Shards
from batchline.executor.slots import DONE, FAULT, Ended
from batchline.executor.verdict import Verdict

_ANSWERED: Final = Outcome.ANSWERED


class Settling:
    """One worker's. `offer` has lanes look at a shard; `dirty` has it committed soon."""

    def __init__(
        self,
        policy: RetryPolicy,
        shards: Shards,
        budget: ByteBudget,
        *,
        failover: Failover,
        proxies: Proxies,
        send: Callable[[m.ToControl], None],
        offer: Callable[[ShardRun], None],
        dirty: Callable[[ShardRun], None],
    ) -> None:
        self.random = random.Random()  # noqa: S311  # jitter, not a secret
        self._policy = policy
        self._is_patient = policy.trial_patience_s > 0
        self._shards = shards
        self._budget = budget
        self._failover = failover
        self._proxies = proxies
        self._send = send
        self._offer = offer
        self._dirty = dirty

    # -- attempts that ended ---------------------------------------------------------------

    def answered(self, lane: Lane, line: Line, result: bytes, usage: Usage | None) -> None:
        """Do what follows from an answer with a result."""
        lane.answers += 1
        if lane.rates is not None:
            lane.rates.ended(line, _ANSWERED, usage)
        if lane.meter is not None:
            lane.meter.answered(line.began, usage)
        run = line.run
        if run.gate is FENCED:
            run.in_flight.discard(line)
            return
        # As `_settle` does: this is every line, and that is a call more.
        size = run.settle(line, result, usage)
        budget = self._budget
        budget.held += size
        budget.unwritten += size
        self._dirty(run)

    def apply(self, lane: Lane, line: Line, found: Verdict) -> Ended:
        """Do what follows from any verdict."""
        if found.outcome is _ANSWERED and found.result is not None:
            self.answered(lane, line, found.result, found.usage)
            return DONE
        rates = lane.rates
        if rates is not None:
            rates.ended(line, found.outcome, found.usage)
        if found.page:
            found = self._proxies.judged(lane, line, found)
        if found.answered:
            line.answered()
            lane.answers += not found.page
        decision = decide(
            found.outcome,
            attempt=line.attempt,
            policy=self._policy,
            roll=self.random.random(),
            retry_after_s=found.retry_after_s,
            elsewhere=found.outcome is Outcome.UNABLE and _goes_elsewhere(lane, line),
        )
        match decision:
            case Settle():
                if found.outcome is Outcome.BROKEN:
                    return self._broken(lane, line, found, retry_in_s=None)
                self._settle(line, found)
                return DONE
            case RetryIn(delay_s=delay_s):
                return self._broken(lane, line, found, retry_in_s=delay_s)
            case WaitForBackend() if rates is not None and rates.counts and found.is_rate:
                line.attempt -= 1
                wait_s = rates.refused(line, found.retry_after_s, self.random.random())
                if wait_s is None:
                    self._settle(line, found)
                else:
                    self._retry_later(line, wait_s)
                return DONE
            case WaitForBackend():
                return self._fault(lane, line, found)
            case WaitForModel():
                self._away(lane, line, found)
                return DONE
            case _:
                assert_never(decision)

    def _fault(self, lane: Lane, line: Line, found: Verdict) -> Ended:
        """The attempt does not count, and nothing goes to the backend until it is tried again."""
        line.attempt -= 1
        if line.trial is Trial.BACKEND and found.answered:
            # It may be about this line: the next trial is to be another.
            self._retry_later(line, trial_again_s(line.sends, self.random.random()))
        else:
            line.run.put_back(line)
        lane.fault()
        self._send(
            m.BackendFault(
                backend=lane.backend,
                outcome=found.outcome.value,
                reason=found.reason,
                retry_after_s=found.retry_after_s,
                trial=line.trial is Trial.BACKEND,
                in_flight=lane.in_flight,
            )
        )
        return FAULT

    def _away(self, lane: Lane, line: Line, found: Verdict) -> None:
        """The attempt does not count, and no line of its model goes to the backend until one has
        tried it; others do, and it goes to others. The backend itself has answered."""
        line.attempt -= 1
        model = line.run.work.model
        if line.trial:
            self._retry_later(line, trial_again_s(line.sends, self.random.random()))
        else:
            line.run.put_back(line)
        lane.hold(model)
        self._tell_away(lane, line, found)

    def _tell_away(self, lane: Lane, line: Line, found: Verdict) -> None:
        trial = line.trial is Trial.MODEL
        self._send(
            m.ModelAway(
                lane.backend,
                line.run.work.model,
                found.reason,
                found.retry_after_s,
                trial=trial,
                broken=found.outcome is Outcome.BROKEN,
            )
        )
        if trial:
            line.trial = None  # and that is all there is to say of it

    def _broken(self, lane: Lane, line: Line, found: Verdict, *, retry_in_s: float | None) -> Ended:
        """The attempt broke; None: by its count it was the line's last.

        A trial's server error does not count: nobody knows whether it is the line's, or that of a
        server which cannot load its model. The control process says when it has heard enough of
        them (decision 0037).
        """
        trial = line.trial if found.outcome is Outcome.BROKEN and self._is_patient else None
        if trial is Trial.MODEL:
            if found.answered:
                self._away(lane, line, found)
                return DONE
            if found.cut_off:  # which counts, as ever, and does not bring the model back
                self._tell_away(lane, line, found)
        failed_trial = self._failover.note(lane, line, found)
        if trial is Trial.BACKEND and found.answered and not failed_trial:
            return self._fault(lane, line, found)
        if retry_in_s is not None:
            self._retry_later(line, retry_in_s)
        elif not self._failover.holds(lane, line, found):
            self._settle(line, found)
        return FAULT if failed_trial else DONE

    # -- lines that get their result without one -------------------------------------------

    def settle_late(self, line: Line, found: Verdict) -> None:
        """Settle a line that waited for it outside of a slot."""
        self._settle(line, found)
        if line.run.returned:
            self._offer(line.run)
        self._shards.release_if_over(line.run)

    def refuse(self, run: ShardRun, failure: Failure) -> None:
        """Settle every line of the shard with `failure`; none is sent."""
        while (line := run.take()) is not None:
            self.settle_unsent(line, failure)

    def settle_unsent(self, line: Line, failure: Failure) -> None:
        """Settle a line with `failure` that is not sent."""
        request = line.run.requests.read(line.index)
        if request is None:
            line.run.in_flight.discard(line)
            self._shards.unreadable(line.run)
            return
        result = results.failure_line(line.line_id, request.custom_id_raw, failure)
        self._settle(line, Verdict(Outcome.REFUSED, failure.value, result))

    # -- the ends --------------------------------------------------------------------------

    def _settle(self, line: Line, found: Verdict) -> None:
        run = line.run
        result = found.result
        if run.gate is FENCED or result is None:
            run.in_flight.discard(line)
            return
        succeeded = found.outcome is _ANSWERED
        self._budget.keep(run.settle(line, result, found.usage, succeeded=succeeded))
        self._dirty(run)

    def _retry_later(self, line: Line, delay_s: float) -> None:
        run = line.run
        run.in_flight.discard(line)
        if run.gate is OPEN:
            run.waiting[line] = asyncio.get_running_loop().call_later(
                delay_s, self._retry_due, line
            )

    def _retry_due(self, line: Line) -> None:
        del line.run.waiting[line]
        line.run.returned.append(line)
        if self._shards.handing.unsaid:
            self._shards.handing.say()
        self._offer(line.run)


def _goes_elsewhere(lane: Lane, line: Line) -> bool:
    """Whether there is a backend that may serve the line and has not failed it."""
    return any(
        name != lane.backend and name not in line.failed_at for name in line.run.work.backends
    )
