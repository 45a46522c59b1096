"""Results made durable: what is offered to the store is on disk, whatever the disk does."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import google_crc32c
import pytest

from batchline import telemetry
from batchline.domain import bitmap
from batchline.domain.model import BlobRange, ShardCommit, Usage
from batchline.executor import segments
from batchline.executor.line import Gate, Line
from batchline.executor.segments import MAX_UNANSWERED, SegmentWriter
from batchline.executor.shard_run import ShardRun
from tests.support.shard_runs import run_over

SOON_S: Final = 30.0
NEVER_S: Final = 3_600.0  # an interval that no test waits out
WORKER: Final = "w-0-1"
ENTRIES: Final = 1_000


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    telemetry.arm("")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A group that the disk refused is tried again at once."""
    monkeypatch.setattr(segments, "RETRY_S", 0.01)


def shard_run(number: int = 0) -> ShardRun:
    return run_over([(0, 1, 1, 0)] * ENTRIES, number=number, epoch=3)


@dataclass(slots=True)
class Watch:
    """A writer at work and everything that it told."""

    directory: Path
    writer: SegmentWriter = field(init=False)
    groups: list[Sequence[ShardCommit]] = field(default_factory=list)
    troubles: list[str | None] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    answers: list[tuple[ShardRun, bool]] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def build(self, *, interval_s: float, segment_bytes: int, idle_s: float) -> None:
        def noting(to: Callable[[], None]) -> None:
            to()
            self._changed.set()

        self.writer = SegmentWriter(
            self.directory,
            WORKER,
            interval_s=interval_s,
            segment_bytes=segment_bytes,
            idle_s=idle_s,
            send_commit=lambda commits: noting(lambda: self.groups.append(commits)),
            on_trouble=lambda reason: noting(lambda: self.troubles.append(reason)),
            on_progress=lambda count: noting(lambda: self.left.append(count)),
            on_answer=lambda run, ok: noting(lambda: self.answers.append((run, ok))),
            on_closed=lambda: noting(lambda: self.closed.append(max(self.files()))),
        )

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(SOON_S):
            while not holds():
                self._changed.clear()
                await self._changed.wait()

    async def group(self, number: int) -> Sequence[ShardCommit]:
        """The commits of the group, counted from 0, once they were sent."""
        await self.until(lambda: len(self.groups) > number)
        return self.groups[number]

    def settle(self, run: ShardRun, result: bytes = b"{}\n", *, succeeded: bool = True) -> Line:
        line = run.take()
        assert line is not None
        usage = Usage(input_tokens=1, total_tokens=1) if succeeded else None
        run.settle(line, result, succeeded=succeeded, usage=usage)
        self.writer.dirty(run)
        return line

    def files(self) -> dict[str, int]:
        return {path.name: path.stat().st_size for path in sorted(self.directory.iterdir())}

    def bytes_of(self, commit_range: BlobRange | None) -> bytes:
        """What is on disk where a commit points; its CRC is right."""
        if commit_range is None:
            return b""
        whole = (self.directory / commit_range.blob).read_bytes()
        data = whole[commit_range.start : commit_range.stop]
        assert len(data) == commit_range.stop - commit_range.start > 0
        assert google_crc32c.value(data) == commit_range.crc
        return data


@asynccontextmanager
async def writing(
    directory: Path,
    *,
    interval_s: float = 0.0,
    segment_bytes: int = 2**30,
    idle_s: float = 3_600.0,
) -> AsyncIterator[Watch]:
    watch = Watch(directory)
    watch.build(interval_s=interval_s, segment_bytes=segment_bytes, idle_s=idle_s)
    running = asyncio.create_task(watch.writer.run())
    try:
        yield watch
    finally:
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        watch.writer._abandon()  # a worker's process ends here; this one goes on


def name(number: int) -> str:
    return f"segment-{WORKER}-{number:06d}"


# -- groups ----------------------------------------------------------------------------------------


