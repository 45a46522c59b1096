"""How far a batch is, how fast it goes, when it may be done, and what it waits for.

Reads only; everything but the batch's row is in memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from batchline.domain.forecast import Rates, TimeLeft
from batchline.domain.ids import BatchId, ProjectId
from batchline.domain.lifecycle import TERMINAL, BatchStatus
from batchline.domain.model import Batch, Counts
from batchline.service.batches import Batches
from batchline.service.running import Running
from batchline.service.waits import Known, Wait, WaitCode, of_batch

# While one of these holds, nobody knows when the batch is done. A turn or a pace is no such thing.
_HELD_UP = frozenset(WaitCode) - {WaitCode.OTHERS_FIRST, WaitCode.RATE_LIMIT}


class Runs(Protocol):
    """Where running batches are: the scheduler."""

    def find(self, batch_id: BatchId) -> Running | None:
        """The batch as it runs; None when nobody has taken it up."""

    def running_of(self, project_id: ProjectId) -> Sequence[Running]:
        """The running batches of a project, oldest first."""

    def others_hold(self, running: Running) -> bool:
        """Whether a worker has a shard of another batch."""

    def share_of(self, running: Running) -> float:
        """Which part of the shards at work are this batch's, from 0 to 1; 0 when none is."""


class Serving(Protocol):
    """Who serves what: the catalogue."""

    def backends_for(self, model: str) -> Sequence[str]:
        """Names of the backends that list `model`, or whose catalogue is not known yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One batch at one moment. `at` is in Unix seconds.

    `rates` and `left` are None where nothing can be told: before there is enough to tell, and for a
    batch that is not in progress; `left` also while something other than its turn holds it up.
    """

    batch: Batch
    counts: Counts
    at: float
    rates: Rates | None
    left: TimeLeft | None
    waits: Sequence[Wait]


class ProgressReader:
    """Answers for batches of a project."""

    def __init__(
        self,
        batches: Batches,
        runs: Runs,
        backends: Serving,
        known: Callable[[], Known],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._batches = batches
        self._runs = runs
        self._backends = backends
        self._known = known
        self._clock = clock

    async def read(self, project_id: ProjectId, batch_id: str) -> Progress:
        """How the batch is.

        Raises:
            InvalidRequest, NotFound: as `Batches.get`.
        """
        batch = await self._batches.get(project_id, batch_id)
        return self._of(batch, batch.counts, self._runs.find(batch.id))

    def running(self, project_id: ProjectId, *, limit: int) -> Sequence[Progress]:
        """The oldest `limit` running batches of a project, without asking the store."""
        return [
            self._of(running.batch, running.meter.counts, running)
            for running in self._runs.running_of(project_id)[:limit]
        ]

    def _of(self, batch: Batch, counts: Counts, running: Running | None) -> Progress:
        waits = self._waits(batch, running)
        rates = left = None
        if batch.status is BatchStatus.IN_PROGRESS and running is not None:
            rates = running.meter.rates()
            if not any(wait.code in _HELD_UP for wait in waits):
                lines = counts.total - counts.completed - counts.failed
                left = running.meter.left(
                    lines,
                    in_flight=self._in_flight(running),
                    none_waits=not running.has_waiting,
                )
        return Progress(
            batch=batch, counts=counts, at=self._clock(), rates=rates, left=left, waits=waits
        )

    def _in_flight(self, running: Running) -> int:
        """About how many of its lines are under way: its share of what its backends take."""
        limits = self._known().limits
        names = {name for m in running.models for name in self._backends.backends_for(m)}
        return round(sum(limits.get(name, 0) for name in names) * self._runs.share_of(running))

    def _waits(self, batch: Batch, running: Running | None) -> Sequence[Wait]:
        if batch.status in TERMINAL:
            return ()
        return of_batch(
            batch.status,
            self._known(),
            serving=[self._backends.backends_for(m) for m in (running.models if running else ())],
            others_first=running is not None and self._is_passed_over(running),
        )

    def _is_passed_over(self, running: Running) -> bool:
        """Workers have shards, and none of this batch, which has some to give."""
        return running.has_waiting and not running.held and self._runs.others_hold(running)
