"""What a campaign writes down while it runs; instants are `time.time()`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.support.invariants import Ended, Look, ShardRow, Story


def busy() -> float:
    """How many times as long as usual things take: processes that want a core, for each core."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


@dataclass(slots=True, kw_only=True)
class Fault:
    """A process was killed, stopped or told to end.

    What it did to requests began at `since` (earlier than `at` when its victim had been stopped
    before) and was over at `until`. `phases` are those that batches and calls were in at `at`.
    """

    what: str
    since: float
    at: float
    until: float
    is_kill: bool = True
    in_flight: int = 0
    phases: frozenset[str] = frozenset()
    probe: str = ""  # the one that was reached
    busy: float = field(default_factory=busy)
    settled: Mapping[tuple[str, int], ShardRow] = field(
        default_factory=dict
    )  # where the server died

    def told(self, from_at: float) -> str:
        probe = f" at {self.probe}" if self.probe else ""
        phases = ", ".join(sorted(self.phases)) or "nothing"
        return (
            f"{self.at - from_at:8.3f} {self.what}{probe}, {self.in_flight} in flight, met {phases}"
        )


@dataclass(slots=True, kw_only=True)
class Life:
    """One server process. `had_work`: a batch was in progress with lines that could be sent."""

    started_at: float
    had_work: bool
    ready_at: float | None = None
    ended_at: float | None = None
    busy: float = field(default_factory=busy)


@dataclass(slots=True, kw_only=True)
class BadWeather:
    """A time in which the backend was not itself."""

    what: str
    since: float
    until: float


@dataclass(slots=True, kw_only=True)
class Batch:
    """A batch that was seen, the last look at it, and what was wrong with one after another."""

    id: str
    name: str
    last: Look
    last_at: float
    steps_back: list[str] = field(default_factory=list)
    body: dict[str, object] | None = None  # of the first look that was terminal
    ended: Ended | None = None  # once its files were read too
    output: bytes | None = None
    errors: bytes | None = None
    cancelled_read_at: float | None = None  # the backend was caught up after `cancelled` was seen
    files_deleted: bool = False  # or may be


@dataclass(slots=True, kw_only=True)
class Order:
    """The input of one job and the story of its create."""

    story: Story
    content: bytes
