"""Room on the disk of the data directory: dispatch stops before it is full, control writes go on.

Below the low-water mark no new line is dispatched, uploads are refused and validation waits; above
the high-water mark all of it resumes. What is left is for what must be written: answers in flight,
the files of a batch that ends, rows. A reserve file is given up, slice by slice, to control writes
(a cancel, a commit row) that meet a full disk all the same, and taken again when there is room.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from batchline import telemetry
from batchline.executor.contract import Executor

LOOK_S: Final = 0.5
REASON: Final = "disk_low"
SLICE_BYTES: Final = 1024 * 1024  # of the reserve, at a time: hundreds of control writes


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskSettings:
    """Marks in bytes of free space; `high_water_bytes` is above `low_water_bytes`."""

    low_water_bytes: int = 256 * 1024 * 1024
    high_water_bytes: int = 384 * 1024 * 1024
    reserve_bytes: int = 16 * 1024 * 1024


class DiskGuard:
    """Watches one directory's file system."""

    def __init__(
        self,
        directory: Path,
        settings: DiskSettings,
        *,
        free_bytes: Callable[[Path], int] | None = None,
    ) -> None:
        self._directory = directory
        self._settings = settings
        self._reserve = directory / "reserve"
        self._low = False
        self._free_bytes = free_bytes or free_bytes_of

    @property
    def free_bytes(self) -> int:
        return self._free_bytes(self._directory)

    @property
    def has_room(self) -> bool:
        """Whether there is room for what can wait: uploads, plans."""
        return not self._low

    def take_reserve(self) -> None:
        """Occupy the reserve if there is room for it; harmless when it is there already."""
        want = self._settings.reserve_bytes
        if self._reserve.exists() and self._reserve.stat().st_size == want:
            return
        if self.free_bytes < want + self._settings.low_water_bytes:
            return
        try:
            # Written, not fallocated: macOS cannot do that, and some file systems only pretend to.
            self._reserve.write_bytes(bytes(want))
        except OSError:
            with suppress(OSError):
                self._reserve.unlink(missing_ok=True)

    def give_up_reserve(self) -> bool:
        """Free a slice of the reserve for a control write; False when nothing is left of it.

        Not all at once: what else waits for room would use it up, and the next cancel have none.
        """
        size = self._reserve.stat().st_size if self._reserve.exists() else 0
        if size == 0:
            return False
        os.truncate(self._reserve, max(0, size - SLICE_BYTES))
        telemetry.trouble("disk_reserve_released", left_bytes=max(0, size - SLICE_BYTES))
        return True

    async def run(self, executor: Executor) -> None:
        """Pause and resume `executor` by the marks, for ever; a sick disk changes neither."""
        while True:
            try:
                await self._look(executor)
            except OSError as exc:
                name = errno.errorcode.get(exc.errno or 0, "unknown")
                telemetry.trouble("disk_unreadable", error=name)
            await asyncio.sleep(LOOK_S)

    async def _look(self, executor: Executor) -> None:
        free = await asyncio.to_thread(self._free_bytes, self._directory)
        if not self._low and free < self._settings.low_water_bytes:
            self._low = True
            telemetry.trouble("disk_low", free_bytes=free)
            executor.pause(REASON)
        elif self._low and free > self._settings.high_water_bytes:
            self._low = False
            telemetry.event("disk_has_room", free_bytes=free)
            executor.resume()
        if not self._low:
            await asyncio.to_thread(self.take_reserve)


def free_bytes_of(directory: Path) -> int:
    """What an unprivileged writer may still use of the directory's file system."""
    stat = os.statvfs(directory)
    return stat.f_bavail * stat.f_frsize
