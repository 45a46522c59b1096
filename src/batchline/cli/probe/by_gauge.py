"""Does a close stop a generation, by the engine's own count of the requests that it has in hand.

A control is left alone: the count shows it for `left_alone_s`, or for as long as it takes. Then the
control and two more like it are closed, those after `closed_after_s`. When the count is back well
before the control would have let it, the close did that.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from batchline.cli.probe.recognition import Engine, in_hand
from batchline.cli.probe.target import Asked, Target
from batchline.cli.probe.verdicts import Closing, Inconclusive, Verdict

CLOSES: Final = 2  # beside the control's own
_OF_THE_REST: Final = 0.7
_IDLE_LOOKS: Final = 5  # alike in a row, before the backend counts as idle


class ByGauge:
    """The experiment on one backend, with answers asked for whole or as streams."""

    def __init__(self, target: Target, engine: Engine, *, stream: bool) -> None:
        """`engine` has a `gauge_page`."""
        self._target = target
        self._engine = engine
        self._page = engine.gauge_page or ""
        self._stream = stream
        self._idle = 0  # the count without us

    async def verdict(self) -> Closing:
        """Run it.

        Raises:
            Inconclusive, OutOfBudget, UpstreamError.
        """
        pace = self._target.pace
        self._idle = await self._settled()
        control = await self._started()
        alone_s, ended = await self._left_alone(control)
        # What is closed has to be gone well before it would have ended by itself.
        most_s = _OF_THE_REST * (alone_s - pace.closed_after_s)
        took = []
        if await self._target.hang_up(control):
            took.append(await self._gone(within_s=most_s))
        for _ in range(CLOSES):
            if None in took:
                break
            running = await self._started()
            await asyncio.sleep(pace.closed_after_s)
            if not await self._target.hang_up(running):
                raise Inconclusive("a generation ended before it could be closed")
            took.append(await self._gone(within_s=most_s))
        gone = [one for one in took if one is not None]
        if len(gone) < len(took):
            evidence = (
                f"by {self._page}: {most_s:.1f} s after a close {self._idle + 1} requests were"
                f" still in hand, and {self._idle} before"
            )
            return Closing(verdict=Verdict.REFUTED, evidence=evidence)
        evidence = (
            f"by {self._page}: left alone it ran for {alone_s:.1f} s{'' if ended else ' and on'};"
            f" {len(gone)} were closed, each was gone within {max(pace.poll_s, *gone):.1f} s"
        )
        return Closing(verdict=Verdict.PROVEN, evidence=evidence)

    async def _read(self) -> int:
        page = await self._target.page(self._page)
        value = None if page is None else in_hand(self._engine, page)
        if value is None:
            raise Inconclusive(f"{self._page} stopped telling how many requests there are")
        return value

    async def _settled(self) -> int:
        """The count, once it holds still."""
        seen: list[int] = []
        deadline = time.monotonic() + self._target.pace.settles_within_s
        while len(seen) < _IDLE_LOOKS or len(set(seen[-_IDLE_LOOKS:])) > 1:
            if time.monotonic() > deadline:
                raise Inconclusive(f"{self._page} never held still: others use the backend")
            seen.append(await self._read())
            await asyncio.sleep(self._target.pace.poll_s)
        return seen[-1]

    async def _until(
        self,
        wanted: int,
        other: int,
        *,
        within_s: float,
        unless: asyncio.Task[Asked] | None = None,
    ) -> float | None:
        """How long until the count was `wanted`; None when it stayed `other` all the time, or until
        `unless` was over."""
        begun = time.monotonic()
        while True:
            value = await self._read()
            took_s = time.monotonic() - begun
            if value == wanted:
                return took_s
            if value != other:
                raise Inconclusive(f"{self._page} went to {value}: others use the backend")
            if took_s > within_s or (unless is not None and unless.done()):
                return None
            self._target.needs(seconds=self._target.pace.poll_s)
            await asyncio.sleep(self._target.pace.poll_s)

    async def _started(self) -> asyncio.Task[Asked]:
        """A long request that the count shows."""
        within_s = self._target.pace.starts_within_s
        while True:
            running = self._target.long(stream=self._stream)
            shown_s = await self._until(
                self._idle + 1, self._idle, within_s=within_s, unless=running
            )
            if shown_s is not None:
                return running
            if self._target.asks_for_less(running):
                continue
            if running.done():
                status = running.result().answer.status
                raise Inconclusive(f"a long request was over at once, with status {status}")
            raise Inconclusive(f"{self._page} did not show a request that ran")

    async def _left_alone(self, control: asyncio.Task[Asked]) -> tuple[float, bool]:
        """For how long the count showed it, and whether it ended by itself."""
        pace = self._target.pace
        begun = time.monotonic()
        ended_s = await self._until(self._idle, self._idle + 1, within_s=pace.left_alone_s)
        if ended_s is None:
            return time.monotonic() - begun, False
        if ended_s < pace.least_left_alone_s:
            raise Inconclusive(f"its longest generation takes only {ended_s:.1f} s")
        await asyncio.wait([control], timeout=pace.pause_s)
        if not control.done():
            raise Inconclusive(f"{self._page} no longer showed a request that ran")
        return ended_s, True

    async def _gone(self, *, within_s: float) -> float | None:
        """How long after a close the count was back; None when it was not by `within_s`."""
        pace = self._target.pace
        begun = time.monotonic()
        if await self._until(self._idle, self._idle + 1, within_s=within_s / 2) is not None:
            return time.monotonic() - begun
        # An engine that has nothing to do may not write its count anew. So it gets something to do.
        left_s = within_s - (time.monotonic() - begun)
        try:
            await self._target.short(most_s=min(pace.short_most_s, left_s))
        except TimeoutError:
            return None
        left_s = within_s - (time.monotonic() - begun)
        if await self._until(self._idle, self._idle + 1, within_s=left_s) is None:
            return None
        took_s = time.monotonic() - begun
        return took_s if took_s <= within_s else None
