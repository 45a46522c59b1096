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
from batchline.domain.waiting import WaitCode
from batchline.service.batches import Batches
from batchline.service.running import AtWork, Running
from batchline.service.waits import Known, Wait, of_batch

# While one of these holds, nobody knows when the batch is done. A turn or a pace is no such thing.
_HELD_UP = frozenset(WaitCode) - {WaitCode.OTHERS_FIRST, WaitCode.RATE_LIMIT}


class Runs(Protocol):
    """Where running batches are: the scheduler."""

    def find(self, batch_id: BatchId) -> Running | None:
        """The batch as it runs; None when nobody has taken it up."""

    def running_of(self, project_id: ProjectId) -> Sequence[Running]:
        """The running batches of a project, oldest first."""

    def at_work(self) -> AtWork:
        """What workers have now, of all batches."""


class Serving(Protocol):
    """Who serves what: the catalogue."""

    def backends_for(self, model: str) -> Sequence[str]:
        """Names of the backends that list `model`, or whose catalogue is not known yet."""

    def name_at_backends(self, model: str) -> str:
        """What backends call the model that a file calls `model`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Moment:
    """What is the same for all batches: gathered once, however many are asked about."""

    known: Known
    at_work: AtWork


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
        return self._of(batch, batch.counts, self._runs.find(batch.id), self._moment())

    def running(self, project_id: ProjectId, *, limit: int) -> Sequence[Progress]:
        """The oldest `limit` running batches of a project, without asking the store."""
        now = self._moment()
        return [
            self._of(running.batch, running.meter.counts, running, now)
            for running in self._runs.running_of(project_id)[:limit]
        ]

    def _moment(self) -> _Moment:
        return _Moment(known=self._known(), at_work=self._runs.at_work())

    def _of(self, batch: Batch, counts: Counts, running: Running | None, now: _Moment) -> Progress:
        waits = self._waits(batch, running, now)
        rates = left = None
        # The batch of `running()` is as it was when it began: that it was stopped, `running` knows.
        going = running if running is not None and not running.stopped else None
        if batch.status is BatchStatus.IN_PROGRESS and going is not None:
            rates = going.meter.rates()
            if not any(wait.code in _HELD_UP for wait in waits):
                lines = counts.total - counts.completed - counts.failed
                left = going.meter.left(
                    lines,
                    in_flight=self._in_flight(going, now),
                    none_waits=not going.has_waiting,
                )
        return Progress(
            batch=batch, counts=counts, at=self._clock(), rates=rates, left=left, waits=waits
        )

    def _in_flight(self, running: Running, now: _Moment) -> int:
        """About how many of its lines are under way: its share of what its backends take."""
        if not now.at_work.shards:
            return 0
        limits = now.known.limits
        names = {name for m in running.models for name in self._backends.backends_for(m)}
        share = running.meter.shards_at_work / now.at_work.shards
        return round(sum(limits.get(name, 0) for name in names) * share)

    def _waits(self, batch: Batch, running: Running | None, now: _Moment) -> Sequence[Wait]:
        if batch.status in TERMINAL or (running is not None and running.stopped):
            return ()
        names = {m: self._backends.name_at_backends(m) for m in (running.models if running else ())}
        serving = {name: self._backends.backends_for(m) for m, name in names.items()}
        at_work = running.meter.models if running else ()
        return of_batch(
            batch.status,
            now.known,
            serving=serving,
            unlisted=[name for m, name in names.items() if m not in at_work and not serving[name]],
            others_first=running is not None and _is_passed_over(running, now),
            checked_later=now.known.being_checked is not None
            and batch.id not in now.known.being_checked,
        )


def _is_passed_over(running: Running, now: _Moment) -> bool:
    """Workers have shards, and none of this batch, which has some to give."""
    return running.has_waiting and not running.held and now.at_work.batches > 0
