"""Why lines do not go to a backend: a code for programs, and a sentence for people.

Pure. Who knows the fault says it once here; progress, metrics, readiness and the commands show it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from batchline.domain.attempts import Outcome

# How transports begin what they say of a connection that could not be had.
_NO_CONNECTION: Final = "no connection: "
_KEY: Final = "does not accept our API key"
_NOT_ALLOWED: Final = "does not allow our requests, check what the key may use"


class WaitCode(StrEnum):
    """What a batch waits for; stable, for programs."""

    VALIDATING = "validating"
    NO_WORKER = "no_worker"
    DISK_LOW = "disk_low"
    STORAGE_TROUBLE = "storage_trouble"
    NO_BACKEND = "no_backend"
    BACKEND_UNREACHABLE = "backend_unreachable"
    BACKEND_SHED = "backend_shed"
    BACKEND_REFUSED = "backend_refused"
    BACKEND_FAILING = "backend_failing"
    BACKEND_DRAINED = "backend_drained"
    MODEL_AWAY = "model_away"
    MODEL_UNLISTED = "model_unlisted"
    RATE_LIMIT = "rate_limit"
    BACKEND_WAITING = "backend_waiting"
    OTHERS_FIRST = "others_first"


@dataclass(frozen=True, slots=True)
class Reason:
    """Why lines wait for a backend. `text` goes on where "backend NAME " left off, and has no stop
    at its end."""

    code: WaitCode
    text: str


def of_fault(outcome: Outcome, said: str, *, next_try_s: float | None = None) -> Reason:
    """A backend's circuit is closed: every line there met `outcome`, of which `said` tells.

    `next_try_s`: the backend asked to be left alone for so long.
    """
    later = _later(next_try_s)
    match outcome:
        case Outcome.NOT_SENT:
            why = said.removeprefix(_NO_CONNECTION)
            return Reason(WaitCode.BACKEND_UNREACHABLE, f"cannot be reached: {why}{later}")
        case Outcome.SHED:
            text = f"takes no more requests for now ({said}){later}"
            return Reason(WaitCode.BACKEND_SHED, text)
        case Outcome.BLOCKED:
            return Reason(WaitCode.BACKEND_REFUSED, f"{_refusal(said)} ({said}){later}")
        case Outcome.BROKEN:
            text = f"fails the requests that it is tried with ({said}){later}"
            return Reason(WaitCode.BACKEND_FAILING, text)
        case _:
            return Reason(WaitCode.BACKEND_WAITING, f"takes no requests ({said}){later}")


def of_model(model: str, outcome: Outcome, said: str, *, next_try_s: float | None = None) -> Reason:
    """As `of_fault`, of one model at a backend that serves its others."""
    later = _later(next_try_s)
    if outcome is Outcome.BROKEN:
        text = f"has lost model {model} and fails the requests that it is tried with ({said})"
    else:
        text = f"does not have model {model} at the moment ({said})"
    return Reason(WaitCode.MODEL_AWAY, f"{text}{later}")


def of_rate(limits: str, *, next_try_s: float | None = None) -> Reason:
    """Lines wait for their turn under `limits`, or until a backend that refused them may be asked
    again."""
    of = f" ({limits})" if limits else ""
    later = "" if next_try_s is None else f"; next try in {next_try_s:.0f} s"
    return Reason(WaitCode.RATE_LIMIT, f"is at its rate limit{of}{later}")


def of_drain(in_flight: int, *, quiet: bool) -> Reason:
    """A person drained the backend."""
    if quiet:
        text = "is drained: nothing is sent there until it is taken back"
    else:
        text = f"is being drained: {in_flight or 'some'} in flight run to their end"
    return Reason(WaitCode.BACKEND_DRAINED, text)


def _refusal(said: str) -> str:
    """What a refusal of every request is about, by its status; quotas come with many."""
    if said == "status 401":
        return _KEY
    return _NOT_ALLOWED if said == "status 403" else "says that our quota or credit is used up"


def _later(next_try_s: float | None) -> str:
    return "" if next_try_s is None else f"; next try in {next_try_s:.0f} s"
