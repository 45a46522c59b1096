"""The end of a batch: real children write the lines that never ran, both databases take the files.

Whatever comes in between, each line of the input is accounted for once, and nothing stays on disk
that no file needs.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from batchline import telemetry
from batchline.domain.ids import DEFAULT_PROJECT, BatchId, FileId
from batchline.domain.lifecycle import BatchEvent, BatchStatus
from batchline.domain.model import DAY_S, Batch, BlobKind, LineProblem
from batchline.domain.results import MESSAGES, Failure
from batchline.service import finalizer as finalizer_module
from batchline.service.finalizer import Finalizer
from batchline.service.jobs import Jobs
from batchline.service.validation import ValidationJob, validate
from batchline.store.blobs import LocalBlobs
from batchline.store.database import Database
from tests.contract.store_rows import (
    NOW,
    Segment,
    asked_for,
    claimed,
    commits,
    fresh_file,
    moved,
    settling,
    validating,
)
from tests.contract.test_jobs import stopped_child
from tests.support.inputs import line_id, make_lines
from tests.support.small_disk import fill

pytestmark = pytest.mark.usefixtures("forked_workers")

LIMIT_S = 30.0
LINES = 10
SHARD = 4  # shards of 4, 4 and 2 lines


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
    monkeypatch.setattr(finalizer_module, "RETRY_S", 0.001)


@dataclass
class Troubles:
    """What the log was told of, and whether there was anything."""

    told: asyncio.Event = field(default_factory=asyncio.Event)
    names: list[tuple[str, object]] = field(default_factory=list)

    def __call__(self, name: str, **fields: object) -> None:
        self.names.append((name, fields.get("code")))
        self.told.set()


@pytest.fixture
def troubles(monkeypatch: pytest.MonkeyPatch) -> Troubles:
    troubles = Troubles()
    monkeypatch.setattr(telemetry, "trouble", troubles)
    return troubles


@dataclass
class Server:
    """A store and a blob store with the finalizer on them."""

    store: Database
    blobs: LocalBlobs
    jobs: Jobs
    segment: Segment = field(default_factory=Segment)

    @property
    def finalizer(self) -> Finalizer:
        return Finalizer(store=self.store, blobs=self.blobs, jobs=self.jobs, clock=lambda: NOW + 9)

    async def started(
        self, *, expires_after_s: int | None = None, content: bytes | None = None
    ) -> Batch:
        """A batch in progress over a real file with a real plan."""
        content = content or make_lines(LINES, awkward=True, blank_every=3)
        writer = self.blobs.writer(BlobKind.INPUT)
        await writer.write(content)
        blob = await writer.finish()
        file = fresh_file(size=blob.bytes)
        await self.store.create_file(file, blob)
        new = replace(asked_for(file.id), output_expires_after_s=expires_after_s)
        batch = await self.store.create_batch(new)
        scratch = self.blobs.scratch()
        result = validate(
            ValidationJob(
                input_path=str(self.blobs.path(blob.name)),
                input_bytes=blob.bytes,
                plan_path=str(scratch),
                endpoint=batch.endpoint,
                max_file_bytes=2**40,
                max_lines=2**40,
                max_line_bytes=2**40,
                shard_entries=SHARD,
            )
        )
        assert await self.store.start_batch(
            batch.id,
            plan=await self.blobs.adopt(scratch, BlobKind.PLAN),
            shards=result.shards,
            lines=result.lines,
            model=result.model,
            now=NOW + 1,
        )
        return await self.store.load_batch(batch.id)

    async def settle(
        self, batch: Batch, number: int, *, finished: Sequence[int] = (), failed: Sequence[int] = ()
    ) -> None:
        """Commit results of a shard; their bytes are in the segment, 50 and 20 a line."""
        shard = await claimed(self.store, batch, number)
        commit = settling(shard, finished=finished, failed=failed, segment=self.segment)
        assert await commits(self.store, commit) == [True]
        with self.blobs.path(self.segment.name).open("ab") as segment:
            segment.write(b"o" * (50 * len(finished)) + b"e" * (20 * len(failed)))

    async def stopped(self, event: BatchEvent) -> Batch:
        """A batch of 10 lines that was stopped: 1, 2, 9 and 10 finished, 4 and 8 failed."""
        batch = await self.started()
        await self.settle(batch, 0, finished=[0, 1], failed=[3])
        await self.settle(batch, 1, failed=[3])
        await self.settle(batch, 2, finished=[0, 1])
        return await moved(self.store, await self.store.load_batch(batch.id), event)

    async def content(self, file_id: FileId | None) -> bytes:
        """All bytes of a file, read through its manifest."""
        assert file_id is not None
        file = await self.store.get_file(DEFAULT_PROJECT, file_id, now=NOW)
        assert file is not None
        ranges = await self.store.file_ranges(file.id)
        read = b"".join([chunk async for chunk in self.blobs.read(ranges, chunk_bytes=1_000)])
        assert len(read) == file.bytes
        return read

    async def never_run(self, batch: Batch, *, results: int) -> list[tuple[str, str]]:
        """(custom_id, code) of the lines that end the error file after `results` bytes."""
        content = await self.content(batch.error_file_id)
        assert content[:results] == b"e" * results
        lines = [json.loads(line) for line in content[results:].splitlines()]
        for line in lines:
            assert line["response"] is None
            assert line["error"]["message"] == MESSAGES[Failure(line["error"]["code"])]
        return [(line["custom_id"][: len(line_id(0))], line["error"]["code"]) for line in lines]

    def left(self, kind: str) -> int:
        """How many files of a kind, or of scratch, are on disk."""
        return len([*(self.blobs.segment_directory().parent / kind).iterdir()])


@pytest.fixture
def server(store: Database, blobs: LocalBlobs, shared_jobs: Jobs) -> Server:
    return Server(store, blobs, shared_jobs)


@pytest.fixture
def armed_server(store: Database, blobs: LocalBlobs, jobs: Jobs) -> Server:
    return Server(store, blobs, jobs)


def unfinished(failure: Failure) -> list[tuple[str, str]]:
    """What `Server.stopped` leaves without a result, in the order of the file."""
    return [(line_id(number), failure.value) for number in (2, 4, 5, 6)]


async def assert_cancelled_with_all_lines(server: Server, ended: Batch) -> None:
    assert ended.status is BatchStatus.CANCELLED
    assert (ended.counts.total, ended.counts.completed, ended.counts.failed) == (LINES, 4, 2)
    assert await server.content(ended.output_file_id) == b"o" * 200
    assert await server.never_run(ended, results=40) == unfinished(Failure.BATCH_CANCELLED)
    assert (server.left("never_run"), server.left("scratch")) == (1, 0)


# -- how batches end -------------------------------------------------------------------------------


async def test_a_batch_whose_lines_all_ran_has_no_other_lines(server: Server) -> None:
    batch = await server.started()
    await server.settle(batch, 0, finished=[0, 1, 2, 3])
    await server.settle(batch, 1, finished=[0, 1, 2, 3])
    await server.settle(batch, 2, finished=[0, 1])
    await moved(server.store, batch, BatchEvent.ALL_LINES_FINISHED)
    ended = await server.finalizer.finalize(batch.id)
    assert (ended.status, ended.completed_at) == (BatchStatus.COMPLETED, NOW + 9)
    assert (ended.counts.completed, ended.error_file_id, ended.errors) == (LINES, None, None)
    assert await server.content(ended.output_file_id) == b"o" * 500
    assert (server.left("never_run"), server.left("scratch")) == (0, 0)


async def test_a_cancelled_batch_has_a_line_for_each_request_without_a_result(
    server: Server,
) -> None:
    batch = await server.stopped(BatchEvent.CANCEL_REQUESTED)
    ended = await server.finalizer.finalize(batch.id)
    assert (ended.cancelled_at, ended.errors) == (NOW + 9, None)
    await assert_cancelled_with_all_lines(server, ended)


@pytest.mark.usefixtures("executed_workers")
async def test_a_batch_ends_however_many_files_are_to_be_validated(armed_server: Server) -> None:
    """Those take minutes each when they are large, and a cancel ten at most."""
    jobs = armed_server.jobs
    batch = await armed_server.stopped(BatchEvent.CANCEL_REQUESTED)
    telemetry.arm("here=stop")
    await jobs.warm()
    waiting = [asyncio.create_task(jobs.run(telemetry.probe, "here")) for _ in range(4)]
    for _ in range(2):
        await stopped_child()
    await assert_cancelled_with_all_lines(
        armed_server, await armed_server.finalizer.finalize(batch.id)
    )
    await jobs.close()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_an_expired_batch_has_a_line_for_each_request_without_a_result(
    server: Server,
) -> None:
    batch = await server.stopped(BatchEvent.WINDOW_CLOSED)
    ended = await server.finalizer.finalize(batch.id)
    assert (ended.status, ended.expired_at) == (BatchStatus.EXPIRED, NOW + 9)
    assert await server.content(ended.output_file_id) == b"o" * 200
    assert await server.never_run(ended, results=40) == unfinished(Failure.BATCH_EXPIRED)


async def test_a_batch_that_was_cancelled_before_any_result_has_an_error_file_only(
    server: Server,
) -> None:
    batch = await server.started()
    await moved(server.store, batch, BatchEvent.CANCEL_REQUESTED)
    ended = await server.finalizer.finalize(batch.id)
    assert ended.output_file_id is None
    assert await server.never_run(ended, results=0) == [
        (line_id(number), "batch_cancelled") for number in range(LINES)
    ]


async def test_a_batch_that_was_cancelled_after_its_last_result_has_no_other_lines(
    server: Server,
) -> None:
    batch = await server.started(content=make_lines(2))
    await server.settle(batch, 0, finished=[0, 1])
    await moved(server.store, batch, BatchEvent.CANCEL_REQUESTED)
    ended = await server.finalizer.finalize(batch.id)
    assert (ended.status, ended.error_file_id) == (BatchStatus.CANCELLED, None)
    assert server.left("never_run") == 0


@pytest.mark.rule("L4")
async def test_a_batch_that_was_cancelled_while_validating_has_no_files(server: Server) -> None:
    batch = await validating(server.store)
    await moved(server.store, batch, BatchEvent.CANCEL_REQUESTED)
    ended = await server.finalizer.finalize(batch.id)
    assert ended.status is BatchStatus.CANCELLED
    assert (ended.output_file_id, ended.error_file_id, ended.counts.total) == (None, None, 0)
    assert (ended.in_progress_at, ended.finalizing_at) == (None, None)


async def test_a_batch_that_has_ended_is_left_alone(server: Server) -> None:
    batch = await server.stopped(BatchEvent.CANCEL_REQUESTED)
    ended = await server.finalizer.finalize(batch.id)
    assert await replace(server.finalizer, clock=lambda: NOW + 99).finalize(batch.id) == ended
    assert server.left("never_run") == 1


@pytest.mark.rule("O8")
@pytest.mark.parametrize(("asked_s", "kept_s"), [(None, 30 * DAY_S), (3_600, 3_600)])
async def test_files_expire_as_their_creator_said_or_after_thirty_days(
    server: Server, asked_s: int | None, kept_s: int
) -> None:
    batch = await server.started(expires_after_s=asked_s)
    await server.settle(batch, 0, finished=[0])
    await moved(server.store, batch, BatchEvent.CANCEL_REQUESTED)
    ended = await server.finalizer.finalize(batch.id)
    for file_id, name in ((ended.output_file_id, "output"), (ended.error_file_id, "error")):
        assert file_id is not None
        file = await server.store.get_file(DEFAULT_PROJECT, file_id, now=NOW)
        assert file is not None
        assert file.expires_at == NOW + 9 + kept_s
        assert file.filename == f"{batch.id}_{name}.jsonl"


# -- a cancel that arrives between -----------------------------------------------------------------


class CancelledBetween:
    """A store to which a cancel comes just before the first `finalize`."""

    def __init__(self, store: Database, patch: pytest.MonkeyPatch) -> None:
        self._store = store
        self._finalize = store.finalize
        self.calls = 0
        patch.setattr(store, "finalize", self._late)

    async def _late(self, batch_id: BatchId, **values: Any) -> Batch | None:
        self.calls += 1
        if self.calls == 1:
            batch = await self._store.load_batch(batch_id)
            await moved(self._store, batch, BatchEvent.CANCEL_REQUESTED)
        return await self._finalize(batch_id, **values)


async def test_a_cancel_wins_over_a_closed_window(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lines are written again with its reason, and those of the first time are dropped."""
    batch = await server.stopped(BatchEvent.WINDOW_CLOSED)
    between = CancelledBetween(server.store, monkeypatch)
    ended = await server.finalizer.finalize(batch.id)
    assert between.calls == 2
    await assert_cancelled_with_all_lines(server, ended)


