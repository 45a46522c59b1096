"""On whose account validations, ends and checks run: their projects', by weight and size.

Jobs here are run where they are asked for, by a stand-in that keeps the terms.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, cast

import google_crc32c
import pytest

from batchline.domain.ids import DEFAULT_PROJECT, ProjectId
from batchline.domain.job_queue import JobTerms
from batchline.domain.lifecycle import BatchEvent, BatchStatus
from batchline.domain.model import DAY_S, Batch, BlobKind, Purpose
from batchline.service import range_check
from batchline.service.finalizer import Finalizer
from batchline.service.jobs import Jobs
from batchline.service.planning import InputLimits, Planner
from batchline.service.project_weights import ProjectWeights
from batchline.service.range_check import RangeCheck
from batchline.store.blobs import LocalBlobs
from batchline.store.contract import Store
from tests.contract.store_rows import (
    NOW,
    Segment,
    asked_for,
    claimed,
    commits,
    fresh_file,
    moved,
    settling,
)
from tests.support.inputs import MODEL, make_lines


class KeptTerms:
    """Stands for `Jobs`."""

    def __init__(self) -> None:
        self.kept: list[JobTerms] = []

    async def run(
        self,
        function: Callable[[Any], Any],
        job: object,
        *,
        terms: JobTerms,
        during: AbstractContextManager[object] | None = None,
    ) -> Any:
        self.kept.append(terms)
        with during or nullcontext():
            return function(job)

    @property
    def jobs(self) -> Jobs:
        return cast("Jobs", self)


class Models:
    def known(self) -> bool:
        return True

    def models(self) -> list[str]:
        return [MODEL]


@pytest.fixture
def kept() -> KeptTerms:
    return KeptTerms()


def planner_on(store: Store, blobs: LocalBlobs, kept: KeptTerms, **weights: float) -> Planner:
    return Planner(
        store=store,
        blobs=blobs,
        jobs=kept.jobs,
        models=Models(),
        limits=InputLimits(),
        clock=lambda: NOW + 5,
        weights=ProjectWeights(store, weights),
    )


async def batch_of(store: Store, blobs: LocalBlobs, content: bytes, project: ProjectId) -> Batch:
    writer = blobs.writer(BlobKind.INPUT)
    await writer.write(content)
    blob = await writer.finish()
    file = replace(fresh_file(purpose=Purpose.BATCH, size=len(content)), project_id=project)
    await store.create_file(file, blob)
    return await store.create_batch(asked_for(file.id, project_id=project))


async def test_a_validation_counts_by_the_bytes_of_its_file_for_its_project(
    store: Store, blobs: LocalBlobs, kept: KeptTerms, other_project: ProjectId
) -> None:
    planner = planner_on(store, blobs, kept, other=3.0)
    content = make_lines(20)
    batch = await batch_of(store, blobs, content, other_project)
    assert await planner.plan(batch)
    checked = await planner.check(other_project, batch.input_file_id, batch.endpoint)
    assert checked.lines == 20
    mine = await batch_of(store, blobs, make_lines(3), DEFAULT_PROJECT)
    assert await planner.plan(mine)
    theirs = JobTerms(
        project=other_project,
        weight=3.0,
        work=len(content),
        hurried_at=NOW + DAY_S * 0.75,  # the last quarter of its window
    )
    no_window = replace(theirs, hurried_at=float("inf"))
    assert kept.kept[:2] == [theirs, no_window]
    assert (kept.kept[2].project, kept.kept[2].weight) == (DEFAULT_PROJECT, 1.0)


async def test_an_end_is_urgent_and_counts_by_what_is_left_of_its_file(
    store: Store, blobs: LocalBlobs, kept: KeptTerms, other_project: ProjectId
) -> None:
    content = make_lines(2_000)
    batch = await batch_of(store, blobs, content, other_project)
    assert await planner_on(store, blobs, kept).plan(batch)
    shard = await claimed(store, batch, 0)
    done = settling(shard, finished=range(shard.entries), segment=Segment())
    assert await commits(store, done) == [True]
    await moved(store, await store.load_batch(batch.id), BatchEvent.CANCEL_REQUESTED)
    weights = ProjectWeights(store, {"other": 2.0})
    finalizer = Finalizer(store=store, blobs=blobs, jobs=kept.jobs, weights=weights)
    ended = await finalizer.finalize(batch.id)
    assert ended.status is BatchStatus.CANCELLED
    left = 2_000 - shard.entries
    assert 0 < left < 2_000
    assert kept.kept[1] == JobTerms(
        project=other_project, weight=2.0, work=len(content) * left / 2_000, urgent=True
    )


async def test_a_check_of_what_is_committed_is_urgent_and_light(
    store: Store,
    blobs: LocalBlobs,
    kept: KeptTerms,
    other_project: ProjectId,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(range_check, "IN_A_THREAD_BYTES", 0)
    batch = await batch_of(store, blobs, make_lines(10), other_project)
    assert await planner_on(store, blobs, kept).plan(batch)
    segment = Segment()
    one = settling(await claimed(store, batch, 0), finished=[0, 1], segment=segment)
    assert one.output is not None
    size = one.output.stop
    blobs.path(segment.name).write_bytes(bytes(size))
    one = replace(one, output=replace(one.output, crc=google_crc32c.value(bytes(size))))
    assert await commits(store, one) == [True]
    check = RangeCheck(store=store, blobs=blobs, jobs=kept.jobs)
    assert await check.damaged(await store.load_batch(batch.id)) == []
    (_, terms) = kept.kept
    assert (terms.project, terms.weight, terms.urgent) == (other_project, 1.0, True)
    assert 0 < terms.work < size
