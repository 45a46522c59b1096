"""Damaged ranges found before a batch ends, and taken back: on both databases, on real files."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import google_crc32c
import pytest
from sqlalchemy import Engine, text

from batchline import telemetry
from batchline.domain.errors import StoreUnavailable
from batchline.domain.lifecycle import BatchEvent, BatchStatus, Stopping
from batchline.domain.model import Batch, Counts, PendingShard, Usage
from batchline.service import range_check, repair
from batchline.service.alarms import Alarms
from batchline.service.jobs import Jobs
from batchline.service.range_check import CheckJob, Damage, RangeCheck, StoredRange, check_ranges
from batchline.service.repair import MAX_REPAIRS, Repair
from batchline.store.blobs import LocalBlobs
from batchline.store.database import Database
from tests.contract.store_rows import (
    MODEL,
    NOW,
    Segment,
    claimed,
    commits,
    moved,
    settling,
    started,
)

pytestmark = pytest.mark.usefixtures("forked_workers")


@pytest.fixture(scope="module")
async def jobs(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Jobs]:
    jobs = Jobs(tmp_path_factory.mktemp("children"))
    yield jobs
    await jobs.close()


@dataclass
class Stored:
    """A batch of two shards of ten lines with three commits, and what looks after it.

    Shard 0: lines 0, 1, 2 finished and 3 failed (commit 1), 4 to 9 finished (commit 2).
    Shard 1: lines 0 to 8 finished and 9 failed (commit 3).
    """

    store: Database
    blobs: LocalBlobs
    jobs: Jobs
    segment: Segment = field(default_factory=Segment)
    alarms: Alarms = field(default_factory=Alarms)

    @property
    def repair(self) -> Repair:
        ranges = RangeCheck(store=self.store, blobs=self.blobs, jobs=self.jobs)
        return Repair(store=self.store, ranges=ranges, alarms=self.alarms, clock=lambda: NOW + 9)

    @property
    def path(self) -> Path:
        return self.blobs.path(self.segment.name)

    async def batch(self) -> Batch:
        batch = await started(self.store, shards=2)
        await self.commit(batch, 0, finished=[0, 1, 2], failed=[3])
        await self.commit(batch, 0, finished=[4, 5, 6, 7, 8, 9])
        await self.commit(batch, 1, finished=range(9), failed=[9])
        return await self.store.load_batch(batch.id)

    async def commit(
        self, batch: Batch, number: int, *, finished: Sequence[int] = (), failed: Sequence[int] = ()
    ) -> None:
        shard = await claimed(self.store, batch, number)
        one = settling(shard, finished=finished, failed=failed, segment=self.segment)
        assert await commits(self.store, one) == [True]
        with self.path.open("ab") as file:
            file.write(b"o" * 50 * len(finished) + b"e" * 20 * len(failed))

    async def stopped(self, event: BatchEvent) -> Batch:
        return await moved(self.store, await self.batch(), event)

    def flip(self, at: int) -> None:
        data = bytearray(self.path.read_bytes())
        data[at] ^= 4
        self.path.write_bytes(data)

    async def ranges(self, batch: Batch) -> list[tuple[int, int | None]]:
        """(start, lines) of every committed range."""
        found = await self.store.committed_ranges(batch.id, after=0, limit=1_000)
        return [(one.part.start, one.lines) for one in found]


# Where the ranges begin: output and errors of commit 1, output of commit 2, both of commit 3.
FIRST, FIRST_ERRORS, SECOND, THIRD, THIRD_ERRORS = 0, 150, 170, 470, 920
ALL_RANGES = [(FIRST, 3), (FIRST_ERRORS, 1), (SECOND, 6), (THIRD, 9), (THIRD_ERRORS, 1)]
DONE = Counts(total=20, completed=18, failed=2)


@pytest.fixture
def stored(store: Database, blobs: LocalBlobs, jobs: Jobs) -> Stored:
    return Stored(store, blobs, jobs)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    said: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(telemetry, "trouble", lambda name, **fields: said.append((name, fields)))
    return said


async def test_a_sound_batch_is_left_as_it_is(
    stored: Stored, said: list[tuple[str, dict[str, Any]]]
) -> None:
    batch = await stored.stopped(BatchEvent.ALL_LINES_FINISHED)
    assert await stored.ranges(batch) == ALL_RANGES
    assert await stored.repair.take_back_damaged(batch) == batch
    assert await stored.store.load_batch(batch.id) == batch
    assert (said, stored.alarms.damaged) == ([], 0)


@pytest.mark.parametrize(
    ("at", "lines", "settled", "counts"),
    [
        (FIRST + 149, 3, bytes([0b11111000, 0b11]), Counts(total=20, completed=15, failed=2)),
        (FIRST_ERRORS, 1, bytes([0b11110111, 0b11]), Counts(total=20, completed=18, failed=1)),
        (SECOND + 7, 6, bytes([0b1111, 0]), Counts(total=20, completed=12, failed=2)),
    ],
)
async def test_exactly_the_lines_of_a_damaged_range_are_unsettled(
    stored: Stored, at: int, lines: int, settled: bytes, counts: Counts
) -> None:
    batch = await stored.stopped(BatchEvent.ALL_LINES_FINISHED)
    stored.flip(at)
    after = await stored.repair.take_back_damaged(batch)
    assert (after.status, after.counts, after.repairs) == (BatchStatus.IN_PROGRESS, counts, 1)
    tokens = 7 * counts.completed
    assert after.usage == Usage(input_tokens=tokens, total_tokens=tokens)
    assert await stored.store.shard_bitmaps(batch.id) == [(0, 10, settled)]
    assert list(await stored.store.pending_shards(batch.id)) == [PendingShard(0, MODEL, 0)]
    shard = await claimed(stored.store, batch)
    assert shard.completed + shard.failed == 10 - lines
    assert shard.usage.total_tokens == 7 * shard.completed
    starts = [start for start, _ in await stored.ranges(batch)]
    lost = max(start for start, _ in ALL_RANGES if start <= at)
    assert starts == [start for start, _ in ALL_RANGES if start != lost]


@pytest.mark.rule("X11")
async def test_saved_calls_are_taken_back_with_their_lines(stored: Stored) -> None:
    batch = await started(stored.store, shards=1)
    shard = await claimed(stored.store, batch)
    commit = settling(
        shard, finished=range(6), failed=range(6, 10), saved=[1, 2, 9], segment=stored.segment
    )
    assert await commits(stored.store, commit) == [True]
    stored.path.write_bytes(b"o" * 300 + b"e" * 80)
    ended = await moved(stored.store, batch, BatchEvent.ALL_LINES_FINISHED)
    assert ended.calls_saved == 3
    stored.flip(0)  # the output; the error lines are sound
    after = await stored.repair.take_back_damaged(ended)
    assert (after.counts.completed, after.counts.failed, after.calls_saved) == (0, 4, 1)


async def test_what_runs_again_is_committed_and_counted_like_any_other(stored: Stored) -> None:
    batch = await stored.stopped(BatchEvent.ALL_LINES_FINISHED)
    stored.flip(SECOND)
    await stored.repair.take_back_damaged(batch)
    await stored.commit(batch, 0, finished=[4, 5, 6, 7], failed=[8, 9])
    again = await moved(
        stored.store, await stored.store.load_batch(batch.id), BatchEvent.ALL_LINES_FINISHED
    )
    assert again.counts == Counts(total=20, completed=16, failed=4)
    assert (again.finalizing_at, again.repairs) == (batch.finalizing_at, 1)
    assert await stored.repair.take_back_damaged(again) == again


async def test_a_former_holder_can_not_commit_to_what_was_taken_back(stored: Stored) -> None:
    batch = await stored.stopped(BatchEvent.ALL_LINES_FINISHED)
    stored.flip(FIRST)
    await stored.repair.take_back_damaged(batch)
    shard = await claimed(stored.store, batch)
    assert shard.epoch == 4  # two claims, what was taken back, and this one
    stale = replace(shard, epoch=2)
    assert await commits(stored.store, settling(stale, finished=[0, 1, 2])) == [False]


async def test_a_lost_segment_takes_everything_back(
    stored: Stored, said: list[tuple[str, dict[str, Any]]]
) -> None:
    batch = await stored.stopped(BatchEvent.ALL_LINES_FINISHED)
    stored.path.unlink()
    after = await stored.repair.take_back_damaged(batch)
    assert (after.counts, after.usage) == (Counts(total=20), Usage())
    assert await stored.ranges(batch) == []
    assert [(name, fields["damage"], fields["lines"]) for name, fields in said] == [
        ("range_corrupt", "gone", lines) for _, lines in ALL_RANGES
    ]
    assert stored.alarms.damaged == 5


@pytest.mark.parametrize(
    ("event", "status"),
    [
        (BatchEvent.CANCEL_REQUESTED, BatchStatus.CANCELLING),
        (BatchEvent.WINDOW_CLOSED, BatchStatus.FINALIZING),
        (BatchEvent.INPUT_LOST, BatchStatus.FINALIZING),
    ],
)
async def test_a_stopped_batch_stays_stopped(
    stored: Stored, event: BatchEvent, status: BatchStatus
) -> None:
    batch = await stored.stopped(event)
    os.truncate(stored.path, THIRD + 10)
    after = await stored.repair.take_back_damaged(batch)
    assert (after.status, after.stopping) == (status, batch.stopping)
    assert after.counts == Counts(total=20, completed=9, failed=1)


async def test_a_cancel_beside_the_repair_wins_and_nothing_runs_again(
    stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = await stored.stopped(BatchEvent.ALL_LINES_FINISHED)
    stored.flip(FIRST)
    unsettle = stored.store.unsettle_ranges
    tries = []

    async def late(*arguments: Any, **guards: Any) -> Batch | None:
        tries.append(guards["from_status"])
        if len(tries) == 1:
            await moved(stored.store, batch, BatchEvent.CANCEL_REQUESTED)
        return await unsettle(*arguments, **guards)

    monkeypatch.setattr(stored.store, "unsettle_ranges", late)
    after = await stored.repair.take_back_damaged(batch)
    assert tries == [BatchStatus.FINALIZING, BatchStatus.CANCELLING]
    assert (after.status, after.stopping) == (BatchStatus.CANCELLING, Stopping.CANCEL)
    assert (after.counts.completed, after.repairs) == (15, 1)


async def test_of_two_repairs_at_once_one_takes_back(stored: Stored) -> None:
    batch = await stored.stopped(BatchEvent.ALL_LINES_FINISHED)
    (first, *_) = await stored.store.committed_ranges(batch.id, after=0, limit=1)
    guards: dict[str, Any] = {"from_status": batch.status, "stopping": None, "now": NOW}
    one = await stored.store.unsettle_ranges(batch.id, [first.sequence], **guards)
    other = await stored.store.unsettle_ranges(batch.id, [first.sequence], **guards)
    assert one is not None
    assert one.counts == Counts(total=20, completed=15, failed=2)
    assert other is None
    assert await stored.store.load_batch(batch.id) == one


async def test_after_so_many_repairs_the_damage_stays_and_the_batch_ends(
    stored: Stored, engine: Engine
) -> None:
    batch = await stored.stopped(BatchEvent.ALL_LINES_FINISHED)
    with engine.begin() as connection:
        connection.execute(text("UPDATE batch SET repairs = :most"), {"most": MAX_REPAIRS})
    stored.flip(FIRST)
    batch = await stored.store.load_batch(batch.id)
    assert await stored.repair.take_back_damaged(batch) == batch
    assert stored.alarms.damaged == 1
    assert (await stored.store.load_batch(batch.id)).counts == DONE


async def test_a_range_of_unknown_lines_stays_and_is_an_alarm(
    stored: Stored, engine: Engine, said: list[tuple[str, dict[str, Any]]]
) -> None:
    """What was committed by a version that did not record the lines."""
    batch = await stored.stopped(BatchEvent.ALL_LINES_FINISHED)
    with engine.begin() as connection:
        connection.execute(text("UPDATE segment_commit SET lines = NULL, shard_number = NULL"))
    stored.path.unlink()
    assert await stored.repair.take_back_damaged(batch) == batch
    assert [fields["lines"] for _, fields in said] == [None] * 5


async def test_what_says_nothing_about_the_bytes_takes_nothing_back(
    stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No descriptor left, say: the results are fine and were paid for."""
    batch = await stored.stopped(BatchEvent.ALL_LINES_FINISHED)

    def none_left(*_: object) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "open", none_left)
    with pytest.raises(StoreUnavailable):
        await stored.repair.take_back_damaged(batch)
    monkeypatch.undo()
    assert await stored.store.load_batch(batch.id) == batch


