"""From `validating` to `in_progress` or `failed`: real files, real children, both databases."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from batchline import telemetry
from batchline.domain import ids
from batchline.domain.errors import StoreUnavailable
from batchline.domain.ids import DEFAULT_PROJECT, FileId, ProjectId
from batchline.domain.lifecycle import BatchEvent, BatchStatus
from batchline.domain.model import (
    Batch,
    BlobKind,
    Endpoint,
    File,
    LineProblem,
    PlannedShard,
    Purpose,
)
from batchline.service import planning
from batchline.service.jobs import Jobs
from batchline.service.planning import InputLimits, Planner
from batchline.service.plans import unfinished
from batchline.service.tries import Tries
from batchline.store.blobs import LocalBlobs
from batchline.store.contract import Store
from batchline.store.database import Database
from tests.contract.store_rows import (
    NOW,
    asked_for,
    claimed,
    commits,
    finalized,
    fresh_file,
    let_go,
    moved,
    settling,
    started,
    uploaded,
    validating,
)
from tests.support.inputs import MODEL, make_lines
from tests.support.small_disk import fill

pytestmark = pytest.mark.usefixtures("forked_workers")

LIMIT_S = 30.0

INTERNAL = LineProblem(
    code="server_error", message="The input file could not be validated because of a server error."
)


@dataclass(frozen=True)
class Catalogue:
    """What backends serve; None: one has not answered yet."""

    names: Sequence[str] | None

    def known(self) -> bool:
        return self.names is not None

    def models(self) -> Sequence[str]:
        return ["what another backend has"] if self.names is None else self.names


@pytest.fixture(scope="module")
async def shared_jobs(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Jobs]:
    """One warm child for the tests that end none."""
    jobs = Jobs(tmp_path_factory.mktemp("children"))
    yield jobs
    await jobs.close()


@pytest.fixture
async def jobs(tmp_path: Path) -> AsyncIterator[Jobs]:
    """Children for tests that arm or end them."""
    children = tmp_path / "children"
    children.mkdir()
    jobs = Jobs(children)
    with anyio.fail_after(LIMIT_S):
        yield jobs
    await jobs.close()


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    telemetry.arm("")


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "RETRY_S", 0.001)


def planner_on(
    store: Store,
    blobs: LocalBlobs,
    jobs: Jobs,
    *,
    models: Sequence[str] | None = None,
    **limits: Any,
) -> Planner:
    return Planner(
        store=store,
        blobs=blobs,
        jobs=jobs,
        models=Catalogue(models),
        limits=InputLimits(**limits),
        clock=lambda: NOW + 5,
    )


async def batch_of(
    store: Store,
    blobs: LocalBlobs,
    content: bytes,
    *,
    purpose: Purpose = Purpose.BATCH,
    endpoint: str = Endpoint.CHAT_COMPLETIONS,
    skip_invalid: bool = False,
) -> Batch:
    """A batch in `validating` over an uploaded file."""
    writer = blobs.writer(BlobKind.INPUT)
    await writer.write(content)
    blob = await writer.finish()
    file = fresh_file(purpose=purpose, size=len(content))
    await store.create_file(file, blob)
    return await store.create_batch(
        replace(asked_for(file.id), endpoint=endpoint, skip_invalid=skip_invalid)
    )


def left_on_disk(blobs: LocalBlobs) -> list[str]:
    """The names of all files of the blob store but inputs, unfinished ones included."""
    root = blobs.segment_directory().parent
    return [
        str(path.relative_to(root))
        for path in root.rglob("*")
        if path.is_file() and not path.name.startswith("input-")
    ]


async def waiting(store: Store, batch: Batch) -> list[tuple[int, str]]:
    return [(shard.number, shard.model) for shard in await store.pending_shards(batch.id)]


async def assert_refused(
    store: Store, blobs: LocalBlobs, batch: Batch, problems: Sequence[LineProblem]
) -> None:
    """The batch failed with `problems`, nothing was sent, and nothing of it is kept."""
    after = await store.load_batch(batch.id)
    assert (after.status, after.failed_at) == (BatchStatus.FAILED, NOW + 5)
    assert after.errors == problems
    assert (after.counts.total, after.in_progress_at, after.plan_blob) == (0, None, None)
    assert await waiting(store, batch) == []
    assert left_on_disk(blobs) == []


async def assert_started(store: Store, blobs: LocalBlobs, batch: Batch, *, lines: int) -> Batch:
    """The batch is in progress, and its plan is all that was added to the disk."""
    after = await store.load_batch(batch.id)
    assert after.status is BatchStatus.IN_PROGRESS
    assert (after.counts.total, after.errors) == (lines, None)
    assert after.plan_blob is not None
    assert left_on_disk(blobs) == [f"plan/{after.plan_blob}"]
    return after


async def stopped_child() -> int:
    """Wait until a child of ours stopped itself; its process id."""
    found = await asyncio.to_thread(os.waitid, os.P_ALL, 0, os.WSTOPPED)
    assert found is not None
    return found.si_pid


# -- started ---------------------------------------------------------------------------------------


async def test_a_good_file_starts_its_batch(
    store: Database, blobs: LocalBlobs, shared_jobs: Jobs
) -> None:
    batch = await batch_of(store, blobs, make_lines(1_001, blank_every=7))
    assert await planner_on(store, blobs, shared_jobs, models=[MODEL]).plan(batch)
    after = await assert_started(store, blobs, batch, lines=1_001)
    assert (after.model, after.in_progress_at) == (MODEL, NOW + 5)
    assert await waiting(store, batch) == [(0, MODEL), (1, MODEL)]
    assert await store.unreferenced_blobs(limit=10) == []


async def test_a_file_that_was_deleted_since_the_create_is_still_used(
    store: Database, blobs: LocalBlobs, shared_jobs: Jobs
) -> None:
    batch = await batch_of(store, blobs, make_lines(2))
    assert await store.delete_file(DEFAULT_PROJECT, batch.input_file_id, now=NOW)
    assert await planner_on(store, blobs, shared_jobs).plan(batch)
    await assert_started(store, blobs, batch, lines=2)


async def test_limits_can_be_lifted(store: Database, blobs: LocalBlobs, shared_jobs: Jobs) -> None:
    planner = planner_on(
        store,
        blobs,
        shared_jobs,
        max_file_bytes=None,
        max_lines=None,
        max_line_bytes=None,
        max_embedding_inputs=None,
    )
    batch = await batch_of(store, blobs, make_lines(5))
    assert await planner.plan(batch)
    await assert_started(store, blobs, batch, lines=5)


@pytest.mark.rule("V15")
async def test_a_model_is_taken_as_long_as_a_catalogue_is_not_known(
    store: Database, blobs: LocalBlobs, shared_jobs: Jobs
) -> None:
    batch = await batch_of(store, blobs, make_lines(2, model="unheard of"))
    assert await planner_on(store, blobs, shared_jobs, models=None).plan(batch)
    await assert_started(store, blobs, batch, lines=2)


MIXED = make_lines(2, model="one") + make_lines(2, model="two", start=2)


@pytest.mark.rule("V16")
async def test_several_models_are_taken_where_a_setting_allows_it(
    store: Database, blobs: LocalBlobs, shared_jobs: Jobs
) -> None:
    batch = await batch_of(store, blobs, MIXED)
    planner = planner_on(store, blobs, shared_jobs, models=["one", "two"], allow_mixed_models=True)
    assert await planner.plan(batch)
    assert (await assert_started(store, blobs, batch, lines=4)).model is None
    assert await waiting(store, batch) == [(0, "one"), (1, "two")]


# -- refused ---------------------------------------------------------------------------------------


SOME_BAD = make_lines(2) + b"{\n" + make_lines(1) + b"7\n"


async def error_lines(store: Store, blobs: LocalBlobs, batch: Batch) -> list[tuple[int, str]]:
    """Line and code of each line of a batch's error file."""
    assert batch.error_file_id is not None
    ranges = await store.file_ranges(batch.error_file_id)
    content = b"".join([chunk async for chunk in blobs.read(ranges, chunk_bytes=65_536)])
    errors = [json.loads(line)["error"] for line in content.splitlines()]
    return [(error["line"], error["code"]) for error in errors]


