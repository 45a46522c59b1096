"""Why was a request sent again, and how long did a server need to go on? From logs alone."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Final

from tests.chaos.records import BadWeather, Fault, Life
from tests.support.invariants import DYING_S, attempts_of
from tests.support.scripted_backend import BackendLog, Event, Kind

COMMIT_S: Final = 0.1  # worker.commit_interval_s
COMMITTING_S: Final = 0.4  # what one commit may take on a busy machine; else a hundredth of that
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
        at_risk = end is None or end.at >= fault.since - COMMIT_S - COMMITTING_S
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


def went_on_after(
    log: BackendLog, lives: Sequence[Life], disturbed: Sequence[BadWeather | Fault], *, now: float
) -> list[float]:
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
        if first == until and until - life.started_at < GOES_ON_S:
            continue
        if not any(x.since <= first and x.until >= life.started_at for x in disturbed):
            took.append(first - life.started_at)
    return took
