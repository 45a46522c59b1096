"""A batch in progress as the scheduler sees it: which of its shards wait, and which are held."""

from __future__ import annotations

import asyncio
from array import array
from dataclasses import dataclass, field

from batchline.domain.model import Batch
from batchline.executor.contract import Ends
from batchline.service.pace_meter import PaceMeter


@dataclass(frozen=True, slots=True, kw_only=True)
class AtWork:
    """What workers have at one moment: shards of how many batches, and how many shards, without
    those of which only the last lines still run."""

    batches: int
    shards: int


@dataclass(slots=True, eq=False)
class Running:
    """One batch in progress: its shards by where they are. Owned by the event loop.

    `idle` is set while no shard is held; `changed` when the batch itself may have to move: its last
    line is settled, it is stopped, or its input is lost.
    """

    batch: Batch
    unsettled: int
    meter: PaceMeter
    # By model, the next one last: 4 bytes a shard, ten million lines are ten thousand.
    pending: dict[str, array[int]] = field(default_factory=dict)
    quarantined: dict[str, array[int]] = field(default_factory=dict)  # those with suspect lines
    held: set[int] = field(default_factory=set)
    held_quarantined: set[int] = field(default_factory=set)
    suspected: bool = False  # some line of it has been
    stopped: bool = False
    input_lost: bool = False
    ends: dict[str, Ends] = field(default_factory=dict)  # by backend, of shards that came back
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def all_settled(self) -> bool:
        return self.unsettled == 0

    @property
    def has_waiting(self) -> bool:
        """Whether there is a shard that no worker has."""
        return bool(self.pending or self.quarantined)

    @property
    def models(self) -> list[str]:
        """Those that have lines left."""
        return sorted({*self.pending, *self.quarantined, *self.meter.models})

    def waiting_in(self, *, quarantine: bool) -> dict[str, array[int]]:
        """The shards that wait, by model: those with suspect lines, or all others."""
        return self.quarantined if quarantine else self.pending

    def take(self, model: str, *, quarantine: bool) -> int:
        """The next shard of `model`, now counted as held."""
        queues = self.waiting_in(quarantine=quarantine)
        number = queues[model].pop()
        if not queues[model]:
            del queues[model]
        self.held.add(number)
        if quarantine:
            self.held_quarantined.add(number)
        self.idle.clear()
        return number

    def put_back(self, number: int, model: str, *, quarantine: bool) -> None:
        """It waits, and is the next one of `model`."""
        queues = self.waiting_in(quarantine=quarantine)
        if model not in queues:
            queues[model] = array("I")
        queues[model].append(number)
        self.suspected |= quarantine

    def let_go(self, number: int) -> None:
        self.meter.let_go(number)
        self.held.discard(number)
        self.held_quarantined.discard(number)
        if not self.held:
            self.idle.set()
        if self.all_settled:
            self.changed.set()
