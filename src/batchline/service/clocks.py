"""Time that nobody can set, and how far the wall clock is believed.

The wall clock may be set forward or back while batches run. What the wire shows is wall time all
the same, and what was promised at an instant (`expires_at`) is not done before it. But time that
only the wall clock says has passed closes no window and deletes nothing (decision 0016).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

# A clock that was set forward by mistake is usually put right within this; one that was right to
# jump (it had been wrong before) costs this much patience.
BELIEVED_AFTER_S: Final = 3_600.0

# On Linux CLOCK_MONOTONIC, which `time.monotonic` is, stands still while a laptop sleeps; on macOS
# it goes on, and `time.monotonic` is another one.
_STEADY: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

_STEP_S: Final = 1.0  # less than this between two looks is a clock that is being adjusted


def steady() -> float:
    """Seconds since some moment, those in which the machine slept included."""
    return time.clock_gettime(_STEADY)


class UnhurriedClock:
    """Wall time for what cannot be undone: a jump forward is believed after BELIEVED_AFTER_S.

    Until then time passes as it really does. A clock that is set back is believed at once. To be
    looked at more often than that; the first look, at its making, is believed as it is.
    """

    def __init__(
        self, *, wall: Callable[[], float] = time.time, steady: Callable[[], float] = steady
    ) -> None:
        self._wall = wall
        self._steady = steady
        self._offset = wall() - steady()  # wall time is steady time plus this, as far as believed
        self._ahead_since: float | None = None  # steady

    def __call__(self) -> float:
        now = self._steady()
        offset = self._wall() - now
        if offset <= self._offset + _STEP_S:
            self._believe(offset)
        elif self._ahead_since is None:
            self._ahead_since = now
        elif now - self._ahead_since >= BELIEVED_AFTER_S:
            self._believe(offset)
        return now + self._offset

    def _believe(self, offset: float) -> None:
        self._offset = offset
        self._ahead_since = None
