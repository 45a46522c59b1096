"""Shards that several backends serve: which lane gets which line.

With one backend none of this is there: its lane takes lines from the shard itself. With more, each
lane takes them through a `Share` of the shard. That leaves a line that failed at a backend to the
others, and keeps groups of lines with the same prefix together (`affinity.py`, `spread.py`). No
lane with room is idle while there is a line that it may have.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from batchline.domain import plan
from batchline.domain.ids import BatchId
from batchline.executor.affinity import Seat, preferences
from batchline.executor.contract import BackendSettings, ShardWork
from batchline.executor.edits import edits_of
from batchline.executor.lane import Lane
from batchline.executor.level_meter import meter_of
from batchline.executor.line import Gate, Line
from batchline.executor.shard_run import ShardRun
from batchline.executor.spread import Spread
from batchline.executor.transport.contract import Transport
from batchline.executor.turns import Source

# So many broken attempts in a row, while another backend answers, are the backend's fault: one that
# fails everything fails it fast, and would get most of the lines.
BROKEN_IN_A_ROW: Final = 10


@dataclass(slots=True, eq=False)
class RoutedLane(Lane):
    """A lane that has others beside it."""

    weight: float = 1.0
    broken: int = 0  # attempts in a row
    breaking: Line | None = None  # whose attempt broke, and ends now
    divides: bool = False  # a group that another lane is at, in this turn

    @property
    def admits(self) -> bool:
        """Whether lines go to this backend, if perhaps not this moment."""
        return self.admitting and self.permits > 0

    @property
    def load(self) -> float:
        """What it carries of its part: the lane with the lowest has the most room."""
        return self.in_flight / self.weight

    def take(self, *, most_bytes: int | None = None) -> Line | None:
        """As `Lane.take`; rather than be idle it takes over what another lane is at."""
        line = Lane.take(self, most_bytes=most_bytes)
        if line is None and self.runs and self.in_flight < self.permits:
            self.divides = True
            line = Lane.take(self, most_bytes=most_bytes)
            self.divides = False
        return line

    def source_of(self, line: Line) -> Source:
        return next((share for share in line.run.shares if share.lane is self), line.run)

    def ended(self, line: Line, answered: bool) -> None:
        if self.breaking is line:
            self.breaking = None
        elif answered:
            self.broken = 0
        Lane.ended(self, line, answered)


@dataclass(slots=True, eq=False)
class Share:
    """What one lane sees of a shard that others serve too."""

    run: ShardRun
    lane: RoutedLane
    seat: int

    @property
    def has_line(self) -> bool:
        return self.run.has_line

    @property
    def admits(self) -> bool:
        """Whether lines of the shard go to this lane's backend, if perhaps not this moment."""
        return self.lane.admits and self.run.work.model not in self.lane.held

    @property
    def work(self) -> ShardWork:
        return self.run.work

    @property
    def batch_id(self) -> BatchId:
        return self.run.batch_id

    def take(self) -> Line | None:
        """As `ShardRun.take`; None also where what is left is better left to another lane."""
        run = self.run
        if run.gate is not Gate.OPEN:
            return None
        line = self._returned() if run.returned else None
        if line is None:
            line = run.next_for(self.seat, divide=self.lane.divides)
        if line is not None:
            run.in_flight.add(line)
        return line

    def take_small(self, most_bytes: int) -> Line | None:
        """As `ShardRun.take_small`, of the lines that this lane may have."""
        run = self.run
        if run.gate is not Gate.OPEN:
            return None
        line = self._returned(most_bytes)
        while line is None:
            line = run.unseen_for(self.seat, divide=self.lane.divides)
            if line is None:
                return None
            if line.length > most_bytes:
                run.aside.append(line)
                line = None
        run.in_flight.add(line)
        return line

    def _returned(self, most_bytes: int | None = None) -> Line | None:
        """The first of the lines that came back that does not wait for another backend."""
        returned = self.run.returned
        waits: tuple[str, ...] | None = None  # many may wait for the same other one
        for at, line in enumerate(returned):
            if line.failed_at == waits or (most_bytes is not None and line.length > most_bytes):
                continue
            if not line.failed_at or self._may_have(line.failed_at):
                del returned[at]
                return line
            waits = line.failed_at
        return None

    def _may_have(self, failed_at: Collection[str]) -> bool:
        """False for a line that failed here, while one admits at which it did not."""
        return self.lane.backend not in failed_at or not any(
            other.admits and other.lane.backend not in failed_at for other in self.run.shares
        )


def lanes_of(
    backends: Sequence[BackendSettings], transports: Iterable[Transport]
) -> Mapping[str, Lane]:
    """A lane for each backend; plain ones where there is only one."""
    if len(backends) == 1:
        return {
            b.name: Lane(b.name, transport, edits_of(b), meter_of(b))
            for b, transport in zip(backends, transports, strict=True)
        }
    return {
        b.name: RoutedLane(b.name, transport, edits_of(b), meter_of(b), weight=b.weight)
        for b, transport in zip(backends, transports, strict=True)
    }


def share_out(run: ShardRun, lanes: Mapping[str, Lane]) -> None:
    """Give each of the shard's lanes its share, where there are several.

    Suspects run one at a time, at whichever lane comes first.
    """
    routed = [lane for name in run.work.backends if isinstance(lane := lanes[name], RoutedLane)]
    if len(routed) < 2 or run.work.suspects:
        return
    run.shares = [Share(run, lane, seat) for seat, lane in enumerate(routed)]
    _spread(run, routed)


def _spread(run: ShardRun, lanes: Sequence[RoutedLane]) -> None:
    """Say which lane prefers which of the lines that are left, where prefixes are known."""
    hashes = plan.prefix_hashes(run.entries)
    if any(hashes):
        seats = [Seat(lane.backend, lane.weight) for lane in lanes]
        left = run.unsent()
        done = {n for n in range(len(hashes)) if n not in left}
        run.share_out(Spread.of(preferences(hashes, seats), done))


def serve_too(run: ShardRun, work: ShardWork, lanes: Mapping[str, Lane]) -> None:
    """The shard goes on as `work`, which has more backends: their lanes get shares too.

    Those that it had come first in `work.backends`, and keep their seats. What was not dispatched
    yet is spread anew: of the groups only those move that prefer a new one.
    """
    before, run.work = run.work, work
    routed = [lane for name in work.backends if isinstance(lane := lanes[name], RoutedLane)]
    if work.suspects or len(routed) < 2:
        return
    if not run.shares:
        for name in before.backends:
            lanes[name].drop(run)
    seats = enumerate(routed[len(run.shares) :], start=len(run.shares))
    run.shares.extend(Share(run, lane, seat) for seat, lane in seats)
    _spread(run, routed)


def lanes_with(run: ShardRun) -> list[RoutedLane]:
    """The lanes of a shard that is shared, each with its share in its list; else none."""
    for share in run.shares:
        share.lane.offer(share)
    return [share.lane for share in run.shares]


def leave(run: ShardRun, lanes: Mapping[str, Lane]) -> None:
    """Take the shard, which is over, from the lists of its lanes."""
    for share in run.shares:
        share.lane.drop(share)
    run.shares.clear()
    for backend in run.work.backends:
        lanes[backend].drop(run)


def emptiest(lanes: Sequence[RoutedLane]) -> RoutedLane:
    """Whose turn it is when several have room: the lane with the most of it for its weight."""
    return min(lanes, key=lambda lane: lane.load)