async def test_a_commit_says_what_is_on_disk(tmp_path: Path) -> None:
    async with writing(tmp_path) as watch:
        run = shard_run()
        watch.settle(run, b'{"a":1}\n')
        watch.settle(run, b'{"bad":1}\n', succeeded=False)
        watch.settle(run, b'{"b":2}\n')
        (commit,) = await watch.group(0)
        assert (commit.key, commit.epoch) == (run.work.shard.key, 3)
        assert watch.bytes_of(commit.output) == b'{"a":1}\n{"b":2}\n'
        assert watch.bytes_of(commit.errors) == b'{"bad":1}\n'
        assert (commit.completed, commit.failed) == (2, 1)
        assert commit.usage == Usage(input_tokens=2, total_tokens=2)
        assert bitmap.count(commit.settled) == 3
        assert watch.files() == {name(1): 26}
        assert watch.left == [26]
        assert watch.troubles == []


async def test_a_group_is_one_message_with_every_shard_that_settled_something(
    tmp_path: Path,
) -> None:
    async with writing(tmp_path) as watch:
        runs = [shard_run(number) for number in range(5)]
        for turn in range(3):
            for run in runs[1:]:
                watch.settle(run, b"%d %d\n" % (run.work.shard.key.number, turn))
        group = await watch.group(0)
        assert [commit.key.number for commit in group] == [1, 2, 3, 4]
        for commit in group:
            number = commit.key.number
            expected = b"".join(b"%d %d\n" % (number, turn) for turn in range(3))
            assert watch.bytes_of(commit.output) == expected
            assert commit.errors is None
        assert len(watch.groups) == 1
        assert watch.files() == {name(1): 4 * 3 * 4}


async def test_groups_follow_each_other_in_one_file(tmp_path: Path) -> None:
    async with writing(tmp_path) as watch:
        run = shard_run()
        for number in range(5):
            watch.settle(run, b"result %d\n" % number)
            (commit,) = await watch.group(number)
            assert commit.output is not None
            assert (commit.output.blob, commit.output.start) == (name(1), 9 * number)
            assert watch.bytes_of(commit.output) == b"result %d\n" % number
            assert commit.completed == number + 1  # absolute, whatever was answered so far


async def test_a_full_segment_is_followed_by_another(tmp_path: Path) -> None:
    async with writing(tmp_path, segment_bytes=15) as watch:
        run = shard_run()
        for number in range(4):
            watch.settle(run, b"123456789\n")
            (commit,) = await watch.group(number)
            assert watch.bytes_of(commit.output) == b"123456789\n"
        assert watch.files() == {name(1): 20, name(2): 20}


async def test_results_wait_for_the_interval_and_hurry_cuts_it_short(tmp_path: Path) -> None:
    """With an hour between groups: if this times out, hurry woke nobody."""
    async with writing(tmp_path, interval_s=NEVER_S) as watch:
        run = shard_run()
        watch.settle(run)
        await watch.group(0)  # nothing was written for an interval: the first need not wait
        for _ in range(3):
            watch.settle(run)
        await asyncio.sleep(0.01)
        assert len(watch.groups) == 1
        watch.writer.hurry()
        (commit,) = await watch.group(1)
        assert commit.completed == 4


async def test_a_hurry_that_comes_first_counts_for_the_next_group(tmp_path: Path) -> None:
    async with writing(tmp_path, interval_s=NEVER_S) as watch:
        run = shard_run()
        watch.settle(run)
        await watch.group(0)
        watch.writer.hurry()
        watch.settle(run)
        await watch.group(1)


# -- answers ---------------------------------------------------------------------------------------


async def test_the_stores_answers_go_to_the_shards_of_the_oldest_group(tmp_path: Path) -> None:
    async with writing(tmp_path) as watch:
        first, second = shard_run(0), shard_run(1)
        watch.settle(first)
        await watch.group(0)
        watch.settle(second)
        watch.settle(first)
        await watch.group(1)
        assert (first.uncommitted_groups, second.uncommitted_groups) == (2, 1)
        watch.writer.answered([True])
        assert watch.answers == [(first, True)]
        watch.writer.answered([True, False])
        assert watch.answers[1:] == [(second, True), (first, False)]
        assert first.is_durable
        assert second.is_durable


async def test_no_more_groups_are_written_than_the_store_keeps_up_with(tmp_path: Path) -> None:
    async with writing(tmp_path) as watch:
        run = shard_run()
        for number in range(MAX_UNANSWERED):
            watch.settle(run)
            await watch.group(number)
        for _ in range(3):
            watch.settle(run)
        await asyncio.sleep(0.02)  # more than the groups before took together
        assert len(watch.groups) == MAX_UNANSWERED
        assert run.outputs == [b"{}\n"] * 3
        watch.writer.answered([True])
        (commit,) = await watch.group(MAX_UNANSWERED)
        assert commit.completed == MAX_UNANSWERED + 3