@pytest.mark.rule("X4")
async def test_bad_lines_are_left_out_where_the_creator_says_so(
    store: Database, blobs: LocalBlobs, shared_jobs: Jobs
) -> None:
    batch = await batch_of(store, blobs, SOME_BAD, skip_invalid=True)
    assert batch.skip_invalid
    assert await planner_on(store, blobs, shared_jobs).plan(batch)
    after = await store.load_batch(batch.id)
    assert (after.status, after.errors) == (BatchStatus.IN_PROGRESS, None)
    assert (after.counts.total, after.counts.completed, after.counts.failed) == (5, 0, 3)
    assert len(left_on_disk(blobs)) == 2
    shard = await claimed(store, batch)
    await commits(store, settling(shard, finished=range(2)))
    ended = await finalized(store, await moved(store, after, BatchEvent.ALL_LINES_FINISHED))
    assert (ended.counts.completed, ended.counts.failed) == (2, 3)
    assert await error_lines(store, blobs, ended) == [
        (3, "invalid_json_line"),
        (5, "invalid_request"),
        (4, "duplicate_custom_id"),
    ]
    unused = {blob.kind for blob in await store.unreferenced_blobs(limit=10)}
    assert unused == {BlobKind.PLAN}


@pytest.mark.rule("X4")
async def test_a_file_without_a_good_line_fails_its_batch_all_the_same(
    store: Database, blobs: LocalBlobs, shared_jobs: Jobs
) -> None:
    batch = await batch_of(store, blobs, b"{\n", skip_invalid=True)
    assert await planner_on(store, blobs, shared_jobs).plan(batch)
    after = await store.load_batch(batch.id)
    assert after.errors is not None
    await assert_refused(store, blobs, batch, after.errors)
    assert [problem.code for problem in after.errors] == ["invalid_json_line"]


