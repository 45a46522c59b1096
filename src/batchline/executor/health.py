"""When looks at a backend say that it is down, before lines find out: a decision of looks alone.

The catalogue looks at every backend every few seconds. A connection that is refused would be
refused to a line too. One look without an answer may be a server that is busy; two in a row are
not, and a line sent there would be held until its time is up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from batchline.executor.catalogue import BackendReport, Reach

SILENT_LOOKS: Final = 2


def is_down(report: BackendReport) -> bool:
    """Whether the looks so far are reason enough to send nothing."""
    if report.reach is not Reach.UNREACHABLE or not report.silent:
        return False
    return not report.connected or report.failures >= SILENT_LOOKS


class Health:
    """Tells when a backend goes down or comes back, once each; the first look that is good tells
    nothing."""

    def __init__(
        self, *, on_down: Callable[[BackendReport], None], on_up: Callable[[str], None]
    ) -> None:
        self._on_down = on_down
        self._on_up = on_up
        self._down: set[str] = set()

    def looked(self, report: BackendReport) -> None:
        """A look at a backend is over, and this is what is known after it."""
        if is_down(report):
            if report.name not in self._down:
                self._down.add(report.name)
                self._on_down(report)
        elif report.reach is Reach.REACHABLE and report.name in self._down:
            self._down.discard(report.name)
            self._on_up(report.name)
