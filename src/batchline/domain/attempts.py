"""How one attempt at one request line ended, and what to do next: pure functions.

Line outcomes settle the line, at once or after `max_attempts`. Backend outcomes never settle a line
or wear it out: the line waits and the backend is gated (design.md section 5, decisions.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, assert_never


class Outcome(StrEnum):
    """How one attempt ended."""

    ANSWERED = "answered"  # 2xx with a usable body
    REFUSED = "refused"  # any other final answer: the same bytes would be refused again
    BROKEN = "broken"  # 408, 5xx, reset, timeout, unusable 2xx: may go better next time
    NOT_SENT = "not_sent"  # no byte left: the backend is down
    SHED = "shed"  # 429, 503: the backend is full
    BLOCKED = "blocked"  # 401, 402, 403, quota, billing: every line would meet the same
    AWAY = "away"  # 404 of a model that is listed: every line of that model would meet the same
    UNABLE = "unable"  # 501, 505: this backend will never do it, another one may


BACKEND_OUTCOMES = frozenset({Outcome.NOT_SENT, Outcome.SHED, Outcome.BLOCKED})

# Hosted services ask for minutes, where a limit of a day is met for more. What asks for longer has
# the wrong clock or is a proxy's guess as often as not, and one request an hour harms nobody.
RETRY_AFTER_CAP_S: Final = 3600.0

TRIAL_PATIENCE_S: Final = 12 * 3600.0  # a night; and what is left of a day's window is as long

_QUOTA_CODES = frozenset({"insufficient_quota"})


def classify(status: int, *, error_code: str | None, model_is_listed: bool) -> Outcome:
    """What an HTTP answer with `status` means for its line.

    `error_code` is `error.code` (or `error.type` where the code is null) of the answer's body when
    it could be read. `model_is_listed` says that some backend's own catalogue lists the line's
    model, so that a `model_not_found` is a fault of the backend and not of the line.
    """
    if 200 <= status < 300:
        return Outcome.ANSWERED
    if error_code is not None and (error_code in _QUOTA_CODES or error_code.startswith("billing_")):
        return Outcome.BLOCKED
    if status in (401, 402, 403):
        return Outcome.BLOCKED
    if status == 404 and error_code == "model_not_found" and model_is_listed:
        return Outcome.AWAY
    if status in (429, 503):
        return Outcome.SHED
    if status in (501, 505):
        return Outcome.UNABLE
    if status == 408 or status >= 500:
        return Outcome.BROKEN
    return Outcome.REFUSED


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often and how long: `max_attempts` answers or breaks, full jitter up to `ceiling_s`.

    `trial_patience_s`: how long a backend or a model that was away is waited for that answers every
    trial with a server error; 0: such an answer is as good as any.
    """

    max_attempts: int = 5
    base_s: float = 0.5
    ceiling_s: float = 30.0
    retry_after_cap_s: float = RETRY_AFTER_CAP_S
    trial_patience_s: float = TRIAL_PATIENCE_S


@dataclass(frozen=True, slots=True)
class Settle:
    """The line gets its result: the last answer, or our own error code."""


@dataclass(frozen=True, slots=True)
class RetryIn:
    """The line waits `delay_s` and is tried again; the attempt counts."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class WaitForBackend:
    """The line goes back unharmed; its backend is gated for at least `delay_s`."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class WaitForModel:
    """The line goes back unharmed; its model is held at that backend for at least `delay_s`."""

    delay_s: float


Decision = Settle | RetryIn | WaitForBackend | WaitForModel


def backoff_s(attempt: int, policy: RetryPolicy, roll: float) -> float:
    """Full jitter: `roll` (0 to 1) of the window that doubles with `attempt` (from 1)."""
    # The exponent is clamped because 2.0 ** 1024 overflows, and backend faults are unbounded.
    window_s = min(policy.ceiling_s, policy.base_s * 2.0 ** min(attempt - 1, 32))
    return window_s * roll


def decide(
    outcome: Outcome,
    *,
    attempt: int,
    policy: RetryPolicy,
    roll: float,
    retry_after_s: float | None = None,
    elsewhere: bool = False,
) -> Decision:
    """What follows `outcome` of attempt `attempt` (from 1).

    `roll` is a random number in [0, 1). `retry_after_s` is what the backend asked for; it is
    believed up to `policy.retry_after_cap_s`. `elsewhere`: another backend has not tried the line.
    """
    asked_s = min(max(retry_after_s or 0.0, 0.0), policy.retry_after_cap_s)
    match outcome:
        case Outcome.ANSWERED | Outcome.REFUSED:
            return Settle()
        case Outcome.BROKEN:
            if attempt >= policy.max_attempts:
                return Settle()
            return RetryIn(max(backoff_s(attempt, policy, roll), asked_s))
        case Outcome.NOT_SENT | Outcome.SHED | Outcome.BLOCKED:
            return WaitForBackend(asked_s)
        case Outcome.AWAY:
            return WaitForModel(asked_s)
        case Outcome.UNABLE:
            if not elsewhere or attempt >= policy.max_attempts:
                return Settle()
            return RetryIn(backoff_s(attempt, policy, roll))
        case _:
            assert_never(outcome)
