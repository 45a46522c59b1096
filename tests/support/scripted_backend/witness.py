"""What the backend saw: an append-only log, counts over it, and futures that wait for counts."""

from __future__ import annotations

import asyncio
import io
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Final

import msgspec


class Kind(StrEnum):
    """What happened to a request, in the order in which it can happen."""

    ARRIVED = "arrived"  # read to its last byte
    BROKEN_OFF = "broken_off"  # the client left in the middle of its request
    CUT_OFF = "cut_off"  # we reset it before reading it
    ANSWERED = "answered"  # the whole answer was written
    DROPPED = "dropped"  # a scripted fault ended it without a whole answer
    ABORTED = "aborted"  # the client left before its answer
    CALLED_OFF = "called_off"  # the client called to have the request of this id aborted


STAMP_S: Final = 0.012  # the kernel counts in ticks of 4 ms, and one may be under way


# Structs, not dataclasses: two are made for each request, and go to a file as JSON lines.
class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that happened.

    `request` numbers requests in the order of their first bytes; `at` is `time.time()`,
    `monotonic_ns` the same instant on a clock that is the same in all processes of the machine.
    `first_byte_at` is set where the request came in, and `received_at`: when the kernel had it,
    which on a busy machine is before we read it (wrong by less than `STAMP_S`; 0 where the kernel
    does not say). `sha256` and `bytes` are of the exact body.
    `abort_id` is what the request can be called off by, and what such a call named.
    """

    kind: Kind
    request: int
    at: float
    monotonic_ns: int
    id: str = ""
    path: str = ""
    attempt: int = 0
    status: int = 0
    first_byte_at: float = 0.0
    received_at: float = 0.0
    idempotency_key: str | None = None
    authorization: str | None = None
    abort_id: str | None = None
    sha256: str = ""
    bytes: int = 0


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """Counts since the start or the last `clear`; `in_flight`, `held` and `open` are of now."""

    arrivals: int
    answered: int
    answered_ok: int
    aborted: int
    dropped: int
    cut_off: int
    broken_off: int
    in_flight: int
    max_in_flight: int
    held: int
    ids: int
    connections: int
    open: int
    catalogue_calls: int
    load_pages: int
    by_status: dict[int, int]


class Wanted(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A condition on the counts: `in_flight` exactly, the others at least."""

    in_flight: int | None = None
    min_in_flight: int = 0
    min_arrivals: int = 0
    min_answered: int = 0
    min_aborted: int = 0
    min_called_off: int = 0
    min_dropped: int = 0
    min_broken_off: int = 0
    min_held: int = 0
    min_catalogue_calls: int = 0
    timeout_s: float = 10.0


class BackendLog:
    """Questions to the events of a backend."""

    def __init__(self, events: Sequence[Event]) -> None:
        self.events: Final = events

    def of(self, *kinds: Kind) -> list[Event]:
        return [event for event in self.events if event.kind in kinds]

    @property
    def arrivals(self) -> list[Event]:
        """Every request that was read whole, in order."""
        return self.of(Kind.ARRIVED)

    def arrived_after(self, instant: float) -> list[Event]:
        """Requests whose first byte came after `instant` (`time.time()`), whole or not."""
        came = self.of(Kind.ARRIVED, Kind.BROKEN_OFF, Kind.CUT_OFF)
        return [event for event in came if event.first_byte_at > instant]

    def attempts(self) -> Counter[str]:
        """Arrivals by id."""
        return Counter(event.id for event in self.arrivals)

    def resent(self) -> int:
        """Arrivals beyond the first of each id."""
        return sum(self.attempts().values()) - len(self.attempts())

    def statuses(self) -> dict[str, set[int]]:
        """The statuses that each id was answered with."""
        seen: dict[str, set[int]] = defaultdict(set)
        for event in self.of(Kind.ANSWERED):
            seen[event.id].add(event.status)
        return seen

    def in_flight_at(self, instant: float) -> int:
        """How many requests had arrived by `instant` and ended later or never."""
        ends = {
            event.request
            for event in self.of(Kind.ANSWERED, Kind.DROPPED, Kind.ABORTED)
            if event.at <= instant
        }
        return sum(e.at <= instant and e.request not in ends for e in self.arrivals)

    def quiet_at(self) -> float:
        """When the last request ended (`time.time()`); 0 when there was none."""
        ends = self.of(Kind.ANSWERED, Kind.DROPPED, Kind.ABORTED)
        return max((event.at for event in ends), default=0.0)


