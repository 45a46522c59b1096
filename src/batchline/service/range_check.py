"""Holds committed ranges against the CRC-32C that was stored with them, before they become a file.

A batch of a few megabytes is read in a thread, so that its end does not wait until a child is free;
a larger one in a child process (`jobs.py`), a page of ranges at a time.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import google_crc32c

from batchline.domain.errors import StoreUnavailable
from batchline.domain.ids import BatchId
from batchline.domain.model import CommittedRange
from batchline.service.jobs import JobFailed, Jobs
from batchline.store.contract import BlobStore, Store

# A millisecond or two of a thread, with the interpreter's lock in pieces of 20 µs.
IN_A_THREAD_RANGES: Final = 64
IN_A_THREAD_BYTES: Final = 4 * 1024 * 1024

_PAGE: Final = 10_000  # ranges: a message of a megabyte to the child
_BLOCK_BYTES: Final = 256 * 1024  # stays in the cache between the read and the CRC


class Damage(StrEnum):
    """What is wrong with a range."""

    GONE = "gone"
    SHORT = "short"
    UNREADABLE = "unreadable"
    CHANGED = "changed"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRange:
    """`size` bytes at `start` of the file at `path`, and their CRC-32C."""

    path: str
    start: int
    size: int
    crc: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckJob:
    ranges: Sequence[StoredRange]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """The damaged ranges by their place in the job."""

    damaged: dict[int, Damage]


@dataclass(frozen=True, slots=True)
class DamagedRange:
    """A committed range that is not what was stored."""

    committed: CommittedRange
    damage: Damage


def check_ranges(job: CheckJob) -> CheckResult:
    """Read every range. Holds one block.

    Raises:
        OSError: a file could not be read for a reason that says nothing about its bytes.
    """
    damaged: dict[int, Damage] = {}
    path, fd = "", -1
    try:
        for at, one in enumerate(job.ranges):
            if one.path != path:
                fd = _close(fd)
                path, fd = one.path, _open(one.path)
            found = Damage.GONE if fd < 0 else _damage_of(fd, one)
            if found is not None:
                damaged[at] = found
    finally:
        _close(fd)
    return CheckResult(damaged=damaged)


def _open(path: str) -> int:
    """A descriptor, or -1 when there is no such file."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return -1


def _close(fd: int) -> int:
    if fd >= 0:
        os.close(fd)
    return -1


def _damage_of(fd: int, one: StoredRange) -> Damage | None:
    crc = done = 0
    while done < one.size:
        try:
            block = os.pread(fd, min(_BLOCK_BYTES, one.size - done), one.start + done)
        except OSError as exc:
            # The medium gave the bytes up. Anything else (too many files, no memory) passes, and
            # results that were paid for are not given up for it.
            if exc.errno != errno.EIO:
                raise
            return Damage.UNREADABLE
        if not block:
            return Damage.SHORT
        crc = google_crc32c.extend(crc, block)
        done += len(block)
    return None if crc == one.crc else Damage.CHANGED


@dataclass(frozen=True, slots=True, kw_only=True)
class RangeCheck:
    """Checks everything that is committed of a batch."""

    store: Store
    blobs: BlobStore
    jobs: Jobs

    async def damaged(self, batch_id: BatchId) -> Sequence[DamagedRange]:
        """The damaged ranges, in order; what has no CRC is taken for good.

        Raises:
            StoreUnavailable: it could not be found out now.
        """
        found: list[DamagedRange] = []
        after = 0
        while page := await self.store.committed_ranges(batch_id, after=after, limit=_PAGE):
            after = page[-1].sequence
            known = [one for one in page if one.part.crc is not None]
            result = await self._check(CheckJob(ranges=[self._stored(one) for one in known]))
            found += [DamagedRange(known[at], what) for at, what in sorted(result.damaged.items())]
            if len(page) < _PAGE:
                break
        return found

    def _stored(self, one: CommittedRange) -> StoredRange:
        part = one.part
        return StoredRange(
            path=str(self.blobs.path(part.blob)),
            start=part.start,
            size=part.stop - part.start,
            crc=part.crc or 0,
        )

    async def _check(self, job: CheckJob) -> CheckResult:
        size = sum(one.size for one in job.ranges)
        try:
            if len(job.ranges) <= IN_A_THREAD_RANGES and size <= IN_A_THREAD_BYTES:
                return await asyncio.to_thread(check_ranges, job)
            return await self.jobs.run(check_ranges, job, urgent=True)
        except (OSError, JobFailed) as exc:
            raise StoreUnavailable(f"the results could not be checked: {exc}") from exc
