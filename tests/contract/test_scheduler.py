"""Who is handed the next shard, with a real store: weights, turns, what is paid and given back."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest

from batchline.domain import plan
from batchline.domain.ids import DEFAULT_PROJECT, BatchId, BlobName, ProjectId, WorkerId
from batchline.domain.lifecycle import BatchEvent
from batchline.domain.model import Batch, BlobKind, ShardKey
from batchline.executor.contract import Executor, Released, Room, ShardWork
from batchline.service.scheduler import Scheduler
from batchline.store.blobs import LocalBlobs
from batchline.store.contract import Store
from tests.contract.store_rows import (
    MODEL,
    NOW,
    asked_for,
    fresh_blob,
    moved,
    planned,
    settling,
    uploaded,
)

ENTRIES = 10


class OneModel:
    """`all_of_it` list it."""

    def __init__(self) -> None:
        self.all_of_it = ["b"]
        self.ever = True  # somebody has listed it since the start
        self.is_known = True

    def backends_for(self, model: str) -> Sequence[str]:
        return self.all_of_it if model == MODEL else []

    def lists(self, backend: str, model: str) -> bool:
        return backend in self.all_of_it and model == MODEL

    def name_at_backends(self, model: str) -> str:
        return model

    def known(self) -> bool:
        return self.is_known

    def has_listed(self, model: str) -> bool:
        return self.ever and model == MODEL


@dataclass
class Places:
    """The executor as far as the scheduler sees it while it hands out; one worker, `w`.

    `shards` and `others` are the room that is left, `open` what is there. A worker that is `gone`
    takes nothing.
    """

    shards: int = 0
    others: int = 0
    open: list[BatchId] = field(default_factory=list)
    gone: bool = False
    given: list[ShardWork] = field(default_factory=list)
    away: Sequence[str] = ()
    served: list[tuple[str, list[str], list[str]]] = field(default_factory=list)

    def rooms(self) -> Sequence[Room]:
        if not self.shards and not self.others:
            return []
        return [
            Room(
                worker=W,
                backend="b",
                shards=self.shards,
                others=self.others,
                open=self.open,
                away=self.away,
            )
        ]

    def open_shard(self, worker: WorkerId, work: ShardWork) -> bool:
        assert worker == W
        if self.gone:
            self.shards = self.others = 0
            return False
        self.given.append(work)
        if self.shards:
            self.shards -= 1
        else:
            self.others -= 1
            self.open.append(work.shard.key.batch_id)
        return True

    def serve(self, model: str, backends: Sequence[str], listed_by: Sequence[str]) -> None:
        self.served.append((model, list(backends), list(listed_by)))

    def set_quarantine(self, wanted: bool) -> None:
        assert not wanted

    def whose(self) -> list[BatchId]:
        return [work.shard.key.batch_id for work in self.given]


W = WorkerId("w")


@dataclass
class Rig:
    store: Store
    places: Places
    scheduler: Scheduler
    models: OneModel

    async def batch(self, *, project_id: ProjectId = DEFAULT_PROJECT, shards: int = 100) -> BatchId:
        """A batch that runs, known to the scheduler."""
        batch = await in_progress(self.store, project_id=project_id, shards=shards)
        await self.scheduler.activate(batch)
        return batch.id

    async def hand_out(self, shards: int, *, others: int = 0) -> list[BatchId]:
        """Whose shards go to a worker that has such room."""
        before = len(self.places.given)
        self.places.shards, self.places.others = shards, others
        await self.scheduler._fill()  # what `run` does whenever it hears of room
        return self.places.whose()[before:]

    async def run(self, work: ShardWork, *, tokens: int) -> None:
        """The shard runs to its end."""
        commit = settling(work.shard, finished=range(ENTRIES), tokens=tokens)
        assert await self.scheduler.on_commit(W, [commit]) == [True]
        await self.let_go(work, settled=True)

    async def let_go(self, work: ShardWork, *, settled: bool) -> None:
        key, epoch = work.shard.key, work.shard.epoch
        await self.scheduler.on_released(W, Released(key=key, epoch=epoch, settled=settled))


async def in_progress(store: Store, *, project_id: ProjectId, shards: int) -> Batch:
    file, _ = await uploaded(store, project_id=project_id)
    batch = await store.create_batch(asked_for(file.id, project_id=project_id))
    assert await store.start_batch(
        batch.id,
        plan=fresh_blob(BlobKind.PLAN),
        shards=planned(shards, ENTRIES),
        lines=shards * ENTRIES,
        model=MODEL,
        now=NOW + 1,
    )
    return await store.load_batch(batch.id)


@pytest.fixture
def rig(store: Store, blobs: LocalBlobs) -> Callable[..., Rig]:
    """A scheduler that has just started, on the store as it is."""

    def make(weights: Mapping[str, float] | None = None) -> Rig:
        places, models = Places(), OneModel()
        scheduler = Scheduler(
            store,
            blobs,
            cast("Executor", places),
            models,
            weights=weights,
            clock=lambda: float(NOW),
        )
        return Rig(store, places, scheduler, models)

    return make


async def test_projects_get_shards_by_the_weight_of_their_name(
    rig: Callable[..., Rig], other_project: ProjectId
) -> None:
    it = rig({"other": 3.0})
    light = await it.batch()
    heavy = await it.batch(project_id=other_project)
    assert Counter(await it.hand_out(40)) == {heavy: 30, light: 10}
    assert {work.turn.weight for work in it.places.given} == {1.0, 3.0}


async def test_a_name_without_a_weight_has_weight_one(
    rig: Callable[..., Rig], other_project: ProjectId
) -> None:
    it = rig({"nobody": 9.0})
    one, two = await it.batch(), await it.batch(project_id=other_project)
    assert Counter(await it.hand_out(10)) == {one: 5, two: 5}


async def test_tokens_that_commits_tell_are_what_is_shared(
    rig: Callable[..., Rig], other_project: ProjectId
) -> None:
    it = rig()
    long = await it.batch()
    await it.batch(project_id=other_project)
    for _ in range(40):
        await it.hand_out(1)
        work = it.places.given[-1]
        await it.run(work, tokens=300 if work.shard.key.batch_id == long else 100)
    served = Counter(it.places.whose())
    assert 2.5 < (40 - served[long]) / served[long] < 3.5


async def test_what_came_back_is_not_paid_for(
    rig: Callable[..., Rig], other_project: ProjectId
) -> None:
    it = rig()
    first = await it.batch()
    second = await it.batch(project_id=other_project)
    assert await it.hand_out(2) == [first, second]
    await it.let_go(it.places.given[0], settled=False)
    assert await it.hand_out(2) == [first, first]  # had it paid, the second would be next but one


async def test_what_a_dead_worker_held_is_not_paid_for(
    rig: Callable[..., Rig], other_project: ProjectId
) -> None:
    it = rig()
    first = await it.batch()
    second = await it.batch(project_id=other_project)
    assert await it.hand_out(2) == [first, second]
    lost = it.places.given[0].shard.key
    await it.scheduler.on_lost(W, [lost], under_way={})
    assert await it.hand_out(2) == [first, first]


async def test_a_shard_that_a_worker_did_not_take_is_not_paid_for_and_waits_again(
    rig: Callable[..., Rig],
) -> None:
    it = rig()
    only = await it.batch(shards=1)
    it.places.gone = True
    assert await it.hand_out(1) == []
    it.places.gone = False
    assert await it.hand_out(2) == [only]


async def test_a_full_worker_takes_what_belongs_beside_what_it_has(
    rig: Callable[..., Rig], other_project: ProjectId
) -> None:
    """At once, however much of a huge batch waits: that is what lets small batches end soon."""
    it = rig()
    huge = await it.batch()
    it.places.open = [huge, huge]
    assert await it.hand_out(0, others=10) == []
    small = await it.batch(shards=1)
    theirs = await it.batch(project_id=other_project, shards=1)
    assert sorted(await it.hand_out(0, others=10)) == sorted([small, theirs])


async def test_a_stopped_batch_is_handed_out_no_more_and_the_others_are(
    rig: Callable[..., Rig],
) -> None:
    it = rig()
    stopped, other = await it.batch(), await it.batch()
    assert await it.hand_out(2) == [stopped, other]
    it.scheduler.stop(stopped)
    await it.let_go(it.places.given[0], settled=False)
    assert await it.hand_out(3) == [other] * 3
    it.scheduler.deactivate(stopped)
    it.scheduler.deactivate(other)
    assert await it.hand_out(3) == []


async def test_a_batch_whose_gate_closed_unheard_takes_nobodys_turn(
    rig: Callable[..., Rig],
) -> None:
    it = rig()
    gone, other = await it.batch(), await it.batch()
    await moved(it.store, await it.store.load_batch(gone), BatchEvent.CANCEL_REQUESTED)
    assert await it.hand_out(3) == [other] * 3


async def test_after_a_start_shares_begin_anew_and_nobody_starves(
    rig: Callable[..., Rig], other_project: ProjectId
) -> None:
    """Whoever had much before the start, or little: nothing of it is owed to anybody."""
    it = rig()
    busy = await it.batch(shards=40)
    for work_number in range(20):
        await it.hand_out(1)
        await it.run(it.places.given[work_number], tokens=100)
    again = rig()
    await again.scheduler.activate(await it.store.load_batch(busy))
    fresh = await again.batch(project_id=other_project, shards=40)
    assert Counter(await again.hand_out(20)) == {busy: 10, fresh: 10}
    assert ShardKey(batch_id=busy, number=0) not in {w.shard.key for w in again.places.given}


# -- models that come and go -----------------------------------------------------------------------


async def test_a_shard_of_a_model_that_is_away_is_given_to_nobody_until_it_is_back(
    rig: Callable[..., Rig],
) -> None:
    """It would only wait there, in the place of others."""
    it = rig()
    only = await it.batch()
    it.places.away = (MODEL,)
    assert await it.hand_out(2) == []
    it.places.away = ("another",)
    assert await it.hand_out(2) == [only, only]


async def test_what_is_held_is_told_of_a_backend_that_lists_its_model_later(
    rig: Callable[..., Rig],
) -> None:
    it = rig()
    await it.batch()
    it.scheduler.on_catalogue()
    assert it.places.served == []  # nothing is held
    await it.hand_out(3)
    it.models.all_of_it = ["b", "late"]
    it.scheduler.on_catalogue()
    assert it.places.served == [(MODEL, ["b", "late"], ["b", "late"])]
    await it.hand_out(1)
    assert it.places.given[-1].backends == ["b", "late"]


async def unchecked(it: Rig, blobs: LocalBlobs, *, shards: int = 3) -> BatchId:
    """A running batch whose file was read while not all catalogues were known."""
    batch = await in_progress(it.store, project_id=DEFAULT_PROJECT, shards=shards)
    path = Path(blobs.path(BlobName(batch.plan_blob or "")))
    path.parent.mkdir(parents=True, exist_ok=True)
    await asyncio.to_thread(path.write_bytes, plan.header(models_known=False))
    await it.scheduler.activate(batch)
    return batch.id


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_model_that_nobody_lists_any_more_is_waited_for(
    rig: Callable[..., Rig], restarted: bool
) -> None:
    """If this fails, lines that were accepted fail because a catalogue was read a moment later."""
    it = rig()
    it.models.all_of_it = []
    it.models.ever = not restarted
    only = await it.batch()
    assert await it.hand_out(2) == []
    it.models.all_of_it = ["b"]
    it.models.ever = True
    assert await it.hand_out(2) == [only, only]
    assert {work.refuse for work in it.places.given} == {None}


async def test_lines_of_a_model_that_nobody_has_ever_listed_fail_once_that_is_known(
    rig: Callable[..., Rig], blobs: LocalBlobs, other_project: ProjectId
) -> None:
    it = rig()
    it.models.all_of_it, it.models.ever, it.models.is_known = [], False, False
    waits = await it.batch(project_id=other_project)
    fails = await unchecked(it, blobs)
    assert await it.hand_out(2) == []
    it.models.is_known = True
    assert await it.hand_out(10) == [fails] * 3
    assert {work.refuse for work in it.places.given} == {"model_not_found"}
    for work in it.places.given:
        await it.run(work, tokens=0)
    it.scheduler.deactivate(fails)
    it.models.all_of_it = ["b"]
    assert await it.hand_out(1) == [waits]


async def test_lines_wait_for_a_model_that_was_listed_since_the_start_whoever_checked(
    rig: Callable[..., Rig], blobs: LocalBlobs
) -> None:
    it = rig()
    it.models.all_of_it = []
    fails = await unchecked(it, blobs)
    assert await it.hand_out(2) == []
    it.models.all_of_it = ["b"]
    assert await it.hand_out(2) == [fails] * 2


async def test_a_model_that_was_known_is_missed_and_not_refused_by_who_lists_nothing(
    rig: Callable[..., Rig], blobs: LocalBlobs
) -> None:
    """One whose catalogue is not known is sent its lines, and its 404 is no answer to them."""
    it = rig()
    it.models.lists = lambda *_: False  # type: ignore[method-assign]
    it.models.ever = False
    known = await it.batch(shards=1)
    assert await it.hand_out(1) == [known]
    not_known = await unchecked(it, blobs, shards=1)
    assert await it.hand_out(1) == [not_known]
    assert [work.listed_by for work in it.places.given] == [["b"], []]