_decode_event: Final = msgspec.json.Decoder(Event).decode


def parse_log(lines: Iterable[bytes]) -> BackendLog:
    return BackendLog([_decode_event(line) for line in lines])


def read_log(path: Path) -> BackendLog:
    """The log of a backend that may have been killed: a half last line is left out."""
    raw = path.read_bytes()
    return parse_log(raw[: raw.rfind(b"\n") + 1].splitlines())


class Witness:
    """Keeps the log and the counts; not thread-safe, it belongs to the backend's loop."""

    def __init__(self, log: io.BufferedWriter | None = None) -> None:
        self._log = log
        self._flush_due = False
        self._encoder = msgspec.json.Encoder()
        self._waiting: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []
        self.held = 0
        self.open = 0
        self.in_flight = 0
        self.requests = 0
        self.clear()

    def clear(self) -> None:
        """Forget all events and counts, also attempts; the log file keeps them."""
        self.events: list[Event] = []
        self.kinds: Counter[Kind] = Counter()
        self.by_status: Counter[int] = Counter()
        self.attempts: Counter[str] = Counter()
        self.max_in_flight = self.in_flight
        self.connections = self.open
        self.catalogue_calls = 0
        self.load_pages = 0

    def note(self, event: Event) -> None:
        """Append an event and keep the counts that follow from it."""
        self.events.append(event)
        self.kinds[event.kind] += 1
        match event.kind:
            case Kind.ARRIVED:
                self.in_flight += 1
                self.max_in_flight = max(self.max_in_flight, self.in_flight)
            case Kind.ANSWERED:
                self.by_status[event.status] += 1
                self.in_flight -= 1
            case Kind.DROPPED | Kind.ABORTED:
                self.in_flight -= 1
            case Kind.BROKEN_OFF | Kind.CUT_OFF | Kind.CALLED_OFF:
                pass
        if self._log is not None:
            self._log.write(self._encoder.encode(event) + b"\n")
            # A backend that is killed leaves what it saw, up to one turn of its loop; a flush for
            # each event cost more than all the rest (80 us a request).
            if not self._flush_due:
                self._flush_due = True
                asyncio.get_running_loop().call_soon(self._flush, self._log)
        self.changed()

    def _flush(self, log: io.BufferedWriter) -> None:
        self._flush_due = False
        if not log.closed:  # closing flushes
            log.flush()

    def changed(self) -> None:
        """Look at who waits; called when a count moved that has no event."""
        if not self._waiting:
            return
        still = []
        for holds, future in self._waiting:
            if future.done():
                continue
            if holds():
                future.set_result(None)
            else:
                still.append((holds, future))
        self._waiting = still

    def stats(self) -> Stats:
        return Stats(
            arrivals=self.kinds[Kind.ARRIVED],
            answered=self.kinds[Kind.ANSWERED],
            answered_ok=self.by_status[200],
            aborted=self.kinds[Kind.ABORTED],
            dropped=self.kinds[Kind.DROPPED],
            cut_off=self.kinds[Kind.CUT_OFF],
            broken_off=self.kinds[Kind.BROKEN_OFF],
            in_flight=self.in_flight,
            max_in_flight=self.max_in_flight,
            held=self.held,
            ids=len(self.attempts),
            connections=self.connections,
            open=self.open,
            catalogue_calls=self.catalogue_calls,
            load_pages=self.load_pages,
            by_status=dict(self.by_status),
        )

    async def wait(self, wanted: Wanted) -> bool:
        """Whether the condition came to hold within its time."""

        def holds() -> bool:
            return (
                wanted.in_flight in (None, self.in_flight)
                and self.in_flight >= wanted.min_in_flight
                and self.kinds[Kind.ARRIVED] >= wanted.min_arrivals
                and self.kinds[Kind.ANSWERED] >= wanted.min_answered
                and self.kinds[Kind.ABORTED] >= wanted.min_aborted
                and self.kinds[Kind.CALLED_OFF] >= wanted.min_called_off
                and self.kinds[Kind.DROPPED] >= wanted.min_dropped
                and self.kinds[Kind.BROKEN_OFF] >= wanted.min_broken_off
                and self.held >= wanted.min_held
                and self.catalogue_calls >= wanted.min_catalogue_calls
            )

        if holds():
            return True
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((holds, future))
        try:
            async with asyncio.timeout(wanted.timeout_s):
                await future
        except TimeoutError:
            return False
        return True


def now() -> tuple[float, int]:
    """The two clocks of an event."""
    return time.time(), time.monotonic_ns()
