"""The scheduler's side of fair shares: what it tells the book of them, and asks of it.

`domain/shares.py` decides; here its batches are found again by their sequence, projects' weights by
their names, and what a worker has open is put in its terms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from batchline.domain.ids import BatchId, ProjectId
from batchline.domain.model import Shard, ShardCommit
from batchline.domain.shares import URGENT_SHARE, Charge, Shares, Turn
from batchline.domain.wanting import Member
from batchline.executor.contract import Room
from batchline.service.project_weights import ProjectWeights
from batchline.service.running import Running
from batchline.store.contract import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulingSettings:
    """How much of a model's work projects that would be late get beyond their shares."""

    urgent_share: float = URGENT_SHARE


class Sharing:
    """Owned by the event loop, like the scheduler whose part it is."""

    def __init__(
        self, store: Store, settings: SchedulingSettings, weights: Mapping[str, float]
    ) -> None:
        """`weights` are those of projects, by name; 1 of one that has none there."""
        self.weights = ProjectWeights(store, weights)
        self._shares = Shares(urgent_share=settings.urgent_share)
        self._running: dict[int, Running] = {}  # by the batch's sequence
        self._by_id: dict[BatchId, Running] = {}

    # -- batches and their shards ----------------------------------------------------------

    def begin(self, running: Running, *, weight: float) -> None:
        """The batch runs, and competes with all that waits of it."""
        batch = running.batch
        counts = batch.counts
        self._running[batch.sequence] = self._by_id[batch.id] = running
        self._shares.add(
            Member(
                sequence=batch.sequence,
                project=batch.project_id,
                created_at=batch.created_at,
                expires_at=batch.expires_at,
                lines=counts.total - counts.completed - counts.failed,
            ),
            weight=weight,
        )
        for model in running.pending:
            self._shares.waits(batch.sequence, model)

    def end(self, running: Running) -> None:
        """Nothing more of the batch is handed out; harmless a second time."""
        self._running.pop(running.batch.sequence, None)
        self._by_id.pop(running.batch.id, None)
        self._shares.remove(running.batch.sequence)

    def take(self, running: Running, model: str) -> int:
        """The number of its next shard of `model`, which is held from now on."""
        number = running.take(model, quarantine=False)
        if model not in running.pending:
            self._shares.rests(running.batch.sequence, model)
        return number

    def put_back(self, running: Running, number: int, model: str) -> None:
        """The shard waits again."""
        running.put_back(number, model, quarantine=False)
        self._shares.waits(running.batch.sequence, model)

    # -- whose turn it is ------------------------------------------------------------------

    def choose(
        self, room: Room, *, goes_to: Callable[[Room, str], bool], now: float
    ) -> tuple[Running, str] | None:
        """The batch, and its model, whose shard goes to `room` next."""
        chosen = self._shares.choose(
            room.backend,
            [model for model in self._shares.waiting_models() if goes_to(room, model)],
            now=now,
            beside=None if room.shards else self._beside(room),
        )
        return None if chosen is None else (self._running[chosen[0]], chosen[1])

    def _beside(self, room: Room) -> Mapping[ProjectId, Sequence[int]]:
        """What is open there: by project, the sequence of each shard's batch."""
        beside: dict[ProjectId, list[int]] = {}
        for running in [self._by_id[one] for one in room.open if one in self._by_id]:
            batch = running.batch
            beside.setdefault(batch.project_id, []).append(batch.sequence)
        return beside

    def turn(self, running: Running, model: str, room: Room) -> Turn:
        """The right by which a shard of the batch runs, if it is opened there now."""
        return self._shares.turn(
            running.batch.sequence, model, backend=room.backend, place=room.worker
        )

    # -- what is paid ----------------------------------------------------------------------

    def charge(self, running: Running, shard: Shard, room: Room) -> Charge:
        """The shard runs: its project and its batch pay for it."""
        return self._shares.take(
            running.batch.sequence,
            shard.model,
            backend=room.backend,
            place=room.worker,
            done=shard.completed,
            failed=shard.failed,
            tokens=shard.usage.total_tokens,
            lines=shard.entries - shard.completed - shard.failed,
        )

    def committed(self, charge: Charge, commit: ShardCommit) -> None:
        """The store accepted the commit: what its lines took is known."""
        self._shares.settled(
            charge,
            done=commit.completed,
            failed=commit.failed,
            tokens=commit.usage.total_tokens,
        )

    def returned(self, charge: Charge) -> None:
        """The shard is held no longer: what it did not run is not paid for."""
        self._shares.returned(charge)
