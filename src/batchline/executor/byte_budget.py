"""The bytes that one worker holds: lines that are in flight, and results until they are on disk."""

from __future__ import annotations

from batchline.executor.beside import Beside


class ByteBudget:
    """Plain counts, which the worker's parts add to and take from: each line does it four times.

    What is held may exceed `limit` by one line of any size, and by what `beside` allows.
    """

    __slots__ = ("beside", "held", "limit", "unwritten")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.beside = Beside(limit)
        self.held = 0
        self.unwritten = 0  # of these: results that are not on disk

    def keep(self, size: int) -> None:
        """A result, or a part of one, is held until it is on disk."""
        self.held += size
        self.unwritten += size

    def written(self, size: int) -> bool:
        """Results are held no longer; whether lines may go now that could not."""
        was_over = self.held >= self.limit
        self.held -= size
        self.unwritten -= size
        if was_over:
            self.beside.freed(self.held)
        return was_over
