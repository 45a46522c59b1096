"""Whose job is next where only a few run at once, and which may run beside those: arithmetic only.

Three ideas, each for one unfairness:

- Projects share by work and weight (`fairness.py`): a project that brings fifty large files waits
  for itself.
- Jobs of one project go in the order in which they would end if they all ran at once (Demers,
  Keshav and Shenker's fair queueing, 1989): a small one does not wait for every large one before
  it, and a large one waits for a bounded number of small ones.
- A job cannot be interrupted. So one that is far smaller than everything that is in its way runs
  beside it, in a place of its own: at most `BESIDE` of those at once.

What is urgent has a queue of its own, with a place that nothing else takes.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

from batchline.domain.fairness import FairQueue

LEAST_WORK: Final = 1024 * 1024  # bytes; what is said, opened and synced for the smallest job
FAR_SMALLER: Final = 8  # times
BESIDE: Final = 2  # the second one is for small jobs when a middling one runs beside large ones
HURRIED_PART: Final = 0.25  # of a window: a job whose batch has no more left goes first


@dataclass(frozen=True, slots=True, kw_only=True)
class JobTerms:
    """On whose account a job runs, how large it is, and what hurries it.

    `work` is in bytes of an input file that takes as long to validate. `urgent`: it does not wait
    behind jobs that are not. From `hurried_at` on it goes first in its project.
    """

    project: str = ""
    weight: float = 1.0
    work: float = 0.0
    urgent: bool = False
    hurried_at: float = math.inf


def hurried_at(*, created_at: int, expires_at: int) -> float:
    """From when on the validation of a batch with this window is hurried."""
    return expires_at - (expires_at - created_at) * HURRIED_PART


class _Place(Enum):
    ORDINARY = auto()
    URGENT = auto()
    BESIDE = auto()


@dataclass(frozen=True, slots=True)
class _Running:
    work: float
    place: _Place


_Entry = tuple[float, float, int]  # what orders, what orders equals, the ticket


@dataclass(slots=True, eq=False)
class _Waiting:
    """The jobs of one project that wait, in three orders; `time` is its virtual time.

    Sorted lists and not heaps: whoever leaves is taken out of all three, and a thousand entries are
    moved in a microsecond.
    """

    time: float = 0.0
    ends: dict[int, float] = field(default_factory=dict)  # virtual time at which each would end
    by_end: list[_Entry] = field(default_factory=list)
    by_work: list[_Entry] = field(default_factory=list)
    by_hurry: list[_Entry] = field(default_factory=list)

    def add(self, ticket: int, terms: JobTerms) -> None:
        self.ends[ticket] = self.time + _work(terms)
        for ordered, entry in self._entries(ticket, terms):
            insort(ordered, entry)

    def remove(self, ticket: int, terms: JobTerms) -> None:
        for ordered, entry in self._entries(ticket, terms):
            del ordered[bisect_left(ordered, entry)]
        del self.ends[ticket]

    def _entries(self, ticket: int, terms: JobTerms) -> Iterable[tuple[list[_Entry], _Entry]]:
        end = self.ends[ticket]
        return (
            (self.by_end, (end, terms.hurried_at, ticket)),
            (self.by_work, (_work(terms), terms.hurried_at, ticket)),
            (self.by_hurry, (terms.hurried_at, end, ticket)),
        )

    def first(self, now: float) -> int:
        hurried, _, ticket = self.by_hurry[0]
        return ticket if hurried <= now else self.by_end[0][2]

    def began(self, terms: JobTerms) -> None:
        """All who wait, and this one, are that much nearer to their ends."""
        self.time += _work(terms) / (len(self.ends) + 1)


class _Class:
    """The jobs that are urgent, or those that are not."""

    def __init__(self) -> None:
        self.jobs: dict[int, JobTerms] = {}
        self._projects: dict[str, _Waiting] = {}
        self._queue: FairQueue[str] = FairQueue()

    def add(self, ticket: int, terms: JobTerms) -> None:
        self.jobs[ticket] = terms
        self._projects.setdefault(terms.project, _Waiting()).add(ticket, terms)
        self._queue.enter(terms.project, ticket)  # equal tags: whose job is the oldest

    def remove(self, ticket: int) -> JobTerms:
        terms = self.jobs.pop(ticket)
        waiting = self._projects[terms.project]
        waiting.remove(ticket, terms)
        if not waiting.ends:
            del self._projects[terms.project]
            self._queue.leave(terms.project)
        return terms

    def first(self, now: float) -> int | None:
        """A job of the project that is next."""
        found = self._queue.first()
        if found is None:
            return None
        self._queue.tags.serve(found[2])
        return self._projects[found[2]].first(now)

    def first_within(self, most: float) -> int | None:
        """The smallest job of the first project that has one of at most so much work."""
        found = self._queue.first(lambda project: self._projects[project].by_work[0][0] <= most)
        # Time does not move on: those before it still wait.
        return None if found is None else self._projects[found[2]].by_work[0][2]

    def begin(self, ticket: int) -> JobTerms:
        terms = self.jobs[ticket]
        waiting = self._projects[terms.project]
        self.remove(ticket)
        waiting.began(terms)
        self._queue.tags.charge(terms.project, _work(terms) / terms.weight)
        self._queue.moved(terms.project)
        return terms

    def forget_the_absent(self) -> None:
        """Projects without a job whose last work is over by now would begin anew anyway."""
        tags = self._queue.tags
        for project in [one for one in tags.of if one not in self._projects]:
            tags.forget(project)


class JobQueue:
    """The jobs that wait and those that run. Owned by one event loop."""

    def __init__(self, *, places: int) -> None:
        """`places`: how many jobs run at once, but for an urgent one and those beside."""
        self._places = places
        self._ordinary, self._urgent = _Class(), _Class()
        self._running: dict[int, _Running] = {}
        self._last = 0

    def __len__(self) -> int:
        """How many wait."""
        return len(self._ordinary.jobs) + len(self._urgent.jobs)

    def enter(self, terms: JobTerms) -> int:
        """A job waits; its ticket."""
        self._last += 1
        self._class_of(terms).add(self._last, terms)
        return self._last

    def leave(self, ticket: int) -> None:
        """The job no longer waits, or is over."""
        if self._running.pop(ticket, None) is None:
            waits_in = self._urgent if ticket in self._urgent.jobs else self._ordinary
            waits_in.remove(ticket)
        if not self._running and not len(self):
            # Nobody is owed anything any more: as at the start.
            self._ordinary, self._urgent = _Class(), _Class()

    def begin_next(self, now: float) -> int | None:
        """The ticket of the job that begins now; None: none may."""
        for among in (self._urgent, self._ordinary):
            if not among.jobs:
                continue
            place = self._free_place(urgent=among is self._urgent)
            if place is not None:
                ticket = among.first(now)
            else:
                place, ticket = _Place.BESIDE, self._small_enough(among)
            if ticket is not None:
                terms = among.begin(ticket)
                self._running[ticket] = _Running(_work(terms), place)
                among.forget_the_absent()
                return ticket
        return None

    def _class_of(self, terms: JobTerms) -> _Class:
        return self._urgent if terms.urgent else self._ordinary

    def _free_place(self, *, urgent: bool) -> _Place | None:
        if urgent and not self._taken(_Place.URGENT):
            return _Place.URGENT
        # An urgent job has its own place, and takes no other from those who wait for it.
        if self._taken(_Place.ORDINARY) < self._places and not (urgent and self._ordinary.jobs):
            return _Place.ORDINARY
        return None

    def _small_enough(self, among: _Class) -> int | None:
        if self._taken(_Place.BESIDE) >= BESIDE:
            return None
        in_the_way = [
            one.work
            for one in self._running.values()
            if among is self._urgent or one.place is not _Place.URGENT
        ]
        return among.first_within(min(in_the_way, default=0.0) / FAR_SMALLER)

    def _taken(self, place: _Place) -> int:
        return sum(one.place is place for one in self._running.values())


def _work(terms: JobTerms) -> float:
    return max(terms.work, LEAST_WORK)
