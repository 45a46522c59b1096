"""Small lines beside large ones: what may go although the byte budget is used up.

A few lines of many megabytes use up the bytes that a worker may hold, and take as long as they
take. Small lines need not wait for them: a part of the budget more is theirs. What is held stays
below the budget, one line, and that part.
"""

from __future__ import annotations

from typing import Final

SMALL_BYTES: Final = 64 * 1024  # larger than nearly every text
_SMALL_SHARE: Final = 256  # a small line is a small part of the budget too
_RESERVE_SHARE: Final = 8


class Beside:
    """Of one worker's byte budget. Asked only while that is used up."""

    __slots__ = ("_budget", "_most", "small_bytes")

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._most: int | None = None  # while the budget is used up
        self.small_bytes = min(SMALL_BYTES, budget // _SMALL_SHARE)

    def allows(self, held: int) -> bool:
        """Whether another small line may go; `held` are the bytes of all lines and results."""
        if self._most is None:
            # From where the last large line went to, which may be far above the budget.
            self._most = held + self._budget // _RESERVE_SHARE
        return held < self._most

    def freed(self, held: int) -> None:
        """Bytes were let go of while the budget was used up."""
        if held < self._budget:
            self._most = None
