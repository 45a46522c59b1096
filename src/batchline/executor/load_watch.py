"""Reads the metrics pages of backends whose limit is learnt, while there are lines for them.

Whether there is a page is found out by asking; most of what hosts models for others has none, and
that is no trouble. The requests go over a connection of their own: an engine that is slow to answer
is then not one of whose connections we wait for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from batchline import telemetry
from batchline.domain.errors import UpstreamError
from batchline.executor.contract import BackendSettings, Concurrency
from batchline.executor.engine_load import METRICS, EngineLoad, read_load
from batchline.executor.roots import at_root
from batchline.executor.transport.contract import Transport

LOOK_S: Final = 0.5
ABSENT_S: Final = 30.0  # until the next look for a page that is not there
_ANSWER_S: Final = 1.0
_MAX_PAGE_BYTES: Final = 8 * 1024 * 1024
_FAILURES: Final = 10  # in a row, before a page that was there counts as gone


class LoadWatch:
    """`wanted` says whether a backend is in use; `heard` gets what its page says."""

    def __init__(
        self,
        backends: Sequence[BackendSettings],
        *,
        wanted: Callable[[str], bool],
        heard: Callable[[str, EngineLoad], None],
        transport: Callable[[BackendSettings], Transport],
    ) -> None:
        self._backends = [b for b in backends if b.concurrency is Concurrency.ADAPTIVE]
        self._wanted = wanted
        self._heard = heard
        self._transport = transport

    async def run(self) -> None:
        """Until cancelled; returns at once when there is nothing to watch."""
        async with asyncio.TaskGroup() as tasks:
            for backend in self._backends:
                tasks.create_task(self._watch(backend))

    async def _watch(self, backend: BackendSettings) -> None:
        transport = self._transport(
            at_root(backend, answer_s=_ANSWER_S, most_bytes=_MAX_PAGE_BYTES)
        )
        failures = _FAILURES  # it has not been there yet
        try:
            while True:
                await asyncio.sleep(LOOK_S if failures < _FAILURES else 0.0)
                if not self._wanted(backend.name):
                    await asyncio.sleep(LOOK_S)
                    continue
                if await self._look(backend, transport):
                    failures = 0
                    continue
                failures = min(failures + 1, _FAILURES)
                if failures == _FAILURES:
                    await asyncio.sleep(ABSENT_S)
        finally:
            await transport.close()

    async def _look(self, backend: BackendSettings, transport: Transport) -> bool:
        """Whether there was a page that could be read."""
        try:
            load = await _read(transport)
            if load is not None:
                self._heard(backend.name, load)
        except Exception as exc:  # noqa: BLE001  # of ours; it would end the looks at all pages
            kind = type(exc).__name__
            telemetry.trouble("engine_page_failed", backend=backend.name, kind=kind)
            return False
        return load is not None


async def _read(transport: Transport) -> EngineLoad | None:
    try:
        answer = await transport.get_json(METRICS, timeout_s=_ANSWER_S)
    except UpstreamError:
        return None
    return read_load(answer.body) if answer.status == 200 else None
