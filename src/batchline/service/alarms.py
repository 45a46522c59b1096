"""Stored bytes that are not what they were: said in the log and counted for readiness."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from batchline import telemetry

SAID_AT_ONCE: Final = 100  # log lines of one finding; a lost segment has thousands of ranges


@dataclass(slots=True)
class Alarms:
    """What was found damaged since the start of the server. Belongs to one event loop.

    `damaged` counts committed ranges, and downloads and batches that met damaged bytes.
    """

    damaged: int = 0

    def range_corrupt(
        self, *, batch_id: str, blob: str, start: int, size: int, lines: int | None, damage: str
    ) -> None:
        """A committed range is damaged; its `lines` run again, unless None: then it stays."""
        self.damaged += 1
        telemetry.trouble(
            "range_corrupt",
            batch_id=batch_id,
            blob=blob,
            start=start,
            bytes=size,
            lines=lines,
            damage=damage,
        )

    def ranges_corrupt(self, *, batch_id: str, ranges: int, unsaid: int) -> None:
        """More ranges than are named one by one."""
        self.damaged += unsaid
        telemetry.trouble("ranges_corrupt", batch_id=batch_id, ranges=ranges)

    def file_corrupt(self, *, file_id: str) -> None:
        """A download met bytes that are not those of the file; it was broken off."""
        self.damaged += 1
        telemetry.trouble("file_corrupt", file_id=file_id)

    def input_corrupt(self, *, batch_id: str) -> None:
        """The input of a batch is damaged."""
        self.damaged += 1
        telemetry.trouble("input_corrupt", batch_id=batch_id)