def not_found(file_id: FileId, project_id: ProjectId = DEFAULT_PROJECT) -> LineProblem:
    return LineProblem(
        code="invalid_request",
        message=(
            f"Cannot find file {file_id}, or organization {project_id} does not have access to it."
        ),
        param="file_id",
    )


@pytest.mark.rule("V1")
async def test_a_file_that_does_not_exist_is_not_found(
    store: Database, blobs: LocalBlobs, shared_jobs: Jobs
) -> None:
    file_id = ids.file_id(bytes(12))
    batch = await store.create_batch(asked_for(file_id))
    assert await planner_on(store, blobs, shared_jobs).plan(batch)
    await assert_refused(store, blobs, batch, [not_found(file_id)])


@pytest.mark.rule("V1")
async def test_a_file_of_another_project_is_not_found(
    store: Database, blobs: LocalBlobs, shared_jobs: Jobs, other_project: ProjectId
) -> None:
    file, _ = await uploaded(store, project_id=other_project)
    batch = await store.create_batch(asked_for(file.id))
    assert await planner_on(store, blobs, shared_jobs).plan(batch)
    await assert_refused(store, blobs, batch, [not_found(file.id)])


@pytest.mark.rule("V1")
async def test_a_file_that_was_deleted_before_the_create_is_not_found(
    store: Database, blobs: LocalBlobs, shared_jobs: Jobs
) -> None:
    file, _ = await uploaded(store)
    assert await store.delete_file(DEFAULT_PROJECT, file.id, now=NOW)
    batch = await store.create_batch(asked_for(file.id))
    assert await planner_on(store, blobs, shared_jobs).plan(batch)
    await assert_refused(store, blobs, batch, [not_found(file.id)])


def wrong_purpose(file_id: FileId, purpose: Purpose) -> LineProblem:
    return LineProblem(
        code="invalid_request",
        message=(
            f"File {file_id} has purpose '{purpose.value}'; a batch needs a file that was uploaded "
            "with purpose 'batch'."
        ),
        param="file_id",
    )


