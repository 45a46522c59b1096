"""Large answers through every transport: what is held of them is bounded, and each comes whole."""

from __future__ import annotations

import asyncio

from batchline.executor.intake import Intake, Taker
from tests.contract.transport.raw_server import (
    MakeTransport,
    answering,
    backend,
    http,
    let_arrive,
    post,
    serving,
    spin_until,
)

MIB = 1024 * 1024
BODY = b'{"data":"%b"}' % (b"x" * (3 * MIB))


class Watched(Intake):
    """Remembers the most that it had."""

    most = 0

    def took(self, taker: Taker, size: int) -> None:
        super().took(taker, size)
        self.most = max(self.most, self._total)


async def test_of_many_large_answers_at_once_one_is_read_at_a_time(make: MakeTransport) -> None:
    intake = Watched(MIB)
    async with serving(answering(http(BODY))) as server:
        transport = make(backend(server.url), intake=intake)
        for _ in range(2):  # on new connections and on used ones
            answers = await asyncio.gather(*[post(transport) for _ in range(8)])
            assert all(answer.body == BODY for answer in answers)
            assert intake._bytes == {}
            assert intake._total == 0
        # One whole, and what each of the others had when it was told to stop. All are 24 MiB.
        assert 3 * MIB <= intake.most < 10 * MIB


async def test_an_answer_that_waits_for_room_is_read_on_when_there_is_some(
    make: MakeTransport,
) -> None:
    intake = Watched(MIB)
    intake.unwritten = lambda: MIB
    async with serving(answering(http(BODY))) as server:
        transport = make(backend(server.url), intake=intake)
        waiting = asyncio.create_task(post(transport))
        await spin_until(lambda: bool(intake._paused))
        held = intake._total
        await let_arrive()
        assert (intake._total, waiting.done()) == (held, False)
        intake.unwritten = int
        intake.freed()
        assert (await waiting).body == BODY


async def test_an_exchange_that_is_aborted_while_it_waits_leaves_nothing(
    make: MakeTransport,
) -> None:
    intake = Watched(MIB)
    intake.unwritten = lambda: MIB
    async with serving(answering(http(BODY))) as server:
        transport = make(backend(server.url), intake=intake)
        waiting = asyncio.create_task(post(transport))
        await spin_until(lambda: bool(intake._paused))
        waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled()
        assert (intake._bytes, intake._total, intake._paused) == ({}, 0, set())
        await asyncio.wait_for(server.all_gone.wait(), 5)


async def test_a_small_answer_asks_for_no_room(make: MakeTransport) -> None:
    intake = Watched(0)
    async with serving(answering(http(b"{}"))) as server:
        transport = make(backend(server.url), intake=intake)
        assert (await post(transport)).body == b"{}"
        assert intake.most == 0
