"""The metrics page of a backend whose limit is learnt: found by asking, read while it is of use."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import pytest

from batchline.executor.contract import BackendSettings, Concurrency
from batchline.executor.engine_load import EngineLoad
from batchline.executor.load_watch import LOOK_S, LoadWatch
from batchline.executor.transport.choice import transport_for
from tests.support.scripted_backend import Script, backend_here

SOON_S = 30.0


@dataclass(slots=True)
class Desk:
    """Who wants to know."""

    wanted: bool = True
    fails_at: int = 0  # the load that is not understood, from 1; 0: all are
    loads: list[EngineLoad] = field(default_factory=list)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def is_wanted(self, backend: str) -> bool:
        assert backend == "engine"
        self._changed.set()
        return self.wanted

    def hear(self, backend: str, load: EngineLoad) -> None:
        assert backend == "engine"
        self.loads.append(load)
        self._changed.set()
        if len(self.loads) == self.fails_at:
            raise ZeroDivisionError

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(SOON_S):
            while not holds():
                self._changed.clear()
                await self._changed.wait()


@asynccontextmanager
async def watching(base_url: str, desk: Desk, concurrency: Concurrency) -> AsyncIterator[None]:
    backend = BackendSettings(name="engine", base_url=base_url, concurrency=concurrency)
    watch = LoadWatch([backend], wanted=desk.is_wanted, heard=desk.hear, transport=transport_for)
    task = asyncio.ensure_future(watch.run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_a_page_is_found_and_read_twice_a_second_while_it_is_wanted() -> None:
    desk = Desk(wanted=False)
    async with (
        backend_here(Script(others=5)) as backend,
        watching(backend.base_url, desk, Concurrency.ADAPTIVE),
    ):
        await desk.until(lambda: True)
        assert desk.loads == []
        desk.wanted = True
        await desk.until(lambda: len(desk.loads) >= 2)
        assert desk.loads[0] == EngineLoad(running=5, waiting=0)
        await backend.set_script(Script(others=9))
        await desk.until(lambda: desk.loads[-1].running == 9)


async def test_a_fault_of_ours_over_one_page_does_not_end_the_looks(
    capsys: pytest.CaptureFixture[str],
) -> None:
    desk = Desk(fails_at=2)
    async with (
        backend_here(Script(others=5)) as backend,
        watching(backend.base_url, desk, Concurrency.ADAPTIVE),
    ):
        await desk.until(lambda: len(desk.loads) >= 4)
    assert '"kind": "ZeroDivisionError"' in capsys.readouterr().err


async def test_a_backend_without_a_page_is_left_alone() -> None:
    desk = Desk()
    async with (
        backend_here() as backend,
        watching(backend.base_url, desk, Concurrency.ADAPTIVE),
    ):
        await asyncio.sleep(2 * LOOK_S)  # nothing happens, which has no event
        assert desk.loads == []


async def test_a_fixed_limit_asks_for_no_page() -> None:
    desk = Desk()
    async with backend_here(Script(others=5)) as backend:
        async with watching(backend.base_url, desk, Concurrency.FIXED):
            await asyncio.sleep(2 * LOOK_S)
        assert desk.loads == []