async def test_many_ranges_are_checked_in_a_child_some_at_a_time(
    stored: Stored, monkeypatch: pytest.MonkeyPatch, said: list[tuple[str, dict[str, Any]]]
) -> None:
    monkeypatch.setattr(range_check, "_PAGE", 8)
    monkeypatch.setattr(range_check, "_JOB_RANGES", 16)
    monkeypatch.setattr(range_check, "IN_A_THREAD_RANGES", 8)
    monkeypatch.setattr(repair, "SAID_AT_ONCE", 10)
    batch = await started(stored.store, entries=40)
    for line in range(40):
        await stored.commit(batch, 0, finished=[line])
    finished = await moved(stored.store, batch, BatchEvent.ALL_LINES_FINISHED)
    for line in (0, 15, 16, 39):
        stored.flip(50 * line)
    after = await stored.repair.take_back_damaged(finished)
    assert after.counts == Counts(total=40, completed=36)
    assert [fields["start"] for _, fields in said] == [0, 750, 800, 1950]
    stored.path.unlink()
    said.clear()
    again = await moved(stored.store, after, BatchEvent.CANCEL_REQUESTED)
    assert (await stored.repair.take_back_damaged(again)).counts == Counts(total=40)
    assert [name for name, _ in said] == ["range_corrupt"] * 10 + ["ranges_corrupt"]
    assert stored.alarms.damaged == 40


