"""What the scheduler sees of one running batch, turned into its pace.

Commits carry absolute counts of their shard; a meter knows what a shard had when it was claimed, so
that what counts is what settled here. How many lines are left is the store's to say: a server that
was just started knows that at once, and no pace for some seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from batchline.domain.forecast import Pace, Rates, TimeLeft
from batchline.domain.model import Counts, Shard, ShardCommit

LAST_LINES: Final = 0.1  # of a shard that was sent whole: stragglers


@dataclass(slots=True)
class _Held:
    """A shard that a worker runs. `sent_at_s`: since when each of its lines has been sent once."""

    model: str
    entries: int
    completed: int
    failed: int
    tokens: int
    sent_at_s: float | None = None
    left_when_sent: int = 0

    @property
    def left(self) -> int:
        return self.entries - self.completed - self.failed

    @property
    def is_at_work(self) -> bool:
        return self.sent_at_s is None or self.left > self.entries * LAST_LINES


class PaceMeter:
    """Of one batch, from its activation on. `before` is what it had then. On the event loop."""

    def __init__(self, before: Counts, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._before = before
        self._clock = clock
        self._pace = Pace()
        self._held: dict[int, _Held] = {}
        self._completed = 0
        self._failed = 0
        self._last_sent_s = 0.0
        self._left_when_sent = 0  # of all shards that were held then

    # -- what the scheduler tells ----------------------------------------------------------

    def claimed(self, shard: Shard) -> None:
        """A worker gets the shard, as it is in the store."""
        self._held[shard.key.number] = _Held(
            shard.model,
            shard.entries,
            shard.completed,
            shard.failed,
            shard.usage.total_tokens,
        )

    def committed(self, commit: ShardCommit) -> None:
        """The store has accepted this."""
        held = self._held.get(commit.key.number)
        if held is None:
            return
        completed, failed = commit.completed - held.completed, commit.failed - held.failed
        self._completed += completed
        self._failed += failed
        tokens = commit.usage.total_tokens - held.tokens
        held.completed, held.failed = commit.completed, commit.failed
        held.tokens = commit.usage.total_tokens
        self._pace.settled(self._clock(), completed + failed, tokens)

    def sent(self, number: int) -> None:
        """Every line of the shard has been sent once."""
        held = self._held.get(number)
        if held is not None:
            held.sent_at_s = self._last_sent_s = self._clock()
            held.left_when_sent = held.left
            self._left_when_sent = sum(one.left for one in self._held.values())

    def let_go(self, number: int) -> None:
        """No worker has the shard any more."""
        held = self._held.pop(number, None)
        if held is None or held.sent_at_s is None or held.left > 0:
            return
        now_s = self._clock()
        rates = self._pace.rates(now_s)
        if rates is not None and rates.lines_per_s > 0:
            usual_s = held.left_when_sent / rates.lines_per_s
            self._pace.tail(now_s - held.sent_at_s - usual_s)

    # -- what is asked ---------------------------------------------------------------------

    @property
    def shards_at_work(self) -> int:
        """How many shards workers have, without those of which only the last lines still run."""
        return sum(held.is_at_work for held in self._held.values())

    @property
    def models(self) -> set[str]:
        """Of the shards that workers have."""
        return {held.model for held in self._held.values()}

    @property
    def counts(self) -> Counts:
        """As the store has them, for who does not want to ask it."""
        return Counts(
            total=self._before.total,
            completed=self._before.completed + self._completed,
            failed=self._before.failed + self._failed,
        )

    def rates(self) -> Rates | None:
        """None before there is enough to tell."""
        return self._pace.rates(self._clock())

    def left(self, lines: int, *, in_flight: int, none_waits: bool) -> TimeLeft | None:
        """How long `lines` more take, of which about `in_flight` are under way at a time.

        `none_waits`: a worker has the shard of each of them.
        """
        all_sent = none_waits and all(h.sent_at_s is not None for h in self._held.values())
        return self._pace.left(
            self._clock(),
            lines,
            in_flight=min(in_flight, self._left_when_sent) if all_sent else in_flight,
            all_sent_at_s=self._last_sent_s if all_sent else None,
        )