@pytest.mark.parametrize("alone", [True, False])
async def test_a_fenced_shard_is_not_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: bool
) -> None:
    """Fenced while its group was being written: its bytes are there, nothing points at them."""
    async with writing(tmp_path) as watch:
        fenced, kept = shard_run(0), shard_run(1)
        watch.settle(fenced)
        if not alone:
            watch.settle(kept)
        began, go_on = hold_sync(monkeypatch)
        await began.wait()
        fenced.close(Gate.FENCED)
        go_on.set()
        await watch.until(lambda: watch.answers == [(fenced, False)])
        assert fenced.is_durable
        if alone:
            watch.settle(kept)
        (commit,) = await watch.group(0)
        assert commit.key.number == 1
        assert watch.bytes_of(commit.output) == b"{}\n"
        watch.writer.answered([True])
        assert watch.answers[-1] == (kept, True)


# -- a disk that does not take it ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "reason"), [("enospc", "disk_full"), ("eio", "segment_unwritable: EIO")]
)
@pytest.mark.parametrize("point", ["segment.writing", "segment.written"])
async def test_a_failed_write_is_cut_off_and_tried_again(
    tmp_path: Path, point: str, action: str, reason: str
) -> None:
    async with writing(tmp_path) as watch:
        run = shard_run()
        watch.settle(run, b"first\n")
        await watch.group(0)
        telemetry.arm(f"{point}={action}")
        watch.settle(run, b"second\n")
        (commit,) = await watch.group(1)
        assert watch.troubles == [reason, None]
        assert watch.bytes_of(commit.output) == b"second\n"
        assert watch.files() == {name(1): 13}  # the same segment, once each
        assert watch.left == [6, 7]


async def test_what_settles_during_trouble_waits_in_memory_and_loses_its_place_to_nobody(
    small_disk: Path,
) -> None:
    """A really full disk: half a group is on it, is cut off, and all of it comes when there is
    room again."""
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * (1536 * 1024))
    directory = small_disk / "segments"
    directory.mkdir()
    async with writing(directory) as watch:
        run = shard_run()
        watch.settle(run, b"first\n")
        await watch.group(0)
        big = b"y" * (1024 * 1024 - 1) + b"\n"
        watch.settle(run, big)
        await watch.until(lambda: "disk_full" in watch.troubles)
        watch.settle(run, b"third\n")
        await watch.until(lambda: len(watch.troubles) >= 3)
        assert set(watch.troubles) == {"disk_full"}
        assert len(watch.groups) == 1
        assert run.outputs == [b"third\n"]
        assert watch.left == [6]
        ballast.unlink()
        (commit,) = await watch.group(1)
        assert watch.troubles[-1] is None
        assert watch.bytes_of(commit.output) == big
        assert commit.completed == 2
        (commit,) = await watch.group(2)
        assert watch.bytes_of(commit.output) == b"third\n"
        assert watch.files() == {name(1): 12 + len(big)}


async def test_a_failed_write_leaves_no_byte_behind_while_it_waits(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * (1536 * 1024))
    directory = small_disk / "segments"
    directory.mkdir()
    async with writing(directory) as watch:
        watch.settle(shard_run(), b"y" * (1024 * 1024))
        await watch.until(lambda: bool(watch.troubles))
        assert watch.files() == {name(1): 0}


async def test_after_a_failed_sync_the_group_is_written_again_to_a_new_segment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel may have dropped the pages and forgotten: nothing of that file is trusted."""
    async with writing(tmp_path) as watch:
        run = shard_run()
        watch.settle(run, b"first\n")
        (committed,) = await watch.group(0)
        fail_once(monkeypatch, "fdatasync")
        watch.settle(run, b"second\n")
        (commit,) = await watch.group(1)
        assert watch.troubles == ["segment_unwritable: EIO", None]
        assert commit.output is not None
        assert (commit.output.blob, commit.output.start) == (name(2), 0)
        assert watch.bytes_of(commit.output) == b"second\n"
        assert watch.bytes_of(committed.output) == b"first\n"


async def test_syncs_that_fail_again_and_again_leave_no_file_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If this fails, a disk that fails for an hour is full of tries then."""
    for _ in range(5):
        fail_once(monkeypatch, "fdatasync")
    async with writing(tmp_path) as watch:
        watch.settle(shard_run(), b"first\n")
        (commit,) = await watch.group(0)
        assert commit.output is not None
        assert watch.files() == {commit.output.blob: 6}


