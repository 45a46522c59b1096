"""Large answers that are still coming: how many bytes of them a worker holds.

Permits bound how many requests are in flight, not how large their answers are: with 256 images of a
few megabytes under way, a worker would hold a gigabyte. So once the byte budget is used up, answers
that are large already are read no further, and their senders wait. The oldest is always read to its
end, unless results that are not written yet fill the budget: a disk writes those, whatever comes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

LARGE_BYTES: Final = 256 * 1024  # what came of an answer before it counts; and steps after that


class Taker(Protocol):
    """Who reads one answer."""

    def pause(self) -> None:
        """Read no further."""

    def go_on(self) -> None:
        """Read further."""


class Intake:
    """Of one worker, for all of its transports; without a budget everything is read."""

    def __init__(self, budget: int | None = None) -> None:
        self._budget = 2**62 if budget is None else budget
        # Both are the worker's to say: the bytes that count in its budget, and those of them that
        # are results not on disk yet.
        self.held: Callable[[], int] = int
        self.unwritten: Callable[[], int] = int
        self._bytes: dict[Taker, int] = {}  # of large answers, the oldest first
        self._total = 0
        self._paused: set[Taker] = set()

    def took(self, taker: Taker, size: int) -> None:
        """The answer that `taker` reads has come to `size` bytes."""
        self._total += size - self._bytes.get(taker, 0)
        self._bytes[taker] = size
        if not self._has_room and not self._may_end(taker) and taker not in self._paused:
            self._paused.add(taker)
            taker.pause()

    def left(self, taker: Taker) -> None:
        """Its answer is whole, or is given up. Harmless for one that took nothing large."""
        size = self._bytes.pop(taker, None)
        if size is None:
            return
        self._total -= size
        if taker in self._paused:  # its connection may be used again
            self._paused.discard(taker)
            taker.go_on()
        self.freed()

    def freed(self) -> None:
        """Bytes were let go of: whoever may is read further."""
        if not self._paused:
            return
        for taker in [one for one in self._bytes if one in self._paused]:
            if not self._has_room and not self._may_end(taker):
                return
            self._paused.discard(taker)
            taker.go_on()

    @property
    def _has_room(self) -> bool:
        return self.held() + self._total < self._budget

    def _may_end(self, taker: Taker) -> bool:
        return next(iter(self._bytes)) is taker and self.unwritten() < self._budget
