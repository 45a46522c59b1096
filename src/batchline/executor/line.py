"""One line in a worker's hands: where it stands between its first dispatch and its result.

No I/O and no clock; the worker's event loop is the only reader and writer.
"""

from __future__ import annotations

import asyncio
from enum import StrEnum
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from batchline.executor.shard_run import ShardRun


class Gate(StrEnum):
    """Whether first bytes of this shard's requests may be written, and if not, why."""

    OPEN = "open"
    CLOSED = "closed"  # cancel, window, drain: results that still arrive count
    FENCED = "fenced"  # someone else holds the shard: nothing counts any more


# Through its class each look at a member costs 0.1 us on Python 3.11, and a line has ten of them.
OPEN: Final = Gate.OPEN
CLOSED: Final = Gate.CLOSED
FENCED: Final = Gate.FENCED


class Trial(StrEnum):
    """What the dispatch of a line tries."""

    BACKEND = "backend"  # whose circuit is closed
    MODEL = "model"  # its own, which was away at the backend


class EndedBy(StrEnum):
    """How we ended a request that was in flight; the field of `Ends` that counts it."""

    CLOSED = "closed"
    CALLED = "called"
    CALL_FAILED = "calls_failed"
    UNANSWERED = "unanswered"


# A msgspec struct, not a dataclass: one is made for each line, at a quarter of the cost.
class Line(msgspec.Struct, eq=False):
    """One request line between its first dispatch and its result."""

    run: ShardRun
    index: int  # in the shard, from 0
    offset: int
    length: int
    line_number: int
    line_id: str
    idempotency_key: str  # the line id; a suffix after each answered attempt
    attempt: int = 0  # the attempt under way or last ended, from 1; 0 before the first
    answers: int = 0  # attempts that got an HTTP answer without a result
    written: bool = False  # the first byte of the current attempt was handed to the socket
    trial: Trial | None = None  # this dispatch tries what is closed
    held_bytes: int = 0  # what it counts in the worker's byte budget
    backend: str = ""  # where the current attempt goes
    sends: int = 0  # attempts under this epoch, also those that do not count
    failed_at: tuple[str, ...] = ()  # backends at which an attempt broke; others are better
    losses: int = 0  # attempts that do not count, because the backend went down with them
    abort_id: str | None = None  # by which its backend can be called to abort the attempt
    doomed: bool = False  # that call is under way: an answer may be cut short, and counts no more
    ended_by: EndedBy | None = None  # set when the attempt is cancelled
    began: float = 0.0  # when the attempt did, on the clock of its lane's meter
    task: asyncio.Task[None] | None = None

    def admit(self) -> bool:
        """Last look at the gate, in the loop step that writes the first byte."""
        if self.run.gate is OPEN:
            self.written = True
            return True
        return False

    def begin(self, backend: str) -> None:
        """A new attempt, at `backend`: its bytes are held; what an earlier one left is over."""
        self.backend = backend
        self.held_bytes = self.length
        self.sends += 1
        if self.sends > 1:
            self.written = self.doomed = False
            self.abort_id = self.ended_by = None

    def end(self, how: EndedBy) -> None:
        """Cancel the attempt under way; it is over when its task is. Only the first call counts."""
        if self.task is not None and self.ended_by is None:
            self.ended_by = how
            self.task.cancel()

    def answered(self) -> None:
        """The attempt got an answer: the next has a key of its own, or a stored 500 is replayed.

        An unanswered attempt keeps the key: the backend may have done the work already.
        """
        self.answers += 1
        self.idempotency_key = f"{self.line_id}-{self.answers}"
