"""Room on the disk of the data directory: dispatch stops before it is full, control writes go on.

Below the low-water mark no new line is dispatched; above the high-water mark dispatch resumes. A
reserve file is given up when a control write (a cancel, a commit row) meets a full disk, and taken
again when there is room.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from batchline import telemetry
from batchline.executor.contract import Executor

LOOK_S: Final = 0.5
REASON: Final = "disk_low"


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
        self._free_bytes = free_bytes or free_bytes_of

    @property
    def free_bytes(self) -> int:
        return self._free_bytes(self._directory)

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
            self._reserve.unlink(missing_ok=True)

    def give_up_reserve(self) -> bool:
        """Free the reserve for a control write; False when it was free already."""
        if not self._reserve.exists():
            return False
        self._reserve.unlink(missing_ok=True)
        telemetry.trouble("disk_reserve_released", free_bytes=self.free_bytes)
        return True

    async def run(self, executor: Executor) -> None:
        """Pause and resume `executor` by the marks, for ever."""
        low = False
        while True:
            free = await asyncio.to_thread(self._free_bytes, self._directory)
            if not low and free < self._settings.low_water_bytes:
                low = True
                telemetry.trouble("disk_low", free_bytes=free)
                executor.pause(REASON)
            elif low and free > self._settings.high_water_bytes:
                low = False
                telemetry.event("disk_has_room", free_bytes=free)
                executor.resume()
            if not low:
                await asyncio.to_thread(self.take_reserve)
            await asyncio.sleep(LOOK_S)


def free_bytes_of(directory: Path) -> int:
    """What an unprivileged writer may still use of the directory's file system."""
    stat = os.statvfs(directory)
    return stat.f_bavail * stat.f_frsize