@pytest.mark.rule("V2")
@pytest.mark.parametrize("purpose", sorted(set(Purpose) - {Purpose.BATCH}))
async def test_a_file_for_another_purpose_is_refused(
    store: Database, blobs: LocalBlobs, shared_jobs: Jobs, purpose: Purpose
) -> None:
    batch = await batch_of(store, blobs, make_lines(1), purpose=purpose)
    assert await planner_on(store, blobs, shared_jobs).plan(batch)
    await assert_refused(store, blobs, batch, [wrong_purpose(batch.input_file_id, purpose)])


async def output_of_two_ranges(store: Store) -> File:
    batch = await started(store, shards=2)
    for number in range(2):
        shard = await claimed(store, batch, number)
        assert await commits(store, settling(shard, finished=range(10))) == [True]
    ended = await finalized(store, await moved(store, batch, BatchEvent.ALL_LINES_FINISHED))
    assert ended.output_file_id is not None
    file = await store.get_file(DEFAULT_PROJECT, ended.output_file_id, now=NOW)
    assert file is not None
    return file


@pytest.mark.rule("V2")
async def test_the_output_of_a_batch_is_refused_for_its_purpose(
    store: Database, blobs: LocalBlobs, shared_jobs: Jobs
) -> None:
    """It exists and is the project's own: "cannot find" would send the caller looking."""
    file = await output_of_two_ranges(store)
    batch = await store.create_batch(asked_for(file.id))
    assert await planner_on(store, blobs, shared_jobs).plan(batch)
    await assert_refused(store, blobs, batch, [wrong_purpose(file.id, Purpose.BATCH_OUTPUT)])


TWO_INPUTS = json.dumps(
    {
        "custom_id": "a",
        "method": "POST",
        "url": Endpoint.EMBEDDINGS,
        "body": {"model": MODEL, "input": ["x", "y"]},
    }
).encode()


@pytest.mark.parametrize(
    ("content", "limits", "expected"),
    [
        pytest.param(b"\n \n", {}, [(None, "empty_file", None)], marks=pytest.mark.rule("V3")),
        pytest.param(
            make_lines(2),
            {"max_file_bytes": 100},
            [(None, "file_too_large", None)],
            marks=pytest.mark.rule("V4"),
        ),
        pytest.param(
            make_lines(3),
            {"max_lines": 2},
            [(None, "too_many_tasks", None)],
            marks=pytest.mark.rule("V5"),
        ),
        pytest.param(
            make_lines(2) + make_lines(1),
            {},
            [(3, "duplicate_custom_id", "custom_id")],
            marks=pytest.mark.rule("V12"),
        ),
        pytest.param(
            make_lines(2, model="unheard of"),
            {},
            [(1, "model_not_found", "body.model"), (2, "model_not_found", "body.model")],
            marks=pytest.mark.rule("V15"),
        ),
        pytest.param(
            MIXED,
            {"models": ["one", "two"]},
            [(3, "mismatched_model", "body.model"), (4, "mismatched_model", "body.model")],
            marks=pytest.mark.rule("V16"),
        ),
        pytest.param(
            TWO_INPUTS,
            {"max_embedding_inputs": 1, "endpoint": Endpoint.EMBEDDINGS},
            [(None, "invalid_request", "body.input")],
            marks=pytest.mark.rule("V20"),
        ),
        pytest.param(
            b"\n{\n" + make_lines(1) + b"[]\n" + b"x" * 1_000,
            {"max_line_bytes": 500},
            [
                (2, "invalid_json_line", None),
                (4, "invalid_request", None),
                (5, "invalid_request", None),
            ],
            id="bad lines",
        ),
        pytest.param(
            b"{\n" * 10,
            {"max_problems": 3},
            [(number, "invalid_json_line", None) for number in (1, 2, 3)],
            id="many bad lines",
        ),
    ],
)
async def test_a_bad_file_fails_its_batch_with_all_problems(
    store: Database,
    blobs: LocalBlobs,
    shared_jobs: Jobs,
    content: bytes,
    limits: dict[str, Any],
    expected: list[tuple[int | None, str, str | None]],
) -> None:
    settings = {"models": [MODEL], "endpoint": Endpoint.CHAT_COMPLETIONS, **limits}
    batch = await batch_of(store, blobs, content, endpoint=settings.pop("endpoint"))
    assert await planner_on(store, blobs, shared_jobs, **settings).plan(batch)
    errors = (await store.load_batch(batch.id)).errors or []
    assert [(error.line_number, error.code, error.param) for error in errors] == expected
    await assert_refused(store, blobs, batch, errors)
    assert [blob.name for blob in await store.unreferenced_blobs(limit=10)] == []


