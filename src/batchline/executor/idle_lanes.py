"""Lanes that have a permit and nothing to send: said, so that another worker gets it.

It matters where there are hardly more permits than workers: a lane that has several shares them out
among its own lines. So only lanes with one permit or none are looked at, and only while there are
some that have shards; nothing of this is in the way of a line.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from batchline.executor import messages as m
from batchline.executor.lane import Lane

LOOK_S: Final = 0.05  # a permit is idle for so long at most; each look costs some microseconds


class IdleLanes:
    """One worker's. `has_shards` says whether it has shards that may go to a backend."""

    def __init__(
        self, *, has_shards: Callable[[str], bool], send: Callable[[m.ToControl], None]
    ) -> None:
        self._has_shards = has_shards
        self._send = send
        self._watched: dict[Lane, bool] = {}  # whether the last word on it was that it is idle
        self._next: asyncio.TimerHandle | None = None

    def watch(self, lane: Lane) -> None:
        """Its permits have changed."""
        if lane.permits <= 1 and lane not in self._watched:
            self._watched[lane] = False
            if self._next is None:
                self._next = asyncio.get_running_loop().call_later(LOOK_S, self._look)

    def close(self) -> None:
        """Look at nothing any more."""
        if self._next is not None:
            self._next.cancel()

    def _look(self) -> None:
        for lane, was_idle in list(self._watched.items()):
            watched = lane.permits <= 1 and self._has_shards(lane.backend)
            # Whoever is not looked at any more is taken to have lines, as in the beginning.
            idle = watched and _is_idle(lane)
            if idle != was_idle:
                self._send(m.LaneIdle(lane.backend, idle))
            if watched:
                self._watched[lane] = idle
            else:
                del self._watched[lane]
        self._next = None
        if self._watched:
            self._next = asyncio.get_running_loop().call_later(LOOK_S, self._look)


def _is_idle(lane: Lane) -> bool:
    return not lane.in_flight and not any(source.has_line for source in lane.runs)
