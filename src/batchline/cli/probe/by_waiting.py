"""Does a close stop a generation, by what a short request has to wait: where no page tells.

A crowd of generations keeps the backend so busy that a short request waits. Then the crowd is
closed. Does the short request still wait, they went on. Does it not, they may have ended by
themselves just then: so another crowd is closed sooner than the first was seen at work.
"""

from __future__ import annotations

import asyncio
from statistics import median
from typing import Final

from batchline.cli.probe.target import Asked, Target
from batchline.cli.probe.verdicts import Closing, Inconclusive, Verdict

CROWDS: Final = (4, 12)
_USUAL_LOOKS: Final = 3
_LOOKS_AFTER: Final = 2
_LEAST_MORE_S: Final = 0.3  # below, waiting is not told from noise


class ByWaiting:
    """The experiment on one backend, with answers asked for whole or as streams."""

    def __init__(self, target: Target, *, stream: bool) -> None:
        self._target = target
        self._stream = stream

    async def verdict(self) -> Closing:
        """Run it.

        Raises:
            Inconclusive, OutOfBudget, UpstreamError.
        """
        usual_s = median([await self._wait_of_a_short_one() for _ in range(_USUAL_LOOKS)])
        for count in CROWDS:
            crowd = await self._crowd(count, for_s=self._target.pace.busy_after_s)
            busy_s = await self._wait_of_a_short_one()
            if busy_s >= max(2 * usual_s, usual_s + _LEAST_MORE_S):
                return await self._closed(crowd, usual_s, busy_s)
            await self._target.hang_up(*crowd)
        raise Inconclusive(
            f"no metrics, and {CROWDS[-1]} generations at once do not make a short request wait"
        )

    async def _closed(
        self, crowd: list[asyncio.Task[Asked]], usual_s: float, busy_s: float
    ) -> Closing:
        pace = self._target.pace
        count = len(crowd)
        cut = await self._target.hang_up(*crowd)
        if cut < count:
            raise Inconclusive(f"{count - cut} of {count} generations ended before their close")
        free_s = usual_s + (busy_s - usual_s) / 3
        after_s = []
        for _ in range(_LOOKS_AFTER):
            await asyncio.sleep(pace.pause_s)
            after_s.append(await self._wait_of_a_short_one())
        beside = f"by waiting: beside {count} generations a short request took {self._said(busy_s)}"
        if min(after_s) > free_s:
            return Closing(
                verdict=Verdict.REFUTED,
                evidence=f"{beside}, after their close still {self._said(min(after_s))}",
            )
        again = await self._crowd(count, for_s=pace.busy_after_s - pace.pause_s)
        cut = await self._target.hang_up(*again)
        await asyncio.sleep(pace.pause_s)
        closed_s = await self._wait_of_a_short_one()
        if cut < count or closed_s > free_s:
            raise Inconclusive(
                f"{beside}, after their close {self._said(after_s[-1])}, after the close of {cut}"
                f" others {self._said(closed_s)}"
            )
        return Closing(
            verdict=Verdict.PROVEN,
            evidence=f"{beside}, beside as many closed ones {closed_s:.2f} s; alone {usual_s:.2f}",
        )

    async def _crowd(self, count: int, *, for_s: float) -> list[asyncio.Task[Asked]]:
        """So many generations that have been at work for `for_s`."""
        self._target.needs(seconds=for_s, requests=count + 1)
        crowd = [await self._taken()]
        crowd += [self._target.long(stream=self._stream) for _ in range(count - 1)]
        await asyncio.sleep(for_s)
        return crowd

    async def _taken(self) -> asyncio.Task[Asked]:
        """A long request that the backend did not refuse at once."""
        while True:
            running = self._target.long(stream=self._stream)
            await asyncio.wait([running], timeout=self._target.pace.refused_within_s)
            if not self._target.asks_for_less(running):
                return running

    async def _wait_of_a_short_one(self) -> float:
        """How long a short request takes; `short_most_s` when longer than that."""
        most_s = self._target.pace.short_most_s
        try:
            asked = await self._target.short(most_s=most_s)
        except TimeoutError:
            return most_s
        if asked.answer.status >= 300:
            raise Inconclusive(f"a short request was answered with status {asked.answer.status}")
        return asked.took_s

    def _said(self, seconds: float) -> str:
        if seconds >= self._target.pace.short_most_s:
            return f"more than {seconds:.1f} s"
        return f"{seconds:.2f} s"