async def test_a_refused_batch_gives_its_input_back(
    store: Database, blobs: LocalBlobs, shared_jobs: Jobs
) -> None:
    batch = await batch_of(store, blobs, b"{\n")
    assert await planner_on(store, blobs, shared_jobs).plan(batch)
    assert await store.delete_file(DEFAULT_PROJECT, batch.input_file_id, now=NOW)
    await let_go(store)
    assert [blob.name for blob in await store.unreferenced_blobs(limit=10)] == [batch.input_blob]


@pytest.mark.rule("V21")
@pytest.mark.parametrize("loss", ["gone", "short", "changed", "changed line"])
async def test_a_file_whose_bytes_were_lost_fails_its_batch_as_our_fault(
    store: Database, blobs: LocalBlobs, shared_jobs: Jobs, loss: str
) -> None:
    batch = await batch_of(store, blobs, make_lines(2))
    assert batch.input_blob is not None
    path = blobs.path(batch.input_blob)
    if loss == "gone":
        await blobs.delete([batch.input_blob])
    elif loss == "short":
        os.truncate(path, batch.input_bytes - 1)
    else:  # a text of the prompt, or what makes the line one: that is no fault of the file's either
        old, new = (b"[[id", b"[[ie") if loss == "changed" else (b"custom_id", b"custom_ie")
        path.write_bytes(path.read_bytes().replace(old, new, 1))
    planner = planner_on(store, blobs, shared_jobs)
    assert await planner.plan(batch)
    assert planner.alarms.damaged == 1
    await assert_refused(store, blobs, batch, [INTERNAL])


# -- trouble ---------------------------------------------------------------------------------------


async def test_a_file_that_kills_every_child_fails_its_batch(
    store: Database, blobs: LocalBlobs, jobs: Jobs
) -> None:
    telemetry.arm("plan.synced=kill")
    batch = await batch_of(store, blobs, make_lines(2))
    assert await planner_on(store, blobs, jobs).plan(batch)
    await assert_refused(store, blobs, batch, [INTERNAL])


async def test_a_child_that_dies_is_replaced(
    store: Database, blobs: LocalBlobs, jobs: Jobs
) -> None:
    telemetry.arm("plan.synced=kill")
    await jobs.warm()
    telemetry.arm("")  # for the next child
    batch = await batch_of(store, blobs, make_lines(2))
    assert await planner_on(store, blobs, jobs).plan(batch)
    await assert_started(store, blobs, batch, lines=2)


async def test_a_fault_of_ours_fails_the_batch_instead_of_going_round(
    store: Database, blobs: LocalBlobs, jobs: Jobs
) -> None:
    batch = await batch_of(store, blobs, make_lines(2))
    blobs.scratch().parent.rmdir()  # it has been there since the start
    assert await planner_on(store, blobs, jobs).plan(batch)
    await assert_refused(store, blobs, batch, [INTERNAL])


async def test_a_disk_that_fails_delays_and_fails_nothing(
    store: Database, blobs: LocalBlobs, jobs: Jobs
) -> None:
    telemetry.arm("plan.synced=eio")
    batch = await batch_of(store, blobs, make_lines(2))
    planner = planner_on(store, blobs, jobs)
    with pytest.raises(StoreUnavailable, match="no scratch file can be written"):
        await planner.plan(batch)
    assert (await store.load_batch(batch.id)).status is BatchStatus.VALIDATING
    assert left_on_disk(blobs) == []
    assert await planner.plan(batch)
    await assert_started(store, blobs, batch, lines=2)


