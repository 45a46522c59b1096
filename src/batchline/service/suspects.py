"""Shards that killed their workers, and the lines in them that did it.

A shard that killed `SERIAL_AFTER_DEATHS` workers is *suspect*: it runs alone in a worker of its
own, one line at a time. A line that was under way at `LOST_AFTER_DEATHS` deaths of that worker is
settled as `worker_lost` without being sent again (design.md section 4). Kept in memory: a server
that starts anew knows the shard's deaths from its row and finds the line again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from batchline.domain.ids import BatchId
from batchline.domain.model import ShardKey

SERIAL_AFTER_DEATHS: Final = 3
LOST_AFTER_DEATHS: Final = 2


def is_suspect(deaths: int) -> bool:
    """Whether a shard that so many workers died with is to run alone."""
    return deaths >= SERIAL_AFTER_DEATHS


class Suspects:
    """Counts the deaths of serial shards' workers by the line that was under way."""

    def __init__(self) -> None:
        self._deaths: dict[ShardKey, Counter[int]] = {}

    def died(self, key: ShardKey, entry: int) -> None:
        """A worker died with `entry` (from 0) of the serial shard under way, and nothing else."""
        self._deaths.setdefault(key, Counter())[entry] += 1

    def lost(self, key: ShardKey) -> Sequence[int]:
        """The entries that are not to be sent again, ascending."""
        deaths = self._deaths.get(key, Counter[int]())
        return sorted(entry for entry, count in deaths.items() if count >= LOST_AFTER_DEATHS)

    def forget(self, batch_id: BatchId) -> None:
        """The batch is terminal."""
        for key in [key for key in self._deaths if key.batch_id == batch_id]:
            del self._deaths[key]
