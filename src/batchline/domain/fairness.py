"""Whose shard next: arithmetic over what is known of the waiting batches.

Batches whose window is about to close come first, earliest deadline first. Otherwise the batch with
the fewest shards running is next, so that a small batch behind a huge one is served in turns; ties
go to the earlier deadline, then to the older batch. Work-conserving: whoever waits alone gets all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

URGENT_FRACTION: Final = 0.1  # of the window: what is left when a batch becomes urgent


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A batch with a shard to hand out. Instants in Unix seconds."""

    sequence: int
    created_at: int
    expires_at: int
    running_shards: int


def next_batch(waiting: Iterable[Waiting], *, now: float) -> Waiting | None:
    """The batch whose shard is next; None when nobody waits."""
    return min(waiting, key=lambda batch: _rank(batch, now), default=None)


def _rank(batch: Waiting, now: float) -> tuple[int, int, int, int]:
    window_s = batch.expires_at - batch.created_at
    urgent = batch.expires_at - now < window_s * URGENT_FRACTION
    if urgent:
        return 0, batch.expires_at, batch.running_shards, batch.sequence
    return 1, batch.running_shards, batch.expires_at, batch.sequence
