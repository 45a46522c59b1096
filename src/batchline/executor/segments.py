"""A worker's results made durable: appended in wire form, synced in groups, committed by message.

All shards of a worker share one append-only file (32 dirty files per commit cost 20 times one, see
measured-ceilings). Every `interval_s` at most, what settled since is written as one group, synced,
and only then offered to the store, one commit per shard. An offset below `_durable_to` is on disk.

After a failed write the file is cut back to `_durable_to` and the same bytes are tried again. After
a failed sync the kernel may have dropped the pages and forgotten (fsyncgate), so the segment is
abandoned and the group is written again, from memory, to a new one.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from batchline.domain.ids import BlobName
from batchline.domain.model import BlobKind, BlobRange, ShardCommit
from batchline.durable import sync_data, sync_folder
from batchline.executor.blocks import Blocks, gathered
from batchline.executor.line import Gate
from batchline.executor.shard_run import ShardRun, Snapshot
from batchline.telemetry import probe

RETRY_S: Final = 0.5  # between tries while the disk does not take a group
MAX_UNANSWERED: Final = 8  # groups on disk whose commit the store has not answered


@dataclass(frozen=True, slots=True)
class _Part:
    run: ShardRun
    snapshot: Snapshot
    output: Blocks
    errors: Blocks
    partials: Blocks

    @property
    def size(self) -> int:
        return self.output.size + self.errors.size + self.partials.size


class SegmentWriter:
    """Group commit for one worker. Used on the event loop; only the file is touched in a thread."""

    def __init__(
        self,
        directory: Path,
        worker: str,
        *,
        interval_s: float,
        segment_bytes: int,
        idle_s: float,
        send_commit: Callable[[Sequence[ShardCommit]], None],
        on_trouble: Callable[[str | None], None],
        on_progress: Callable[[int], None],
        on_answer: Callable[[ShardRun, bool], None],
        on_closed: Callable[[], None],
    ) -> None:
        """`on_progress` hears how many bytes left memory, `on_answer` each commit's fate.

        `on_closed` hears that there was nothing to write for `idle_s` and that the segment is
        closed: nothing is appended to it any more, and every commit on it has been answered.
        """
        self._directory = directory
        self._worker = worker
        self._interval_s = interval_s
        self._segment_bytes = segment_bytes
        self._idle_s = idle_s
        self._send_commit = send_commit
        self._on_trouble = on_trouble
        self._on_progress = on_progress
        self._on_answer = on_answer
        self._on_closed = on_closed
        self._dirty: dict[ShardRun, None] = {}  # in the order in which they became dirty
        self._wake = asyncio.Event()
        self._hurry = asyncio.Event()
        self._unanswered: deque[list[ShardRun]] = deque()
        self._answered = asyncio.Event()
        self._fd = -1
        self._name = BlobName("")
        self._number = 0
        self._durable_to = 0
        self._in_trouble = False

    # -- called by the worker --------------------------------------------------------------

    def dirty(self, run: ShardRun) -> None:
        """`run` has uncommitted lines; they are on disk and offered within the interval."""
        if run not in self._dirty:
            self._dirty[run] = None
            self._wake.set()

    def hurry(self) -> None:
        """Do not wait out the interval: somebody waits for the commit (a cancel, a drain)."""
        self._hurry.set()

    def answered(self, accepted: Sequence[bool]) -> None:
        """The store's answer to the oldest group that it has not answered yet."""
        runs = self._unanswered.popleft()
        self._answered.set()
        for run, ok in zip(runs, accepted, strict=True):
            run.uncommitted_groups -= 1
            self._on_answer(run, ok)

    # -- the loop --------------------------------------------------------------------------

    async def run(self) -> None:
        """Write groups until cancelled."""
        loop = asyncio.get_running_loop()
        last = loop.time() - self._interval_s
        while True:
            await self._until_dirty()
            await self._pause_until(last + self._interval_s)
            last = loop.time()
            while len(self._unanswered) >= MAX_UNANSWERED:
                self._answered.clear()
                await self._answered.wait()
            await self._write_group()

    async def _until_dirty(self) -> None:
        """Wait for something to write; a segment that rests is closed meanwhile.

        An open one is kept for its worker even when the last file on it is gone, so that the bytes
        of expired results would stay on disk for as long as nothing else is run.
        """
        while not self._wake.is_set():
            try:
                async with asyncio.timeout(None if self._fd < 0 else self._idle_s):
                    await self._wake.wait()
            except TimeoutError:
                if not self._unanswered:
                    self._abandon()
                    probe("segment.closed")
                    self._on_closed()

    async def _pause_until(self, when: float) -> None:
        delay_s = when - asyncio.get_running_loop().time()
        if delay_s > 0 and not self._hurry.is_set():
            try:
                async with asyncio.timeout(delay_s):
                    await self._hurry.wait()
            except TimeoutError:
                pass
        self._hurry.clear()

    async def _write_group(self) -> None:
        parts = self._cut()
        if not parts:
            return
        ranges = await self._write_durably(parts)
        self._on_progress(sum(part.size for part in parts))
        commits = [
            _commit(part, ranges[number])
            for number, part in enumerate(parts)
            if part.run.gate is not Gate.FENCED
        ]
        for part in parts:
            if part.run.gate is Gate.FENCED:
                part.run.uncommitted_groups -= 1
                self._on_answer(part.run, False)
        if commits:
            self._unanswered.append([p.run for p in parts if p.run.gate is not Gate.FENCED])
            probe("commit.sending")
            self._send_commit(commits)
            probe("commit.sent")

    def _cut(self) -> list[_Part]:
        """Take what every dirty shard settled; from here on it belongs to this group."""
        self._wake.clear()
        runs, self._dirty = list(self._dirty), {}
        parts = []
        for run in runs:
            if run.has_uncommitted:
                snapshot = run.snapshot()
                run.uncommitted_groups += 1
                parts.append(
                    _Part(
                        run,
                        snapshot,
                        gathered(snapshot.outputs),
                        gathered(snapshot.errors),
                        gathered(snapshot.partials),
                    )
                )
        return parts

    async def _write_durably(self, parts: list[_Part]) -> list[tuple[int, int, int, BlobName]]:
        """Put the group on disk, however long that takes; where each part begins.

        Gives (output start, errors start, their end, segment) for each part; its partials follow.
        """
        loop = asyncio.get_running_loop()
        kinds = ((part.output, part.errors, part.partials) for part in parts)
        data = gathered([piece for kind in kinds for one in kind for piece in one.pieces])
        while True:
            try:
                start = await loop.run_in_executor(None, self._append, data)
                break
            except OSError as exc:
                self._in_trouble = True
                self._on_trouble(_reason(exc))
                await asyncio.sleep(RETRY_S)
        if self._in_trouble:
            self._in_trouble = False
            self._on_trouble(None)
        ranges = []
        for part in parts:
            middle = start + part.output.size
            end = middle + part.errors.size
            ranges.append((start, middle, end, self._name))
            start = end + part.partials.size
        return ranges

    # -- the file (in a thread) ------------------------------------------------------------

    def _append(self, data: Blocks) -> int:
        """Write and sync `data`; the offset where it begins. Nothing counts when this raises."""
        if self._fd >= 0 and os.fstat(self._fd).st_nlink == 0:
            self._abandon()  # somebody removed it: what is appended could never be read
        if self._fd < 0 or self._durable_to >= self._segment_bytes:
            self._begin_segment()
        start = self._durable_to
        try:
            probe("segment.writing")
            end = start
            for piece in data.pieces:
                _write_all(self._fd, piece, end)
                end += len(piece)
            probe("segment.written")
        except OSError:
            os.ftruncate(self._fd, start)
            raise
        try:
            sync_data(self._fd)
        except OSError:
            self._abandon()
            raise
        probe("segment.synced")
        self._durable_to = end
        return start

    def _begin_segment(self) -> None:
        self._abandon()
        self._number += 1
        name = f"{BlobKind.SEGMENT.value}-{self._worker}-{self._number:06d}"
        probe("segment.creating")
        self._fd = os.open(
            self._directory / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600
        )
        self._name, self._durable_to = BlobName(name), 0
        try:
            # Else the name, and all behind it, may be gone after a power cut.
            sync_folder(self._directory)
        except OSError:
            self._abandon()
            raise
        probe("segment.created")

    def _abandon(self) -> None:
        """Close the segment; one on which nothing can count goes, or each try would leave one."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)
            if self._durable_to == 0:
                with suppress(OSError):
                    (self._directory / self._name).unlink()


def _commit(part: _Part, where: tuple[int, int, int, BlobName]) -> ShardCommit:
    start, middle, end, name = where
    shard = part.run.work.shard
    return ShardCommit(
        key=shard.key,
        epoch=shard.epoch,
        output=_range(name, start, middle, part.output),
        errors=_range(name, middle, end, part.errors),
        settled=part.snapshot.settled,
        completed=part.snapshot.completed,
        failed=part.snapshot.failed,
        usage=part.snapshot.usage,
        failed_lines=part.snapshot.failed_lines,
        partials=_range(name, end, end + part.partials.size, part.partials),
        saved_lines=part.snapshot.saved_lines,
    )


def _range(name: BlobName, start: int, stop: int, data: Blocks) -> BlobRange | None:
    if start == stop:
        return None
    return BlobRange(blob=name, start=start, stop=stop, crc=data.crc())


def _write_all(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def _reason(exc: OSError) -> str:
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return "disk_full"
    return f"segment_unwritable: {errno.errorcode.get(exc.errno or 0, 'unknown')}"