async def test_a_full_disk_delays_and_fails_nothing(
    store: Database, shared_jobs: Jobs, small_disk: Path
) -> None:
    blobs = LocalBlobs(small_disk / "blobs")
    batch = await batch_of(store, blobs, make_lines(1_000))
    ballast = small_disk / "ballast"
    fill(ballast)
    planner = planner_on(store, blobs, shared_jobs)
    assert not await planner.plan(batch)
    assert (await store.load_batch(batch.id)).status is BatchStatus.VALIDATING
    assert left_on_disk(blobs) == []
    ballast.unlink()
    assert await planner.plan(batch)
    await assert_started(store, blobs, batch, lines=1_000)


@pytest.mark.parametrize("error", ["eio", "enospc"])
async def test_a_database_that_takes_no_batch_leaves_nothing_on_disk(
    store: Database, blobs: LocalBlobs, shared_jobs: Jobs, error: str
) -> None:
    batch = await batch_of(store, blobs, make_lines(2))
    planner = planner_on(store, blobs, shared_jobs)
    telemetry.arm(f"batch.start.before={error}")
    if error == "enospc":
        assert not await planner.plan(batch)
    else:
        with pytest.raises(StoreUnavailable):
            await planner.plan(batch)
    assert (await store.load_batch(batch.id)).status is BatchStatus.VALIDATING
    assert left_on_disk(blobs) == []
    assert await planner.plan(batch)
    await assert_started(store, blobs, batch, lines=2)


async def test_a_batch_whose_start_was_committed_and_not_answered_keeps_its_plan(
    store: Database, blobs: LocalBlobs, shared_jobs: Jobs
) -> None:
    """The connection may break between the commit and its answer."""
    batch = await batch_of(store, blobs, make_lines(2))
    telemetry.arm("batch.start.after=eio")
    with pytest.raises(StoreUnavailable):
        await planner_on(store, blobs, shared_jobs).plan(batch)
    await assert_started(store, blobs, batch, lines=2)


@pytest.mark.parametrize(
    ("probe", "kept"), [("batch.start.after=eio", 2), ("batch.start.inside=eio", 0)]
)
async def test_error_lines_of_lines_left_out_stay_with_the_plan_or_go_with_it(
    store: Database, blobs: LocalBlobs, shared_jobs: Jobs, probe: str, kept: int
) -> None:
    batch = await batch_of(store, blobs, SOME_BAD, skip_invalid=True)
    telemetry.arm(probe)
    with pytest.raises(StoreUnavailable):
        await planner_on(store, blobs, shared_jobs).plan(batch)
    assert len(left_on_disk(blobs)) == kept
    status = BatchStatus.IN_PROGRESS if kept else BatchStatus.VALIDATING
    assert (await store.load_batch(batch.id)).status is status


# -- cancels ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("executed_workers")
async def test_a_cancel_in_the_middle_leaves_no_child_and_no_bytes(
    store: Database, blobs: LocalBlobs, jobs: Jobs
) -> None:
    telemetry.arm("plan.synced=stop")
    await jobs.warm()
    batch = await batch_of(store, blobs, MIXED)
    task = asyncio.create_task(planner_on(store, blobs, jobs, allow_mixed_models=True).plan(batch))
    pid = await stopped_child()
    (plan,) = left_on_disk(blobs)
    unfinished(
        blobs.segment_directory().parent / plan
    ).touch()  # as of a child that was killed while it wrote the plan anew
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert (await store.load_batch(batch.id)).status is BatchStatus.VALIDATING
    assert left_on_disk(blobs) == []


@pytest.mark.usefixtures("executed_workers")
@pytest.mark.parametrize("content", [make_lines(2), SOME_BAD])
async def test_a_batch_that_moved_on_meanwhile_is_not_started(
    store: Database, blobs: LocalBlobs, jobs: Jobs, content: bytes
) -> None:
    telemetry.arm("plan.synced=stop")
    await jobs.warm()
    batch = await batch_of(store, blobs, content, skip_invalid=True)
    task = asyncio.create_task(planner_on(store, blobs, jobs).plan(batch))
    pid = await stopped_child()
    await moved(store, batch, BatchEvent.CANCEL_REQUESTED)
    os.kill(pid, signal.SIGCONT)
    assert not await task
    assert (await store.load_batch(batch.id)).status is BatchStatus.CANCELLING
    assert await waiting(store, batch) == []
    assert left_on_disk(blobs) == []


