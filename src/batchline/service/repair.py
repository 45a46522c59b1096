"""Before a batch ends: committed results that are damaged are taken back, with an alarm for each.

A batch that nothing stopped then runs their lines again; of one that was stopped they become lines
without a result, as if they had never run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from batchline import telemetry
from batchline.domain.ids import BatchId
from batchline.domain.lifecycle import BatchEvent, BatchStatus, sources
from batchline.domain.model import Batch
from batchline.service.alarms import SAID_AT_ONCE, Alarms
from batchline.service.range_check import DamagedRange, RangeCheck
from batchline.store.contract import Store

# A disk that damages results again and again must not have lines sent for ever. After so many times
# a batch ends with what is damaged in its files, which then cannot be downloaded whole.
MAX_REPAIRS: Final = 3

_ENDING: Final[frozenset[BatchStatus]] = sources(BatchEvent.RESULTS_DAMAGED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """Looks after what is committed of batches that are about to end."""

    store: Store
    ranges: RangeCheck
    alarms: Alarms
    clock: Callable[[], float] = time.time

    async def take_back_damaged(self, batch: Batch) -> Batch:
        """Check everything that is committed of `batch`, whose shards are all back.

        The batch as it is then: where nothing was damaged, as it was given. A batch in FINALIZING
        that nothing stopped is IN_PROGRESS again if something was.

        Raises:
            StoreUnavailable: it could not be found out now, and nothing was changed.
        """
        damaged = await self.ranges.damaged(batch)
        telemetry.probe("ranges.checked")
        self._alarm(batch.id, damaged)
        # Without a record of its lines a range cannot be taken back: it stays, and is an alarm.
        recorded = [one for one in damaged if one.committed.lines is not None]
        while recorded and batch.repairs < MAX_REPAIRS and batch.status in _ENDING:
            after = await self._take_back(batch, recorded)
            if after is not None:
                return after
            batch = await self.store.load_batch(batch.id)  # a cancel came beside us
        return batch

    async def _take_back(self, batch: Batch, damaged: Sequence[DamagedRange]) -> Batch | None:
        after = await self.store.unsettle_ranges(
            batch.id,
            [one.committed.sequence for one in damaged],
            from_status=batch.status,
            stopping=batch.stopping,
            now=int(self.clock()),
        )
        if after is not None:
            lines = sum(one.committed.lines or 0 for one in damaged)
            telemetry.event(
                "results_taken_back", batch_id=batch.id, lines=lines, status=after.status.value
            )
        return after

    def _alarm(self, batch_id: BatchId, damaged: Sequence[DamagedRange]) -> None:
        for one in damaged[:SAID_AT_ONCE]:
            part = one.committed.part
            self.alarms.range_corrupt(
                batch_id=batch_id,
                blob=part.blob,
                start=part.start,
                size=part.stop - part.start,
                lines=one.committed.lines,
                damage=one.damage.value,
            )
        if len(damaged) > SAID_AT_ONCE:
            unsaid = len(damaged) - SAID_AT_ONCE
            self.alarms.ranges_corrupt(batch_id=batch_id, ranges=len(damaged), unsaid=unsaid)
