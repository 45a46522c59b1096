"""Every implementation of `Transport`, one parameter each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from batchline.executor.contract import BackendSettings
from batchline.executor.transport.contract import Transport
from tests.contract.transport.raw_server import IMPLEMENTATIONS, SOON_S, MakeTransport


@pytest.fixture(params=sorted(IMPLEMENTATIONS))
def implementation(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def make(implementation: str) -> AsyncIterator[MakeTransport]:
    made: list[Transport] = []

    def build(settings: BackendSettings, **more: object) -> Transport:
        made.append(IMPLEMENTATIONS[implementation](settings, **more))
        return made[-1]

    yield build
    async with asyncio.timeout(SOON_S):
        for transport in made:
            await transport.close()