async def test_a_batch_that_moved_on_meanwhile_is_not_refused(
    store: Database, blobs: LocalBlobs, shared_jobs: Jobs
) -> None:
    batch = await validating(store)
    await moved(store, batch, BatchEvent.CANCEL_REQUESTED)
    assert not await planner_on(store, blobs, shared_jobs).plan(batch)
    after = await store.load_batch(batch.id)
    assert (after.status, after.errors) == (BatchStatus.CANCELLING, None)


class Held:
    """A store whose `start_batch` waits before it does anything."""

    def __init__(self, store: Database, patch: pytest.MonkeyPatch) -> None:
        self._start = store.start_batch
        self.reached = asyncio.Event()
        self.let_go = asyncio.Event()
        patch.setattr(store, "start_batch", self._held)

    async def _held(self, batch_id: ids.BatchId, **values: Any) -> bool:
        self.reached.set()
        await self.let_go.wait()
        return await self._start(batch_id, **values)


async def test_a_cancel_while_a_batch_is_started_leaves_nothing_that_stays(
    store: Database, blobs: LocalBlobs, shared_jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan may be left on disk, but the store knows nothing of it: the next start sweeps it."""
    batch = await batch_of(store, blobs, make_lines(2))
    held = Held(store, monkeypatch)
    task = asyncio.create_task(planner_on(store, blobs, shared_jobs).plan(batch))
    await held.reached.wait()
    await moved(store, batch, BatchEvent.CANCEL_REQUESTED)
    task.cancel()
    held.let_go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await store.load_batch(batch.id)).plan_blob is None
    stored = [name async for group in blobs.stored() for name in group]
    assert await store.known_blobs(stored) == {batch.input_blob}


async def test_shards_of_a_started_batch_are_those_of_its_plan(
    store: Database, blobs: LocalBlobs, shared_jobs: Jobs
) -> None:
    batch = await batch_of(store, blobs, make_lines(2_500))
    assert await planner_on(store, blobs, shared_jobs).plan(batch)
    shards = [await claimed(store, batch, number) for number in range(3)]
    assert [
        PlannedShard(first_entry=shard.first_entry, entries=shard.entries, model=shard.model)
        for shard in shards
    ] == [
        PlannedShard(first_entry=0, entries=1_000, model=MODEL),
        PlannedShard(first_entry=1_000, entries=1_000, model=MODEL),
        PlannedShard(first_entry=2_000, entries=500, model=MODEL),
    ]


class Asked(Jobs):
    """Says when it was asked for a job."""

    def __init__(self, children: Path) -> None:
        super().__init__(children, max_children=1)
        self.asked = asyncio.Event()

    async def run(self, *args: Any, **kwargs: Any) -> Any:
        self.asked.set()
        return await super().run(*args, **kwargs)


@pytest.mark.usefixtures("executed_workers")
async def test_a_validation_that_waits_for_its_turn_is_not_counted_when_the_server_dies(
    store: Store, blobs: LocalBlobs, tmp_path: Path
) -> None:
    """Beside one poisonous file every batch that waits would be refused after five deaths."""
    children, note = tmp_path / "children", tmp_path / "validating.json"
    children.mkdir()
    jobs = Asked(children)
    telemetry.arm("plan.synced=stop")
    await jobs.warm()
    planner = replace(planner_on(store, blobs, jobs), tries=Tries(note))
    batches = [await batch_of(store, blobs, make_lines(2)) for _ in range(2)]
    plans = []
    for batch in batches:
        jobs.asked.clear()
        plans.append(asyncio.create_task(planner.plan(batch)))
        await jobs.asked.wait()
    await stopped_child()  # the first one's, with its whole file read
    assert [Tries(note).deaths(batch.id) for batch in batches] == [1, 0]
    for plan in plans:
        plan.cancel()
    await asyncio.gather(*plans, return_exceptions=True)
    await jobs.close()
    assert [Tries(note).deaths(batch.id) for batch in batches] == [0, 0]
