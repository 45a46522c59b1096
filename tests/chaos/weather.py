"""The backend goes away and comes back, beside everything else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from tests.chaos.records import BadWeather
from tests.chaos.schedule import Outage, Weather
from tests.support.scripted_backend import Answer, BackendControl, Script

FINE: Final = Script(answer=Answer(latency_s=0.02, latency_max_s=0.15))


class Sky:
    """Times of bad weather; the backend is well before, between and afterwards."""

    def __init__(self, backend: BackendControl) -> None:
        self._backend = backend
        self.bad: list[BadWeather] = []

    async def run(self, outages: Iterator[Outage]) -> None:
        """Go on until cancelled; good weather is left behind."""
        try:
            for outage in outages:
                await asyncio.sleep(outage.calm_s)
                bad = BadWeather(what=outage.weather.value, since=time.time(), until=float("inf"))
                self.bad.append(bad)
                await self._begin(outage.weather)
                await asyncio.sleep(outage.length_s)
                await self._clear_up()
                bad.until = time.time()
        finally:
            await self._clear_up()
            for bad in self.bad:
                bad.until = min(bad.until, time.time())

    async def _begin(self, weather: Weather) -> None:
        match weather:
            case Weather.REFUSES:
                await self._backend.go_down()
            case Weather.HANGS:
                await self._backend.set_script(replace(FINE, answer=Answer(hold=True)))
            case Weather.SHEDS:
                await self._backend.set_script(replace(FINE, answer=Answer(status=503)))

    async def _clear_up(self) -> None:
        await self._backend.come_up()
        await self._backend.set_script(FINE)
        await self._backend.release()
