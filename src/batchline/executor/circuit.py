"""Whether lines may go to a backend: the decisions of one circuit, without clocks or sockets.

Every backend fault (refused connection, shed, bad key, no quota) closes the circuit to all workers
at once. After a wait one line is tried; when it is answered the circuit admits again, when it meets
the fault again the wait doubles up to 30 s. Lines wait meanwhile; none wears out.

A trial that is answered with a server error (500, say) says nothing: the backend may be unable to
load its model, or the line may be more than it can take. So it is waited for like a fault, but for
so long only (`patience_s`, decision 0037): then what it says is its answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from batchline.domain.attempts import Outcome
from batchline.domain.waiting import Reason, of_fault, of_model

FIRST_WAIT_S: Final = 0.25
LONGEST_WAIT_S: Final = 30.0
SHOWN_S: Final = 5.0  # of a wait that was asked for: less is over before it is read


def trial_again_s(sends: int, roll: float) -> float:
    """How long a line is left alone that failed as a trial, by how often it was sent.

    Else every trial would be that line. Of a fault that is about one line, not about its backend
    (some services answer 403 for what is in a request), nobody would ever hear otherwise.
    """
    return min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(sends, 16)) * (0.5 + roll / 2)


@dataclass(slots=True)
class Circuit:
    """State of one backend's circuit; every instant is on the caller's monotonic clock."""

    admitting: bool = True
    reason: str | None = None
    outcome: Outcome | None = None
    wait_s: float = 0.0
    retry_at: float = 0.0
    asked_until: float = 0.0  # by `asked_s`
    trial_with: str | None = None  # the worker that tries a line now
    broken_s: float = 0.0  # that were waited because trials met server errors

    def fault(
        self, outcome: Outcome, reason: str, *, now: float, asked_s: float, trial: bool, roll: float
    ) -> bool:
        """A worker met a backend fault; True when the circuit was admitting until now.

        Requests that were in flight when the circuit closed report their faults too; only the
        first and a failed trial move the wait, so that one outage counts once.
        """
        was_admitting, self.admitting = self.admitting, False
        if was_admitting:
            self.wait_s = FIRST_WAIT_S
        elif trial:
            self.wait_s = min(LONGEST_WAIT_S, self.wait_s * 2)
        if was_admitting or trial:
            # Between half and all of the wait, so that many servers do not knock in step.
            self.retry_at = now + max(self.wait_s * (0.5 + roll / 2), asked_s)
        else:
            self.retry_at = max(self.retry_at, now + asked_s)
        if trial and outcome is Outcome.BROKEN:
            self.broken_s += self.retry_at - now
        if asked_s > 0:
            self.asked_until = max(self.asked_until, now + asked_s)
        if trial:
            self.trial_with = None
        self.reason, self.outcome = reason, outcome
        return was_admitting

    def believes(self, patience_s: float) -> bool:
        """Whether the server errors of its trials have been waited for long enough; never where
        they are not waited for."""
        return self.outcome is Outcome.BROKEN and self.broken_s >= patience_s > 0

    def answered(self) -> bool:
        """A trial line was answered: admit again. True when the circuit was closed."""
        self.trial_with = None
        was_closed = not self.admitting
        self.admitting, self.reason, self.outcome, self.wait_s = True, None, None, 0.0
        self.asked_until = self.broken_s = 0.0
        return was_closed

    def next_try_s(self, now: float) -> float | None:
        """What is left of the time that was asked for; None where it is nothing to speak of."""
        left_s = min(self.asked_until, self.retry_at) - now
        return left_s if left_s >= SHOWN_S else None

    def shown(self, now: float) -> Reason | None:
        """Why it is closed to all lines of its backend; None while it admits."""
        if self.admitting or self.outcome is None:
            return None
        return of_fault(self.outcome, self.reason or "", next_try_s=self.next_try_s(now))

    def shown_of(self, model: str, now: float) -> Reason:
        """Why it is closed to the lines of `model`."""
        outcome = self.outcome or Outcome.AWAY
        return of_model(model, outcome, self.reason or "", next_try_s=self.next_try_s(now))

    def trial_due(self, now: float) -> bool:
        """Whether a worker should be asked to try one line now."""
        return not self.admitting and self.trial_with is None and now >= self.retry_at

    def came_up(self, now: float) -> None:
        """The backend can be reached: a trial is due, if that it could not was the fault."""
        if self.outcome is Outcome.NOT_SENT:
            self.wait_s = FIRST_WAIT_S
            self.retry_at = min(self.retry_at, now)

    def trial_returned(self, worker: str, now: float) -> None:
        """The trial did not happen (no line there, or the worker died): due again shortly."""
        if self.trial_with == worker:
            self.trial_with = None
            self.retry_at = max(self.retry_at, now + FIRST_WAIT_S)
