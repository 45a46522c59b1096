"""The error lines of request lines that are left out of a batch: `invalid_lines: "skip"` (X4).

They are written while validation reads the file, and are part of the error file from the start of
the batch on.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import google_crc32c
import msgspec

from batchline.domain import ids
from batchline.domain.ids import BatchId
from batchline.domain.model import LineProblem
from batchline.service.scratch import write_all
from batchline.telemetry import probe

_BUFFER_BYTES: Final = 256 * 1024

_encode: Final = msgspec.json.encode


@dataclass(frozen=True, slots=True, kw_only=True)
class SkipSettings:
    """Where the error lines of one batch go; what is at `path` is replaced."""

    batch_id: str
    path: str


class SkippedLines:
    """Grows at `path`; it counts after `sync`, and `close` removes it unless it is to be kept.

    Every method may raise OSError (a full disk).
    """

    def __init__(self, settings: SkipSettings) -> None:
        self._prefix = ids.line_id_prefix(BatchId(settings.batch_id)).encode()
        self._path = Path(settings.path)
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._buffer = bytearray()
        self._kept = False
        self.lines = 0
        self.crc = 0  # CRC-32C of what was written; of all of it after `sync`

    def add(self, problem: LineProblem, custom_id: str | None) -> None:
        """Add the error line of a line's `problem`; `custom_id` None: the line has none."""
        error = {
            "code": problem.code,
            "message": problem.message,
            "param": problem.param,
            "line": problem.line_number,
        }
        self._buffer += b'{"id":"%b%08x","custom_id":%b,"response":null,"error":%b}\n' % (
            self._prefix,
            problem.line_number or 0,
            _encode(custom_id),
            _encode(error),
        )
        self.lines += 1
        if len(self._buffer) >= _BUFFER_BYTES:
            self._flush()

    def sync(self) -> None:
        """Make what was added durable."""
        self._flush()
        os.fsync(self._fd)
        probe("skipped.synced")

    def keep(self) -> None:
        self._kept = True

    def close(self) -> None:
        os.close(self._fd)
        if not self._kept:
            self._path.unlink(missing_ok=True)

    def _flush(self) -> None:
        data = bytes(self._buffer)
        write_all(self._fd, data)
        self.crc = google_crc32c.extend(self.crc, data)
        self._buffer.clear()
