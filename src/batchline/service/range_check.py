"""Holds committed ranges against the CRC-32C that was stored with them, before they become a file.

A batch of a few megabytes is read in a thread, so that its end does not wait until a child is free;
a larger one in a child process (`jobs.py`), some thousands of ranges at a time. A slow backend's
batch has a range for every few lines, so they are packed as they come from the store and named
again only where they are damaged.
"""

from __future__ import annotations

import asyncio
import errno
import os
import struct
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

import google_crc32c

from batchline.domain.errors import StoreUnavailable
from batchline.domain.ids import BatchId, BlobName
from batchline.domain.job_queue import JobTerms
from batchline.domain.model import Batch, CommittedRange
from batchline.service.jobs import JobFailed, Jobs
from batchline.service.project_weights import ProjectWeights, weight_of
from batchline.store.blob_contract import BlobStore
from batchline.store.contract import Store

# A millisecond or two of a thread, with the interpreter's lock in pieces of 20 µs.
IN_A_THREAD_RANGES: Final = 64
IN_A_THREAD_BYTES: Final = 4 * 1024 * 1024

_PAGE: Final = 128  # rows of the store: at 1 KB each while they are taken over
_JOB_RANGES: Final = 2_048  # a message of 50 KB; between two jobs others may have the child
_LIGHTER: Final = 16  # a byte is checked in so small a part of the time of validating one
_BLOCK_BYTES: Final = 64 * 1024  # stays in the cache between the read and the CRC


class Damage(StrEnum):
    """What is wrong with a range."""

    GONE = "gone"
    SHORT = "short"
    UNREADABLE = "unreadable"
    CHANGED = "changed"


_RANGE: Final = struct.Struct("<IQQI")  # number of its path, start, size, CRC


class StoredRange(NamedTuple):
    """`size` bytes at `start` of the file at `path`, and their CRC-32C."""

    path: str
    start: int
    size: int
    crc: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckJob:
    """Ranges, packed: 24 bytes each, and one path for all that are in a file."""

    paths: Sequence[str]
    ranges: bytes

    @classmethod
    def of(cls, ranges: Iterable[StoredRange]) -> CheckJob:
        packed = _Packed()
        for one in ranges:
            packed.add(one)
        return packed.job()

    def __len__(self) -> int:
        return len(self.ranges) // _RANGE.size

    @property
    def size(self) -> int:
        """Bytes in all ranges together."""
        return sum(size for _, _, size, _ in _RANGE.iter_unpack(self.ranges))


class _Packed:
    """A job that grows."""

    def __init__(self) -> None:
        self._paths: dict[str, int] = {}  # and the number of each
        self._ranges = bytearray()

    def add(self, one: StoredRange) -> None:
        number = self._paths.setdefault(one.path, len(self._paths))
        self._ranges += _RANGE.pack(number, one.start, one.size, one.crc)

    def job(self) -> CheckJob:
        return CheckJob(paths=list(self._paths), ranges=bytes(self._ranges))


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
    opened, fd = -1, -1
    try:
        for at, (path, start, size, crc) in enumerate(_RANGE.iter_unpack(job.ranges)):
            if path != opened:
                fd = _close(fd)
                opened, fd = path, _open(job.paths[path])
            found = Damage.GONE if fd < 0 else _damage_of(fd, start, size, crc)
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


def _damage_of(fd: int, start: int, size: int, expected: int) -> Damage | None:
    crc = done = 0
    while done < size:
        try:
            block = os.pread(fd, min(_BLOCK_BYTES, size - done), start + done)
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
    return None if crc == expected else Damage.CHANGED


@dataclass(frozen=True, slots=True, kw_only=True)
class RangeCheck:
    """Checks everything that is committed of a batch."""

    store: Store
    blobs: BlobStore
    jobs: Jobs
    weights: ProjectWeights | None = None  # of projects; None: all are the same

    async def damaged(self, batch: Batch) -> Sequence[DamagedRange]:
        """The damaged ranges, in order; what has no CRC is taken for good.

        Raises:
            StoreUnavailable: it could not be found out now.
        """
        found: list[DamagedRange] = []
        after: int | None = 0
        while after is not None:
            job, sequences, after = await self._gather(batch.id, after)
            result = await self._check(job, batch)
            if result.damaged:
                by_sequence = {sequences[at]: what for at, what in result.damaged.items()}
                found += await self._named(batch.id, by_sequence)
        return found

    async def _gather(
        self, batch_id: BatchId, after: int
    ) -> tuple[CheckJob, Sequence[int], int | None]:
        """The next ranges that have a CRC, some thousands of them, and their sequences; after which
        one it goes on."""
        packed = _Packed()
        sequences = array("Q")
        paths: dict[BlobName, str] = {}  # many ranges are in one segment
        while len(sequences) < _JOB_RANGES:
            page = await self.store.committed_ranges(batch_id, after=after, limit=_PAGE)
            for part, sequence in ((one.part, one.sequence) for one in page):
                if part.crc is not None:
                    if part.blob not in paths:
                        paths[part.blob] = str(self.blobs.path(part.blob))
                    size = part.stop - part.start
                    packed.add(StoredRange(paths[part.blob], part.start, size, part.crc))
                    sequences.append(sequence)
            if len(page) < _PAGE:
                return packed.job(), sequences, None
            after = page[-1].sequence
        return packed.job(), sequences, after

    async def _named(self, batch_id: BatchId, what: Mapping[int, Damage]) -> list[DamagedRange]:
        """The damaged ranges, by their sequences, as the store has them; in order."""
        found: list[DamagedRange] = []
        after, last = min(what) - 1, max(what)
        while after < last:
            page = await self.store.committed_ranges(batch_id, after=after, limit=_PAGE)
            if not page:
                break
            found += [DamagedRange(one, what[one.sequence]) for one in page if one.sequence in what]
            after = page[-1].sequence
        return found

    async def _check(self, job: CheckJob, batch: Batch) -> CheckResult:
        try:
            if len(job) <= IN_A_THREAD_RANGES and job.size <= IN_A_THREAD_BYTES:
                return await asyncio.to_thread(check_ranges, job)
            return await self.jobs.run(check_ranges, job, terms=await self._terms(job, batch))
        except (OSError, JobFailed) as exc:
            raise StoreUnavailable(f"the results could not be checked: {exc}") from exc

    async def _terms(self, job: CheckJob, batch: Batch) -> JobTerms:
        return JobTerms(
            project=batch.project_id,
            weight=await weight_of(self.weights, batch.project_id),
            work=job.size / _LIGHTER,
            urgent=True,
        )
