"""Sorts any number of records of one length, in memory that does not grow with their number.

Runs of RUN_RECORDS are sorted in memory and spilled to one unnamed file, then merged as they are
read. What fits one run never touches the disk: a file of 50,000 lines is sorted in memory.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from batchline.service.scratch import unnamed_file, write_all

RUN_RECORDS: Final = 65_536  # 12 MB of Python objects at 150 bytes a record
_AHEAD_BYTES: Final = 16 * 1024 * 1024  # read ahead of all runs together, while they are merged
_AHEAD_OF_ONE: Final = 64 * 1024


class RecordSort:
    """Records of `record_bytes` each, compared byte by byte. Close it to give the space back.

    Every method may raise OSError (a full disk).
    """

    def __init__(self, scratch_dir: Path, record_bytes: int) -> None:
        self._scratch_dir = scratch_dir
        self._record_bytes = record_bytes
        self._held: list[bytes] = []
        self._fd: int | None = None
        self._ends: list[int] = []  # where in the scratch file each run ends

    def add(self, record: bytes) -> None:
        self._held.append(record)
        if len(self._held) >= RUN_RECORDS:
            self._spill()

    def _spill(self) -> None:
        if self._fd is None:
            self._fd = unnamed_file(self._scratch_dir)
        self._held.sort()
        data = b"".join(self._held)
        write_all(self._fd, data)
        self._ends.append((self._ends[-1] if self._ends else 0) + len(data))
        self._held.clear()

    def ascending(self) -> Iterator[bytes]:
        """All records, once; nothing may be added any more."""
        self._held.sort()
        if self._fd is None:
            return iter(self._held)
        ahead = max(min(_AHEAD_OF_ONE, _AHEAD_BYTES // len(self._ends)), self._record_bytes)
        chunk = ahead // self._record_bytes * self._record_bytes
        runs = [
            self._run(self._fd, start, stop, chunk)
            for start, stop in zip([0, *self._ends], self._ends, strict=False)
        ]
        return heapq.merge(*runs, self._held)

    def _run(self, fd: int, start: int, stop: int, chunk: int) -> Iterator[bytes]:
        size = self._record_bytes
        while start < stop:
            data = os.pread(fd, min(chunk, stop - start), start)
            if len(data) % size or not data:
                raise OSError("a scratch file ends before its end")
            start += len(data)
            for at in range(0, len(data), size):
                yield data[at : at + size]

    def close(self) -> None:
        self._held.clear()
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