async def test_a_segment_whose_name_could_not_be_synced_is_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If this fails, a power cut can take the name of a segment that commits point into."""
    fail_once(monkeypatch, "fsync")
    async with writing(tmp_path) as watch:
        watch.settle(shard_run(), b"first\n")
        (commit,) = await watch.group(0)
        assert watch.troubles == ["segment_unwritable: EIO", None]
        assert commit.output is not None
        assert commit.output.blob == name(2)
        assert watch.bytes_of(commit.output) == b"first\n"


async def test_the_segments_name_is_synced_before_anything_is_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync, fdatasync = os.fsync, os.fdatasync

    def noting(sync: Callable[[int], None]) -> Callable[[int], None]:
        def call(fd: int) -> None:
            sync(fd)
            synced.append(str(Path(f"/proc/self/fd/{fd}").readlink()))

        return call

    monkeypatch.setattr(os, "fsync", noting(fsync))
    monkeypatch.setattr(os, "fdatasync", noting(fdatasync))
    async with writing(tmp_path) as watch:
        watch.settle(shard_run())
        await watch.group(0)
        assert synced == [str(tmp_path), str(tmp_path / name(1))]


async def test_nothing_is_appended_to_a_segment_that_somebody_removed(tmp_path: Path) -> None:
    async with writing(tmp_path) as watch:
        run = shard_run()
        watch.settle(run, b"first\n")
        await watch.group(0)
        (tmp_path / name(1)).unlink()
        watch.settle(run, b"second\n")
        (commit,) = await watch.group(1)
        assert watch.bytes_of(commit.output) == b"second\n"


async def test_a_segment_that_cannot_be_created_is_trouble_too(tmp_path: Path) -> None:
    directory = tmp_path / "segments"  # made later
    async with writing(directory) as watch:
        watch.settle(shard_run())
        await watch.until(lambda: watch.troubles == ["segment_unwritable: ENOENT"])
        directory.mkdir()
        (commit,) = await watch.group(0)
        assert watch.troubles[-1] is None
        assert watch.bytes_of(commit.output) == b"{}\n"


# -- syncs that fail or take their time ------------------------------------------------------------


def fail_once(monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """The kernel's next answer to `os.<call>` is EIO; no file system here can be made to say so."""
    real: Callable[[int], None] = getattr(os, call)
    left = [OSError(errno.EIO, os.strerror(errno.EIO))]

    def sync(fd: int) -> None:
        if left:
            raise left.pop()
        real(fd)

    monkeypatch.setattr(os, call, sync)


def hold_sync(monkeypatch: pytest.MonkeyPatch) -> tuple[asyncio.Event, threading.Event]:
    """Syncs say that they began by the first event and wait for the second."""
    began, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    real = os.fdatasync

    def sync(fd: int) -> None:
        loop.call_soon_threadsafe(began.set)
        go_on.wait(SOON_S)
        real(fd)

    monkeypatch.setattr(os, "fdatasync", sync)
    return began, go_on


async def test_a_segment_that_rests_is_closed_and_the_next_lines_go_to_a_new_one(
    tmp_path: Path,
) -> None:
    async with writing(tmp_path, idle_s=0.02) as watch:
        run = shard_run()
        watch.settle(run)
        (first,) = await watch.group(0)
        # Not before the store has answered: until then the commit may be sent again.
        await asyncio.sleep(0.1)
        assert watch.closed == []
        watch.writer.answered([True])
        await watch.until(lambda: len(watch.closed) == 1)
        await asyncio.sleep(0.1)  # one that is closed is not closed again
        watch.settle(run)
        (second,) = await watch.group(1)
        watch.writer.answered([True])
        await watch.until(lambda: len(watch.closed) == 2)
    assert first.output is not None
    assert second.output is not None
    assert watch.closed == [first.output.blob, second.output.blob]
    assert watch.bytes_of(first.output) == watch.bytes_of(second.output) == b"{}\n"
