"""The body of an answer, handed over while it arrives."""

from __future__ import annotations

import asyncio
import gzip

import pytest

from batchline.domain.errors import SentUnanswered
from batchline.executor.transport.contract import Answer, Transport
from tests.contract.transport.raw_server import (
    SOON_S,
    MakeTransport,
    answering,
    backend,
    http,
    post,
    read_request,
    serving,
)


class Taker:
    """Takes what it is given; `whole` says what `begin` answers, `refuses` what ends it."""

    def __init__(self, *, wants: bool = True, refuses: bytes | None = None) -> None:
        self.wants = wants
        self.refuses = refuses
        self.heads: list[Answer] = []
        self.pieces: list[bytes] = []
        self.got = asyncio.Event()

    def begin(self, head: Answer) -> bool:
        self.heads.append(head)
        return self.wants

    def take(self, piece: bytes) -> None:
        if self.refuses is not None and self.refuses in piece:
            raise SentUnanswered("that will do", reason="too_large")
        self.pieces.append(piece)
        self.got.set()


async def post_to(transport: Transport, taker: Taker) -> Answer:
    async with asyncio.timeout(SOON_S):
        return await transport.send(
            "/x", b"{}", headers={}, before_write=lambda: True, pieces=taker
        )


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


async def test_each_piece_is_there_before_the_next_is_sent(make: MakeTransport) -> None:
    taker = Taker()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + CHUNKED)
        for piece in (b"one", b"two", b"three"):
            taker.got.clear()
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await taker.got.wait()
        writer.write(b"0\r\n\r\n")
        await answering(http(b"{}"))(reader, writer)

    async with serving(script) as server:
        transport = make(backend(server.url))
        answer = await post_to(transport, taker)
        assert (await post(transport)).body == b"{}"  # the connection is as good as before
    head = Answer(status=200, headers={"content-type": "text/event-stream"}, body=b"")
    assert answer == head
    assert taker.heads == [head]
    assert taker.pieces == [b"one", b"two", b"three"]
    assert server.opened == 1


@pytest.mark.parametrize(
    ("wire", "then_close"),
    [
        (HEAD + b"Content-Length: 5\r\n\r\nwhole", False),
        (HEAD + b"\r\nwhole", True),
        (HEAD + b"Content-Length: 0\r\n\r\n", False),
    ],
    ids=["with a length", "ends with the connection", "empty"],
)
async def test_any_framing_will_do(make: MakeTransport, wire: bytes, then_close: bool) -> None:
    taker = Taker()
    async with serving(answering(wire, then_close=then_close)) as server:
        answer = await post_to(make(backend(server.url)), taker)
    assert answer.body == b""
    assert b"".join(taker.pieces) == (b"" if b"Length: 0" in wire else b"whole")
    assert b"" not in taker.pieces


async def test_the_pieces_are_decoded(make: MakeTransport) -> None:
    wire = http(gzip.compress(b"whole"), headers="Content-Encoding: gzip\r\n")
    taker = Taker()
    async with serving(answering(wire)) as server:
        assert (await post_to(make(backend(server.url)), taker)).body == b""
    assert b"".join(taker.pieces) == b"whole"


async def test_who_says_no_to_the_head_gets_the_answer_whole(make: MakeTransport) -> None:
    wire = http(b'{"error":1}', status="429 Slow Down", headers="Retry-After: 7\r\n")
    taker = Taker(wants=False)
    async with serving(answering(wire)) as server:
        answer = await post_to(make(backend(server.url)), taker)
    assert answer == Answer(status=429, headers={"retry-after": "7"}, body=b'{"error":1}')
    assert [head.status for head in taker.heads] == [429]
    assert taker.pieces == []


@pytest.mark.parametrize("wants", [True, False])
async def test_the_limit_is_the_takers_where_it_takes(make: MakeTransport, wants: bool) -> None:
    wires = [http(b"y" * 5_000), CHUNKED + b"1388\r\n" + b"y" * 5_000 + b"\r\n0\r\n\r\n"]
    for wire in wires:
        taker = Taker(wants=wants)
        async with serving(answering(wire)) as server:
            transport = make(backend(server.url, max_answer_bytes=1_000))
            if wants:
                await post_to(transport, taker)
                assert sum(map(len, taker.pieces)) == 5_000
            else:
                with pytest.raises(SentUnanswered) as caught:
                    await post_to(transport, taker)
                assert caught.value.reason == "too_large"


async def test_a_taker_that_raises_ends_the_exchange_and_its_connection(
    make: MakeTransport,
) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(CHUNKED + b"3\r\none\r\n4\r\nstop\r\n4\r\nmore\r\n0\r\n\r\n")

    taker = Taker(refuses=b"stop")
    async with serving(script) as server:
        transport = make(backend(server.url))
        with pytest.raises(SentUnanswered, match="that will do") as caught:
            await post_to(transport, taker)
        assert caught.value.reason == "too_large"
        assert b"more" not in b"".join(taker.pieces)
        async with asyncio.timeout(SOON_S):
            await server.all_gone.wait()


@pytest.mark.parametrize(
    "wire", [CHUNKED + b"3\r\none\r\n", HEAD + b"Content-Length: 9\r\n\r\none"]
)
async def test_a_body_that_ends_too_early_is_a_reset(make: MakeTransport, wire: bytes) -> None:
    taker = Taker()
    async with serving(answering(wire, then_close=True)) as server:
        with pytest.raises(SentUnanswered) as caught:
            await post_to(make(backend(server.url)), taker)
    assert caught.value.reason == "reset"
    assert taker.pieces == [b"one"]


async def test_an_abort_in_the_middle_closes_the_connection_and_no_piece_follows(
    make: MakeTransport,
) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(CHUNKED + b"3\r\none\r\n")

    taker = Taker()
    async with serving(script) as server:
        sending = asyncio.create_task(post_to(make(backend(server.url)), taker))
        await taker.got.wait()
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        async with asyncio.timeout(SOON_S):
            await server.all_gone.wait()
    assert taker.pieces == [b"one"]


@pytest.mark.parametrize(
    "wire", [http(b"{}"), b"HTTP/1.1 200 OK\r\n\r\n{}"], ids=["told", "closed"]
)
async def test_a_fault_of_ours_is_not_taken_for_the_backends(
    make: MakeTransport, wire: bytes
) -> None:
    """If this fails, a worker that has no memory left blames each backend for it."""

    class Broken(Taker):
        def take(self, piece: bytes) -> None:
            raise MemoryError(len(piece))

    async with serving(answering(wire, then_close=True)) as server:
        with pytest.raises(MemoryError):
            await post_to(make(backend(server.url)), Broken())
