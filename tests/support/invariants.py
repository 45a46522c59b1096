"""Seven invariants that hold whatever dies: each is a function that yields every breach as a line.

    1. liveness             `not_ended`: every batch ends in bounded time once faults stop
    2. conservation         `unconserved`: every line of an ended batch is in one file, once
    3. no dangling bytes    `stored.disagreements`, and `stored.left_over` after all was deleted
    4. cancel honoured      `cancel_not_honoured`
    5. honest create        `dishonest_creates`
    6. single holder        `sent_twice_at_once` at the backend, `fallen_back` in the database
    7. terminal immutable   `changed_after_the_end`; before it, `stepped_back` of two looks

They know what callers were told, what the backend saw, and rows; nothing of the code in between.
Who runs faults keeps the records (`tests/chaos`) or forges them (`tests/unit/test_invariants.py`).
All instants are `time.time()`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from typing import Final

from batchline.domain.lifecycle import TERMINAL, TRANSITIONS, BatchStatus
from tests.support.conserved import BatchFields, Unconserved, assert_conserved
from tests.support.scripted_backend import BackendLog, Event, Kind
from tests.support.scripted_backend.witness import STAMP_S

# A killed process is dead some milliseconds after its kill, and a busy backend notices later.
DYING_S: Final = 0.3

_ENDS: Final = (Kind.ANSWERED, Kind.DROPPED, Kind.ABORTED)


# -- records -----------------------------------------------------------------------------------


class Created(StrEnum):
    """What the caller of a create was told."""

    ANSWERED = "answered"  # 200
    REFUSED = "refused"  # an error
    UNANSWERED = "unanswered"  # the connection broke, or there was none


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled:
    """A cancel that was answered with 200, which the caller had read at `told_at`.

    `read_at` is when the backend had read all that was sent before (`BackendControl.caught_up`,
    called after it); None when it could not be asked.
    """

    told_at: float
    read_at: float | None = None


@dataclass(slots=True, kw_only=True)
class Story:
    """One create, under a name of its own in its metadata, and the cancels that were accepted.

    `ids` are the ids of its lines at the backend, which no other story has.
    """

    name: str
    ids: Collection[str]
    created: Created = Created.UNANSWERED
    batch_id: str | None = None
    cancels: list[Cancelled] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """A batch as one answer showed it."""

    status: str
    total: int = 0
    completed: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A terminal batch: its object as text, and a hash of each file (None: none, or not looked)."""

    body: str
    output: str | None = None
    errors: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardRow:
    """A row of the table `shard`."""

    epoch: int
    settled: bytes
    completed: int
    failed: int


# -- 1 and 2 -----------------------------------------------------------------------------------


def not_ended(
    statuses: Mapping[str, str], *, calm_at: float, now: float, within_s: float
) -> Iterator[str]:
    """Batches that have not ended `within_s` after the last fault was over; until then nothing."""
    if now - calm_at < within_s:
        return
    for batch_id, status in statuses.items():
        if status not in TERMINAL:
            yield f"{batch_id} is stuck: {status} {now - calm_at:.1f} s after the last fault"


def unconserved(
    content: bytes,
    batch: BatchFields,
    output: bytes | None,
    errors: bytes | None,
    log: BackendLog,
) -> Iterator[str]:
    """`assert_conserved` as one of the seven."""
    try:
        assert_conserved(content, batch, output, errors, witness=log)
    except Unconserved as exc:
        yield str(exc)


# -- 4 -----------------------------------------------------------------------------------------


def cancel_not_honoured(story: Story, status: str, log: BackendLog) -> Iterator[str]:
    """A story whose cancel was answered with 200: how its batch ended, and what was sent later."""
    for cancel in story.cancels:
        yield from (
            f"{story.name}: {event.id} was sent after the 200 of its cancel: seconds from there, "
            f"received {event.received_at - cancel.told_at:+.3f}, "
            f"read {event.first_byte_at - cancel.told_at:+.3f}"
            for event in sent_after(cancel, log)
        )
    if story.cancels and status != BatchStatus.CANCELLED:
        yield f"{story.name}: {status}, and its cancel had been answered with 200"


def sent_after(cancel: Cancelled, log: BackendLog) -> list[Event]:
    """The requests in `log` that reached the backend's machine first after the 200.

    A busy backend reads a request up to 80 ms after it came, so its own stamp alone says nothing.
    The kernel's does; and what was read after all that had been sent in time was not.
    """
    return [
        event
        for event in log.arrived_after(cancel.told_at)
        if event.received_at > cancel.told_at + STAMP_S
        or (cancel.read_at is not None and event.first_byte_at > cancel.read_at)
    ]


def open_after_the_end(story: Story, read_at: float, log: BackendLog) -> Iterator[str]:
    """Requests of a `cancelled` batch that are open; the backend was caught up at `read_at`, asked
    after the status had been seen."""
    ends = _ends(log)
    for event in log.arrivals:
        end = ends.get(event.request)
        if event.first_byte_at < read_at and (end is None or end.at > read_at):
            yield f"{story.name}: {event.id} was open when its batch was shown as cancelled"


