"""Proxies that answer for a backend that is away: what their pages say of a line (decision 0031).

A page does not tell whether the line came to the backend and brought it down, or found it down. So
at a lane that was given pages, every trial begins with a look. When that finds a page too, a page
for the trial is as good as a refused connection: the backend never saw the line. When it finds the
backend, the line was there, and `Failover` looks whether it went down.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

import msgspec

from batchline.domain.attempts import Outcome
from batchline.executor.lane import Lane
from batchline.executor.line import Line, Trial
from batchline.executor.looks import FULL, Found, look_at, said_by_proxy
from batchline.executor.verdict import Verdict


class Proxies:
    """One worker's. Its event loop is the only reader and writer."""

    def __init__(self, *, fail: Callable[[Exception], None]) -> None:
        """`fail` ends all."""
        self._fail = fail
        self._known: set[Lane] = set()  # a page came through them
        self._before: dict[Lane, Found] = {}  # the look that the last trial began with
        self._misled: set[Lane] = set()  # answers come where looks find a page: they say nothing
        self._tasks: set[asyncio.Task[None]] = set()

    def judged(self, lane: Lane, line: Line, found: Verdict) -> Verdict:
        """What a page means for its line, by the look that its trial began with."""
        self._known.add(lane)
        before = self._before.get(lane) if line.trial is Trial.BACKEND else None
        if before is Found.PAGE:
            return msgspec.structs.replace(
                found, outcome=Outcome.NOT_SENT, reason=said_by_proxy(found.page), cut_off=False
            )
        if before is Found.ALIVE and found.page == FULL:
            # In doubt here only: at any other time it is taken at its word, and costs nothing.
            return msgspec.structs.replace(found, outcome=Outcome.BROKEN, cut_off=True)
        return found

    def looks_first(self, lane: Lane, then: Callable[[], None]) -> bool:
        """Whether a look goes before the trial; `then` is called after it."""
        if lane not in self._known:
            return False
        self._start(partial(self._before_trial, lane, then))
        return True

    def worked(self, lane: Lane) -> None:
        """A trial was answered by the backend itself."""
        if self._before.pop(lane, None) is Found.PAGE:
            self._start(partial(self._check, lane))

    def close(self) -> None:
        """Look at nothing any more."""
        for task in self._tasks:
            task.cancel()

    async def _before_trial(self, lane: Lane, then: Callable[[], None]) -> None:
        found = (await look_at(lane.transport)).found
        if found is Found.ALIVE:
            self._misled.discard(lane)
        if found is Found.PAGE and lane in self._misled:
            self._before.pop(lane, None)
        else:
            self._before[lane] = found
        then()

    async def _check(self, lane: Lane) -> None:
        """The look found a page and the line an answer: it has just come up, or looks mislead."""
        if (await look_at(lane.transport)).found is Found.PAGE:
            self._misled.add(lane)

    def _start(self, work: Callable[[], Awaitable[None]]) -> None:
        task = asyncio.get_running_loop().create_task(self._run(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except Exception as exc:  # noqa: BLE001  # a fault of ours must end the worker loudly
            self._fail(exc)
