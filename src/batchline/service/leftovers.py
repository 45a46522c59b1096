"""Writes the never-run lines of a stopped batch: an error line for each line without a result.

Runs in a child process (`jobs.py`). Holds one shard of the plan and one block of the input.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import google_crc32c

from batchline.domain import bitmap, ids, plan
from batchline.domain.errors import BlobUnreadable
from batchline.domain.ids import BatchId
from batchline.domain.lines import custom_id_raw_at
from batchline.domain.partials import with_partial
from batchline.domain.results import Failure, failure_tail
from batchline.service.inputs import BLOCK_BYTES, InputFile
from batchline.service.partials import Partials, PartialsRange
from batchline.service.scratch import disk_trouble_named, write_all
from batchline.telemetry import probe

_Entry = tuple[int, int, int, int]  # as in plan.ENTRY: offset, length, line number, prefix hash

# Lines that lie further apart than this many times their own length are read one by one.
_SPARSE: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfinished:
    """A shard and its bitmap of settled entries, as committed; empty when none is."""

    first_entry: int
    entries: int
    settled: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftoversJob:
    """Whose lines never ran, why, and where their error lines go.

    `failure` is BATCH_CANCELLED or BATCH_EXPIRED. What is at `output_path` is replaced. `partials`:
    what came of some of these lines before they were cut off goes into their error lines.
    """

    batch_id: str
    input_path: str
    input_bytes: int
    plan_path: str
    shards: Sequence[Unfinished]
    failure: Failure
    output_path: str
    partials: Sequence[PartialsRange] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftoversResult:
    """How many lines were written, their bytes in all and the CRC-32C of those.

    The file is durable, even when empty. `lost_partials` counts the ranges and the bodies of
    partials that could not be read.
    """

    lines: int
    bytes: int
    crc: int
    lost_partials: int = 0


def write_leftovers(job: LeftoversJob) -> LeftoversResult:
    """Write one error line for every clear bit, shard by shard, in file order, and sync the file.

    When an error is raised, no file is left behind. About 1.5 us a line.

    Raises:
        BlobUnreadable: the input or the plan is gone, short or damaged.
        StorageFull: no room for the lines.
        StoreUnavailable: the disk does not take them.
    """
    path = Path(job.output_path)
    with (
        disk_trouble_named(),
        InputFile(job.input_path, job.input_bytes) as source,
        _PlanFile(job.plan_path) as planned,
    ):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            result = _write(job, planned, source, fd)
            os.fsync(fd)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)
        probe("never_run.synced")
        return result


def _write(job: LeftoversJob, planned: _PlanFile, source: InputFile, fd: int) -> LeftoversResult:
    prefix = ids.line_id_prefix(BatchId(job.batch_id)).encode()
    tail = failure_tail(job.failure).replace(b"%", b"%%")
    line = b'{"id":"%b%%08x","custom_id":%%b%b' % (prefix, tail)
    reader = _CustomIdReader(source)
    partials = Partials(job.partials)
    count = size = crc = 0
    for shard in job.shards:
        entries = planned.unsettled(shard)
        custom_ids = reader.read(entries)
        lines = [line % (entry[2], token) for entry, token in zip(entries, custom_ids, strict=True)]
        for written in _with_partials(lines, entries, partials):
            write_all(fd, written)
            size += len(written)
            crc = google_crc32c.extend(crc, written)
        count += len(entries)
    return LeftoversResult(lines=count, bytes=size, crc=crc, lost_partials=partials.unreadable)


def _with_partials(
    lines: list[bytes], entries: Sequence[_Entry], partials: Partials
) -> Iterator[bytes]:
    """The lines of a shard in few pieces: one for each that was cut off, and what is between."""
    begun = 0
    for index, entry in enumerate(entries) if partials else ():
        body = partials.body_of(entry[2])
        if body is not None:
            yield b"".join(lines[begun:index])
            yield with_partial(lines[index], body)
            begun = index + 1
    yield b"".join(lines[begun:])


class _PlanFile:
    """A plan, opened for reading; BlobUnreadable when it is not what it should be."""

    def __init__(self, path: str) -> None:
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as exc:
            raise BlobUnreadable(f"the plan cannot be opened: {exc.strerror}") from exc
        try:
            plan.check_header(os.pread(self._fd, plan.HEADER_BYTES, 0))
        except (OSError, ValueError) as exc:
            os.close(self._fd)
            raise BlobUnreadable("the file is not a plan") from exc

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def unsettled(self, shard: Unfinished) -> list[_Entry]:
        """The entries of a shard whose bit is clear, by their place in the input."""
        offset, length = plan.span(shard.first_entry, shard.entries)
        raw = os.pread(self._fd, length, offset)
        if len(raw) != length:
            raise BlobUnreadable(f"the plan ends before entry {shard.first_entry + shard.entries}")
        # Plain tuples: a PlanEntry each would cost a fifth of the whole.
        entries: list[_Entry] = list(plan.ENTRY.iter_unpack(raw))
        if any(shard.settled):
            clear = bitmap.clear_indexes(shard.settled, shard.entries)
            entries = [entries[index] for index in clear]
        # In dispatch order lines that are neighbours in the input may lie far apart.
        entries.sort()
        return entries


class _CustomIdReader:
    """Reads custom_ids by plan entries, a block of the input at a time where that pays."""

    def __init__(self, source: InputFile) -> None:
        self._source = source
        self._window = b""
        self._start = 0  # of the window in the file

    def read(self, entries: Sequence[_Entry]) -> list[bytes]:
        """The raw custom_id of each entry's line; `entries` ascend by offset."""
        if not entries:
            return []
        span = entries[-1][0] + entries[-1][1] - entries[0][0]
        # In a plan that is grouped by model or prefix, the lines between belong to others.
        dense = span <= _SPARSE * sum(entry[1] for entry in entries)
        window, start = self._window, self._start
        stop = start + len(window)
        tokens = []
        for offset, length, _, _ in entries:
            end = offset + length
            if offset < start or end > stop:
                ahead = min(BLOCK_BYTES, self._source.size - offset) if dense else 0
                window = self._source.at(offset, max(length, ahead))
                start, stop = offset, offset + len(window)
            tokens.append(custom_id_raw_at(window, offset - start, end - start))
        self._window, self._start = window, start
        return tokens