async def test_a_cancel_wins_over_completion(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = await server.started(content=make_lines(2))
    await server.settle(batch, 0, finished=[0], failed=[1])
    await moved(server.store, batch, BatchEvent.ALL_LINES_FINISHED)
    CancelledBetween(server.store, monkeypatch)
    ended = await server.finalizer.finalize(batch.id)
    assert (ended.status, ended.completed_at) == (BatchStatus.CANCELLED, None)
    assert await server.content(ended.output_file_id) == b"o" * 50
    assert await server.never_run(ended, results=20) == []


# -- what was lost ---------------------------------------------------------------------------------


def lose(server: Server, batch: Batch, what: str) -> None:
    assert batch.input_blob is not None
    assert batch.plan_blob is not None
    path = server.blobs.path(batch.plan_blob if "plan" in what else batch.input_blob)
    if "gone" in what:
        path.unlink()
    else:
        os.truncate(path, path.stat().st_size // 2)


LOSSES = ["input gone", "input short", "plan gone", "plan short"]


@pytest.mark.rule("L2")
@pytest.mark.parametrize("what", LOSSES)
async def test_a_batch_whose_input_was_lost_fails_with_the_files_of_what_was_settled(
    server: Server, what: str
) -> None:
    batch = await server.stopped(BatchEvent.WINDOW_CLOSED)
    lose(server, batch, what)
    ended = await server.finalizer.finalize(batch.id)
    assert (ended.status, ended.failed_at) == (BatchStatus.FAILED, NOW + 9)
    assert ended.errors == [
        LineProblem(
            code="input_unreadable",
            message="The input file's bytes were lost or damaged while the batch was running.",
            param="input_file_id",
        )
    ]
    assert await server.content(ended.output_file_id) == b"o" * 200
    assert await server.never_run(ended, results=40) == []
    assert (server.left("never_run"), server.left("scratch")) == (0, 0)


@pytest.mark.parametrize("what", LOSSES)
async def test_a_cancelled_batch_whose_input_was_lost_keeps_what_was_settled(
    server: Server, what: str
) -> None:
    batch = await server.stopped(BatchEvent.CANCEL_REQUESTED)
    lose(server, batch, what)
    ended = await server.finalizer.finalize(batch.id)
    assert ended.status is BatchStatus.CANCELLED
    assert (ended.counts.completed, ended.counts.failed) == (4, 2)
    assert await server.content(ended.output_file_id) == b"o" * 200
    assert await server.never_run(ended, results=40) == []


@pytest.mark.rule("B18")
async def test_a_cancelled_batch_has_no_errors_though_its_input_was_lost(server: Server) -> None:
    batch = await server.stopped(BatchEvent.CANCEL_REQUESTED)
    lose(server, batch, "input gone")
    assert (await server.finalizer.finalize(batch.id)).errors is None


async def test_a_batch_whose_lines_all_ran_needs_no_input(server: Server) -> None:
    batch = await server.started(content=make_lines(2))
    await server.settle(batch, 0, finished=[0, 1])
    await moved(server.store, batch, BatchEvent.ALL_LINES_FINISHED)
    lose(server, batch, "input gone")
    assert (await server.finalizer.finalize(batch.id)).status is BatchStatus.COMPLETED


# -- delays ----------------------------------------------------------------------------------------


async def test_a_full_disk_only_delays_the_end(
    store: Database, shared_jobs: Jobs, small_disk: Path, troubles: Troubles
) -> None:
    server = Server(store, LocalBlobs(small_disk / "blobs"), shared_jobs)
    batch = await server.stopped(BatchEvent.CANCEL_REQUESTED)
    ballast = small_disk / "ballast"
    fill(ballast)
    ending = asyncio.create_task(server.finalizer.finalize(batch.id))
    await troubles.told.wait()
    assert (await store.load_batch(batch.id)).status is BatchStatus.CANCELLING
    ballast.unlink()
    await assert_cancelled_with_all_lines(server, await ending)
    assert set(troubles.names) == {("finalize_delayed", "storage_full")}


@pytest.mark.parametrize(
    ("error", "code"), [("eio", "store_unavailable"), ("enospc", "storage_full")]
)
@pytest.mark.parametrize("moment", ["before", "inside"])
async def test_a_database_that_does_not_take_the_files_only_delays_the_end(
    server: Server, troubles: Troubles, moment: str, error: str, code: str
) -> None:
    batch = await server.stopped(BatchEvent.CANCEL_REQUESTED)
    telemetry.arm(f"finalize.{moment}={error}")
    await assert_cancelled_with_all_lines(server, await server.finalizer.finalize(batch.id))
    assert troubles.names == [("finalize_delayed", code)]


async def test_files_that_were_committed_and_not_answered_keep_their_lines(server: Server) -> None:
    """The connection may break between the commit and its answer."""
    batch = await server.stopped(BatchEvent.CANCEL_REQUESTED)
    telemetry.arm("finalize.after=eio")
    await assert_cancelled_with_all_lines(server, await server.finalizer.finalize(batch.id))


async def test_a_child_that_dies_only_delays_the_end(
    armed_server: Server, troubles: Troubles
) -> None:
    telemetry.arm("never_run.synced=kill")
    await armed_server.jobs.warm()
    telemetry.arm("")  # for the next child
    batch = await armed_server.stopped(BatchEvent.CANCEL_REQUESTED)
    ended = await armed_server.finalizer.finalize(batch.id)
    await assert_cancelled_with_all_lines(armed_server, ended)
    assert troubles.names == [("finalize_delayed", "store_unavailable")]


@pytest.mark.usefixtures("executed_workers")
async def test_an_end_that_is_broken_off_is_made_by_the_next_one(armed_server: Server) -> None:
    telemetry.arm("never_run.synced=stop")
    await armed_server.jobs.warm()
    telemetry.arm("")  # for the next child
    batch = await armed_server.stopped(BatchEvent.CANCEL_REQUESTED)
    ending = asyncio.create_task(armed_server.finalizer.finalize(batch.id))
    await asyncio.to_thread(os.waitid, os.P_ALL, 0, os.WSTOPPED)
    ending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ending
    assert (await armed_server.store.load_batch(batch.id)).status is BatchStatus.CANCELLING
    assert (armed_server.left("never_run"), armed_server.left("scratch")) == (0, 0)
    ended = await armed_server.finalizer.finalize(batch.id)
    await assert_cancelled_with_all_lines(armed_server, ended)


async def test_two_ends_of_one_batch_at_once_are_one(server: Server) -> None:
    batch = await server.stopped(BatchEvent.CANCEL_REQUESTED)
    one, other = await asyncio.gather(
        server.finalizer.finalize(batch.id), server.finalizer.finalize(batch.id)
    )
    assert one == other
    await assert_cancelled_with_all_lines(server, one)