# -- 5 -----------------------------------------------------------------------------------------


def dishonest_creates(
    stories: Sequence[Story], listed: Mapping[str, Sequence[str]], log: BackendLog
) -> Iterator[str]:
    """Creates whose answers do not fit what there is. `listed` are the ids of batches by name."""
    sent = {event.id for event in log.arrivals}
    for story in stories:
        found = list(listed.get(story.name, ()))
        if len(found) > 1:
            yield f"{story.name}: one create made {len(found)} batches: {found}"
        match story.created:
            case Created.ANSWERED if found != [story.batch_id]:
                yield f"{story.name}: {story.batch_id} was answered with 200, listed is {found}"
            case Created.REFUSED:
                if found:
                    yield f"{story.name}: refused, and {found} is listed"
                if ran := sorted(sent.intersection(story.ids)):
                    yield f"{story.name}: refused, and {len(ran)} of its lines were sent"
            case Created.UNANSWERED if not found and not sent.isdisjoint(story.ids):
                yield f"{story.name}: its lines were sent, and it is not listed"
            case _:
                pass
    for name in sorted(listed.keys() - {story.name for story in stories}):
        yield f"{name}: listed, and nobody created it"


# -- 6 -----------------------------------------------------------------------------------------


def sent_twice_at_once(log: BackendLog, kills: Sequence[float]) -> Iterator[str]:
    """Attempts at a line that began while an earlier one was open; a kill in between excuses it."""
    ends = _ends(log)
    for identity, attempts in attempts_of(log).items():
        for before, again in pairwise(attempts):
            end = ends.get(before.request)
            if end is not None and end.at <= again.first_byte_at:
                continue
            if not any(before.at - DYING_S <= kill <= again.first_byte_at for kill in kills):
                ended = "never" if end is None else f"{end.kind} at {end.at:.3f}"
                yield (
                    f"{identity}: attempt {again.attempt} came at {again.first_byte_at:.3f} while "
                    f"attempt {before.attempt} of {before.first_byte_at:.3f} was open ({ended}) "
                    "and nobody had been killed"
                )


def fallen_back(
    before: Mapping[tuple[str, int], ShardRow], after: Mapping[tuple[str, int], ShardRow]
) -> Iterator[str]:
    """Shards, by batch and number, whose row went back: an earlier holder has written to it."""
    for key, now in after.items():
        was = before.get(key)
        if was is None:
            continue
        if now.epoch < was.epoch:
            yield f"shard {key}: epoch {now.epoch} after {was.epoch}"
        if int.from_bytes(was.settled) & ~int.from_bytes(now.settled):
            yield f"shard {key}: a settled line is not settled any more"
        if now.epoch == was.epoch and now.completed + now.failed < was.completed + was.failed:
            yield f"shard {key}: its counts fell"


# -- 7 -----------------------------------------------------------------------------------------


def stepped_back(before: Look, after: Look) -> Iterator[str]:
    """What no later look at a batch may show."""
    if after.status not in _REACHABLE[BatchStatus(before.status)]:
        yield f"{after.status} after {before.status}"
    for name in ("total", "completed", "failed"):
        was, now = getattr(before, name), getattr(after, name)
        if now < was:
            yield f"{name} {now} after {was}"


def changed_after_the_end(first: Ended, last: Ended) -> Iterator[str]:
    """What is different about a terminal batch; files that were not looked at twice are not."""
    if first.body != last.body:
        yield f"the batch object: {last.body} after {first.body}"
    for name in ("output", "errors"):
        was, now = getattr(first, name), getattr(last, name)
        if None not in (was, now) and was != now:
            yield f"the bytes of its {name} file"


def _reachable() -> dict[BatchStatus, frozenset[BatchStatus]]:
    """From each status all that may ever follow, itself included."""
    reached: dict[BatchStatus, set[BatchStatus]] = {status: {status} for status in BatchStatus}
    for _ in BatchStatus:
        for (source, _event), targets in TRANSITIONS.items():
            for status in BatchStatus:
                if source in reached[status]:
                    reached[status] |= targets
    return {status: frozenset(found) for status, found in reached.items()}


_REACHABLE: Final = _reachable()


# -- the backend's log, cut up -----------------------------------------------------------------


def by_line(log: BackendLog) -> Mapping[str, list[Event]]:
    """The events of each line."""
    events: dict[str, list[Event]] = defaultdict(list)
    for event in log.events:
        events[event.id].append(event)
    return events


def log_of(story: Story, events: Mapping[str, list[Event]]) -> BackendLog:
    """What `by_line` has of one story."""
    return BackendLog([event for one in story.ids for event in events.get(one, ())])


def attempts_of(log: BackendLog) -> Mapping[str, list[Event]]:
    """The arrivals of each line, in order."""
    attempts: dict[str, list[Event]] = defaultdict(list)
    for event in sorted(log.arrivals, key=lambda event: event.first_byte_at):
        attempts[event.id].append(event)
    return attempts


def _ends(log: BackendLog) -> dict[int, Event]:
    return {event.request: event for event in log.of(*_ENDS)}