# -- the check itself ------------------------------------------------------------------------------


@pytest.fixture
def file_of_a_mebibyte(tmp_path: Path) -> StoredRange:
    data = os.urandom(1024 * 1024 + 17)
    (tmp_path / "data").write_bytes(b"before" + data + b"behind")
    return StoredRange(
        path=str(tmp_path / "data"), start=6, size=len(data), crc=google_crc32c.value(data)
    )


def test_each_kind_of_damage_is_told(file_of_a_mebibyte: StoredRange) -> None:
    one = file_of_a_mebibyte
    path = Path(one.path)
    job = CheckJob.of([one])
    assert check_ranges(job).damaged == {}
    whole = path.read_bytes()
    for at in (6, 6 + one.size - 1):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 128]) + whole[at + 1 :])
        assert check_ranges(job).damaged == {0: Damage.CHANGED}
    for at in (0, 5, 6 + one.size):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 128]) + whole[at + 1 :])
        assert check_ranges(job).damaged == {}, "that byte belongs to others"
    path.write_bytes(whole[: 6 + one.size - 1])
    assert check_ranges(job).damaged == {0: Damage.SHORT}
    path.unlink()
    assert check_ranges(job).damaged == {0: Damage.GONE}


def test_a_sector_that_cannot_be_read_is_damage(
    file_of_a_mebibyte: StoredRange, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread", unreadable)
    result = check_ranges(CheckJob.of([file_of_a_mebibyte]))
    assert result.damaged == {0: Damage.UNREADABLE}
