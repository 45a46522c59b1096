"""One shard in a worker's hands: which line is next, which are settled, what is not committed yet.

No I/O and no clock. The worker's event loop is the only reader and writer, except for what
`snapshot` hands to the segment writer, which is a copy.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Self

from batchline.domain import bitmap, partials, plan
from batchline.domain.ids import BatchId, line_id_prefix
from batchline.domain.model import Usage, total_usage
from batchline.executor.contract import Ends, ShardWork
from batchline.executor.line import CLOSED, FENCED, OPEN, EndedBy, Gate, Line
from batchline.executor.requests import Requests
from batchline.executor.spread import Spread

if TYPE_CHECKING:
    from batchline.executor.routed import Share

_API_PREFIX: Final = "/v1"  # a transport's base URL ends in it
_entry: Final = plan.ENTRY.unpack_from
_ENTRY_BYTES: Final = plan.ENTRY_BYTES


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A shard's uncommitted lines and the totals that include them."""

    outputs: list[bytes]
    errors: list[bytes]
    partials: list[bytes]
    settled: bytes
    completed: int
    failed: int
    usage: Usage
    failed_lines: bytes
    saved_lines: bytes = b""


@dataclass(slots=True, eq=False)
class ShardRun:
    """The state of one held shard."""

    work: ShardWork
    input_fd: int
    requests: Requests
    entries: bytes  # this shard's part of the plan
    path: str  # of the API, below the transport's base URL
    line_id_prefix: str
    entry_count: int
    has_gaps: bool  # some entries are not to be dispatched: in `passed`, or not suspect
    gate: Gate = Gate.OPEN
    cursor: int = 0
    returned: deque[Line] = field(default_factory=deque)  # to be dispatched before new ones
    aside: deque[Line] = field(default_factory=deque)  # too large for the bytes that were left
    waiting: dict[Line, asyncio.TimerHandle] = field(default_factory=dict)  # for a retry
    in_flight: set[Line] = field(default_factory=set)
    settled: bytearray = field(default_factory=bytearray)
    passed: bytearray = field(default_factory=bytearray)  # not to be given: `settled`, or more
    failed_lines: bytearray = field(default_factory=bytearray)  # those in `errors`
    completed: int = 0
    failed: int = 0
    usage: Usage = field(default_factory=Usage)  # up to the last snapshot
    told: list[Usage] = field(default_factory=list)  # since then
    outputs: list[bytes] = field(default_factory=list)
    errors: list[bytes] = field(default_factory=list)
    partials: list[bytes] = field(default_factory=list)  # records of lines that were cut off
    stopping: bool = False  # the batch is: what is cut off now will not be tried again
    uncommitted_groups: int = 0  # sent to the segment writer, not yet answered by the store
    announced: dict[int, asyncio.Future[None]] = field(default_factory=dict)  # until `Proceed`
    handed: bool = False  # the scheduler knows that every line was dispatched once
    ends: dict[str, Ends] = field(default_factory=dict)  # behind the closed gate, by backend
    shares: list[Share] = field(default_factory=list)  # of lanes, where there are several
    spread: Spread | None = None  # which lane prefers which lines; None: all take them in order

    @classmethod
    def open(cls, work: ShardWork, *, input_fd: int, entries: bytes) -> Self:
        shard = work.shard
        settled = bytearray(shard.settled)
        return cls(
            work=work,
            input_fd=input_fd,
            requests=Requests(input_fd, entries, send_as=work.send_as),
            entries=entries,
            path=work.endpoint.removeprefix(_API_PREFIX),
            line_id_prefix=line_id_prefix(shard.key.batch_id),
            entry_count=shard.entries,
            has_gaps=any(settled) or bool(work.suspects or work.lost),
            settled=settled,
            passed=settled,
            failed_lines=bitmap.empty(shard.entries),
            completed=shard.completed,
            failed=shard.failed,
            usage=shard.usage,
        )

    @property
    def batch_id(self) -> BatchId:
        return self.work.shard.key.batch_id

    # -- what is next ----------------------------------------------------------------------

    def take(self) -> Line | None:
        """The next line to dispatch, now counted as in flight; None when there is none now."""
        if self.gate is not OPEN or (self.has_gaps and self.work.suspects and self.in_flight):
            return None
        if self.returned:
            line = self.returned.popleft()
        elif self.aside:
            line = self.aside.popleft()
        elif self.has_gaps:
            if (unseen := self._unseen()) is None:
                return None
            line = unseen
        elif (index := self.cursor) < self.entry_count:  # nearly always, and in as few calls
            self.cursor = index + 1
            # As `line_at` does.
            offset, length, number, _ = _entry(self.entries, index * _ENTRY_BYTES)
            line_id = "%s%08x" % (self.line_id_prefix, number)  # noqa: UP031
            line = Line(self, index, offset, length, number, line_id, line_id)
        else:
            return None
        self.in_flight.add(line)
        return line

    def take_small(self, most_bytes: int) -> Line | None:
        """As `take`, of the lines of at most so many bytes; larger ones are put aside meanwhile."""
        if self.gate is not OPEN or (self.work.suspects and self.in_flight):
            return None
        while (line := self.returned.popleft() if self.returned else self._unseen()) is not None:
            if line.length <= most_bytes:
                self.in_flight.add(line)
                return line
            self.aside.append(line)
        return None

    def take_back(self, line: Line) -> None:
        """`line` was taken and may not go yet: it is the next one again."""
        self.in_flight.discard(line)
        self.returned.appendleft(line)

    def _unseen(self) -> Line | None:
        index = self._next_index()
        if index >= self.entry_count:
            return None
        self.cursor = index + 1
        self._next_index()  # past a settled tail, so that the shard counts as handed out
        return self.line_at(index)

    def next_for(self, seat: int, *, divide: bool) -> Line | None:
        """A line that was not dispatched yet for one of the lanes that share them; see `Spread`.

        It does not count as in flight. `divide`: the lane would be idle otherwise.
        """
        return self.aside.popleft() if self.aside else self.unseen_for(seat, divide=divide)

    def unseen_for(self, seat: int, *, divide: bool) -> Line | None:
        """As `next_for`, without those that were put aside."""
        spread = self.spread
        if spread is None:
            return self._unseen()
        index = spread.take_divided(seat) if divide else spread.take(seat)
        if index is None:
            return None
        if not spread.left:
            self.cursor = self.entry_count
        return self.line_at(index)

    def unsent(self) -> Collection[int]:
        """The entries that were not dispatched yet and are to be; those put aside are not in it."""
        if self.spread is not None:
            return self.spread.entries()
        left = {
            n for n in range(self.cursor, self.entry_count) if not bitmap.is_marked(self.passed, n)
        }
        return left.difference(self.work.lost)

    def share_out(self, spread: Spread) -> None:
        """From now on lines are given out by `spread`, which has all that are to go."""
        self.spread = spread
        self.has_gaps = True
        if not spread.left:
            self.cursor = self.entry_count

    def _next_index(self) -> int:
        """The cursor, moved past what settled under an earlier epoch and what is not to run."""
        if not self.has_gaps:
            return self.cursor
        if self.spread is not None:
            return 0 if self.spread.left else self.entry_count
        suspects = self.work.suspects
        while self.cursor < self.entry_count and (
            bitmap.is_marked(self.passed, self.cursor) or (suspects and self.cursor not in suspects)
        ):
            self.cursor += 1
        return self.cursor

    def line_at(self, index: int) -> Line:
        """The line of entry `index`, before its first attempt."""
        offset, length, number, _ = _entry(self.entries, index * _ENTRY_BYTES)
        # By this operator in half the time of an f-string.
        line_id = "%s%08x" % (self.line_id_prefix, number)  # noqa: UP031
        return Line(self, index, offset, length, number, line_id, line_id)

    @property
    def has_line(self) -> bool:
        """Whether `take` could give a line now (or once the one in flight of suspects ends)."""
        return self.gate is OPEN and (
            bool(self.returned or self.aside) or self._next_index() < self.entry_count
        )

    # -- how a line ended ------------------------------------------------------------------

    def settle(
        self, line: Line, result: bytes, usage: Usage | None, *, succeeded: bool = True
    ) -> int:
        """Give `line` its result; the bytes that are held for it from now on.

        It is never dispatched again under this epoch.
        """
        self.in_flight.discard(line)
        index = line.index
        self.settled[index >> 3] |= 1 << (index & 7)  # bitmap.mark, without the call
        if succeeded:
            self.completed += 1
            self.outputs.append(result)
        else:
            self.failed += 1
            bitmap.mark(self.failed_lines, line.index)
            self.errors.append(result)
        if usage is not None:
            self.told.append(usage)
        if self.gate is CLOSED and line.written:
            self.ends.setdefault(line.backend, Ends()).finished_late += 1
        return len(result)

    def keep_partial(self, line: Line, body: bytes) -> int:
        """Keep what came of a line that was cut off, if it is not to be tried again; its bytes.

        The line stays unsettled: its error line is written at the end, and has this in it.
        """
        if self.gate is not CLOSED or not self.stopping:
            return 0
        self.partials.append(partials.record(line.line_number, body))
        return len(self.partials[-1])

    def put_back(self, line: Line) -> None:
        """The line ended without a result: it is next again if the gate is open."""
        self.in_flight.discard(line)
        if self.gate is OPEN:
            self.returned.append(line)

    def close(self, gate: Gate) -> None:
        """Close the gate. Lines that are not on the wire are left for whoever comes next."""
        if self.gate is not FENCED:
            self.gate = gate
        self.returned.clear()
        self.aside.clear()
        for timer in self.waiting.values():
            timer.cancel()
        self.waiting.clear()
        if gate is FENCED:
            self.outputs.clear()
            self.errors.clear()
            self.partials.clear()

    def note_end(self, line: Line, *, aborted: bool) -> None:
        """The attempt at `line` is over behind the closed gate: it counts for the receipt."""
        if not line.written:
            return
        ends = self.ends.setdefault(line.backend, Ends())
        how = (line.ended_by or EndedBy.CLOSED).value if aborted else "answered"
        setattr(ends, how, getattr(ends, how) + 1)

    @property
    def on_the_wire(self) -> Counter[str]:
        """How many requests are at each backend."""
        return Counter(line.backend for line in self.in_flight if line.written)

    @property
    def is_over(self) -> bool:
        """Nothing runs, nothing waits, nothing is left to dispatch."""
        return not (self.in_flight or self.waiting or self.has_line)

    @property
    def is_durable(self) -> bool:
        """Everything that settled here was answered by the store."""
        return not (self.has_uncommitted or self.uncommitted_groups)

    @property
    def has_uncommitted(self) -> bool:
        return bool(self.outputs or self.errors or self.partials)

    @property
    def uncommitted_bytes(self) -> int:
        return sum(map(len, (*self.outputs, *self.errors, *self.partials)))

    @property
    def all_settled(self) -> bool:
        return bitmap.count(self.settled) == self.entry_count

    def snapshot(self) -> Snapshot:
        """Take the uncommitted lines out, with totals that include exactly them."""
        self.usage = total_usage((self.usage, *self.told))
        self.told.clear()
        group = Snapshot(
            self.outputs,
            self.errors,
            self.partials,
            bytes(self.settled),
            self.completed,
            self.failed,
            self.usage,
            bytes(self.failed_lines),
        )
        self.outputs, self.errors, self.partials = [], [], []
        self.failed_lines = bitmap.empty(self.entry_count)
        return group
