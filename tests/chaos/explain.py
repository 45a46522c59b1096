"""Why was a request sent again, and how long did a server need to go on? From logs alone."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Any, Final

from batchline.domain import bitmap
from batchline.domain.lifecycle import BatchStatus
from batchline.service.planning import CHILD_TRIES, SERVER_TRIES
from tests.chaos.records import BadWeather, Fault, Life
from tests.support.invariants import DYING_S, attempts_of
from tests.support.scripted_backend import BackendLog, Event, Kind

SHARD_LINES: Final = 1_000
GIVEN_UP_AFTER: Final = min(CHILD_TRIES, SERVER_TRIES)
COMMIT_S: Final = 0.1  # worker.commit_interval_s
# Both are for a machine that has nothing else to do; see `records.busy`.
COMMITTING_S: Final = 0.4  # what one commit may take beside all that dies; else a hundredth of that
GOES_ON_S: Final = 5.0  # from the start of a process to the first request that it sends


class Why(StrEnum):
    """What explains that a line was sent again."""

    BACKEND = "the backend had not answered it with 200"
    IN_FLIGHT = "in flight at the fault"
    INTERVAL = "answered within one commit interval before"
    STOPPED = "answered while its process was stopped"
    COMMITTING = "answered earlier, its commit was under way"
    NOTHING = "unexplained"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resent:
    """One arrival beyond a line's first; `before_s` is how long before the fault the one before it
    had been answered."""

    event: Event
    why: Why
    fault: Fault | None = None
    before_s: float = 0.0


def resent(log: BackendLog, faults: Sequence[Fault]) -> Iterator[Resent]:
    """Every request that was sent again, with the first fault that explains it."""
    ends = {e.request: e for e in log.of(Kind.ANSWERED, Kind.DROPPED, Kind.ABORTED)}
    for attempts in attempts_of(log).values():
        for before, again in pairwise(attempts):
            end = ends.get(before.request)
            if end is not None and _is_the_backends(end):
                yield Resent(event=again, why=Why.BACKEND)
            else:
                yield _explained(before, end, again, faults)


def _is_the_backends(end: Event) -> bool:
    return end.kind is Kind.DROPPED or (end.kind is Kind.ANSWERED and end.status != 200)


def _explained(before: Event, end: Event | None, again: Event, faults: Sequence[Fault]) -> Resent:
    for fault in faults:
        at_risk = end is None or end.at >= fault.since - COMMIT_S - COMMITTING_S * fault.busy
        there = before.first_byte_at <= fault.until + DYING_S
        if at_risk and there and fault.since <= again.first_byte_at:
            if end is None or end.kind is Kind.ABORTED or end.at >= fault.at:
                return Resent(event=again, why=Why.IN_FLIGHT, fault=fault)
            before_s = max(0.0, fault.since - end.at)
            why = Why.INTERVAL if before_s <= COMMIT_S else Why.COMMITTING
            if end.at > fault.since:
                why = Why.STOPPED
            return Resent(event=again, why=why, fault=fault, before_s=before_s)
    return Resent(event=again, why=Why.NOTHING)


def sent_though_settled(
    log: BackendLog, faults: Sequence[Fault], entries: Mapping[str, tuple[str, int]]
) -> Iterator[str]:
    """Requests of lines that were settled in the database when the server before had died.

    `entries` are each line's batch and its place in the plan, from 0.
    """
    dead = [fault for fault in faults if fault.settled]
    ats = [fault.at for fault in dead]
    for event in log.arrivals:
        index = bisect_right(ats, event.first_byte_at) - 1
        if index < 0 or event.id not in entries:
            continue
        batch, entry = entries[event.id]
        row = dead[index].settled.get((batch, entry // SHARD_LINES))
        # What its orphans sent before they noticed was not settled then.
        orphaned = event.first_byte_at < dead[index].until + DYING_S
        if row is not None and not orphaned and bitmap.is_marked(row.settled, entry % SHARD_LINES):
            yield f"{event.id}: sent though it was settled at {ats[index]:.3f}"


def failed_for_nothing(body: Mapping[str, Any], faults: Sequence[Fault]) -> Iterator[str]:
    """A batch that failed, though its input is good and fewer deaths met its validation than it
    takes until a file is given up; `body` is the batch object."""
    if body["status"] != BatchStatus.FAILED:
        return
    span = (body["created_at"], body["failed_at"] + 1)  # whole seconds
    met = sum(f.is_kill and span[0] <= f.at <= span[1] for f in faults)
    if body["in_progress_at"] is not None or met < GIVEN_UP_AFTER:
        yield f"failed, and {met} deaths could have been its validation's: {body['errors']}"


@dataclass(frozen=True, slots=True, kw_only=True)
class WentOn:
    """How long a restart took to its first request; `allowed_s` on a machine that busy."""

    seconds: float
    allowed_s: float


def went_on_after(
    log: BackendLog, lives: Sequence[Life], disturbed: Sequence[BadWeather | Fault], *, now: float
) -> list[WentOn]:
    """For each server that had work, how long after its start it sent its first request.

    Of a server that was killed before, nothing is known, unless it had `GOES_ON_S`. Nor of one
    whose backend was away or whose processes were stopped meanwhile.
    """
    came = sorted(event.first_byte_at for event in log.arrivals)
    took = []
    for life in lives:
        if not life.had_work:
            continue
        # What comes within a moment of the start is from a worker of the server before.
        index = bisect_right(came, life.started_at + DYING_S)
        until = now if life.ended_at is None else life.ended_at
        first = came[index] if index < len(came) and came[index] < until else until
        allowed_s = GOES_ON_S * life.busy
        if first == until and until - life.started_at < allowed_s:
            continue
        if not any(x.since <= first and x.until >= life.started_at for x in disturbed):
            took.append(WentOn(seconds=first - life.started_at, allowed_s=allowed_s))
    return took
