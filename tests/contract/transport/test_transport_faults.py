"""Bytes left and no usable answer came: the reason is exact, the connection is gone."""

from __future__ import annotations

import asyncio
import gzip
import socket

import pytest

from tests.contract.transport.raw_server import (
    SOON_S,
    MakeTransport,
    Script,
    answering,
    backend,
    http,
    never,
    post,
    read_request,
    serving,
    spin_until,
    unanswered,
)


def after_request(*writes: bytes, reset: bool = False) -> Script:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        for data in writes:
            writer.write(data)
            await writer.drain()
        if reset:
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            await asyncio.sleep(0)  # the bytes before the reset are on their way
            writer.transport.abort()
        else:
            writer.close()

    return script


LENGTH_9 = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n"
HINTS = b"HTTP/1.1 103 Early Hints\r\n\r\n" * 17 + http(b"{}")
BROKEN_GZIP = http(b"\x1f\x8b nonsense that is no gzip", headers="Content-Encoding: gzip\r\n")


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (after_request(), "reset"),
        (after_request(reset=True), "reset"),
        (after_request(b"HTTP/1.1 200 OK\r\nContent-"), "reset"),
        (after_request(LENGTH_9), "reset"),
        (after_request(LENGTH_9, reset=True), "reset"),
        (after_request(CHUNKED), "reset"),
        (after_request(b"HTTP/1.1 200 OK\r\n\r\n{", reset=True), "reset"),
        (after_request(b"\x00\x01 garbage\r\n\r\n"), "malformed"),
        (after_request(b"HTTP/1.1 OK\r\n\r\n"), "malformed"),
        (after_request(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n"), "malformed"),
        (after_request(CHUNKED, b"nonsense\r\n"), "malformed"),
        (after_request(BROKEN_GZIP), "malformed"),
        (after_request(HINTS), "malformed"),
    ],
    ids=[
        "closed before a byte",
        "reset before a byte",
        "closed in the head",
        "closed in the body",
        "reset in the body",
        "closed between chunks",
        "reset in a body that ends with the connection",
        "garbage",
        "no status",
        "another protocol",
        "a broken chunk",
        "broken compression",
        "hints without end",
    ],
)
async def test_an_unusable_answer_says_why(
    make: MakeTransport, script: Script, reason: str
) -> None:
    async with serving(script) as server:
        transport = make(backend(server.url))
        assert await unanswered(transport) == reason
        async with asyncio.timeout(SOON_S):
            await server.all_gone.wait()


async def test_a_chunk_that_breaks_after_the_head_was_read_is_noticed(make: MakeTransport) -> None:
    head_is_out = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(CHUNKED)
        await writer.drain()
        await head_is_out.wait()
        writer.write(b"nonsense\r\n")

    async with serving(script) as server:
        transport = make(backend(server.url))
        sending = asyncio.create_task(unanswered(transport))
        await spin_until(lambda: server.open_now == 1)
        for _ in range(20):
            await asyncio.sleep(0)
        head_is_out.set()
        assert await sending == "malformed"


async def test_silence_ends_at_the_total_timeout_and_closes_the_connection(
    make: MakeTransport,
) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)

    async with serving(script) as server:
        assert await unanswered(make(backend(server.url, total_timeout_s=1.0))) == "timeout"
        async with asyncio.timeout(SOON_S):
            await server.all_gone.wait()


@pytest.mark.parametrize(
    "said",
    [b"", b"H", b"HTTP/1.1 200 OK\r\nContent-", b"HTTP/1.1 103 Early Hints\r\n\r\n"],
    ids=["nothing", "a byte", "half a head", "a hint"],
)
async def test_an_answer_that_does_not_begin_ends_at_the_first_byte_timeout(
    make: MakeTransport, said: bytes
) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(said)

    async with serving(script) as server:
        transport = make(backend(server.url, first_byte_timeout_s=0.05, total_timeout_s=3_600.0))
        async with asyncio.timeout(SOON_S):
            assert await unanswered(transport) == "timeout"
            await server.all_gone.wait()


async def test_an_answer_that_has_begun_may_take_its_time(make: MakeTransport) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
            await asyncio.sleep(1.2)  # longer than the first byte may take: that is the subject
            writer.write(b"{}")

    async with serving(script) as server:
        transport = make(backend(server.url, first_byte_timeout_s=1.0))
        for _ in range(2):
            assert (await post(transport)).body == b"{}"
    assert server.opened == 1


async def test_a_body_that_trickles_in_ends_at_the_total_timeout(make: MakeTransport) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while not writer.is_closing():
            writer.write(b" ")
            await asyncio.sleep(0.01)  # a slow peer is the subject here

    async with serving(script) as server:
        assert await unanswered(make(backend(server.url, total_timeout_s=1.0))) == "timeout"


@pytest.mark.parametrize(
    "wire",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n",
        http(b"x" * 1001),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3e9\r\n" + b"x" * 1001,
        http(gzip.compress(b"x" * 1_000_000), headers="Content-Encoding: gzip\r\n"),
    ],
    ids=["announced", "announced and sent", "chunked", "after decompression"],
)
async def test_an_answer_above_the_limit_is_given_up(make: MakeTransport, wire: bytes) -> None:
    async with serving(answering(wire)) as server:
        transport = make(backend(server.url, max_answer_bytes=1000))
        assert await unanswered(transport) == "too_large"
        async with asyncio.timeout(SOON_S):
            await server.all_gone.wait()


async def test_a_length_may_have_any_number_of_zeros_before_it(make: MakeTransport) -> None:
    """If this fails, a backend that writes so ends the workers, and the catalogue's looks: reading
    more than 4,300 digits raises what no transport may raise."""
    length = b"0" * 5_000 + b"2"
    wire = b"HTTP/1.1 200 OK\r\nContent-Length: %b\r\n\r\n{}" % length
    async with serving(answering(wire)) as server:
        assert (await post(make(backend(server.url)))).body == b"{}"


async def test_an_answer_of_exactly_the_limit_is_kept(make: MakeTransport) -> None:
    async with serving(answering(http(b"x" * 1000))) as server:
        transport = make(backend(server.url, max_answer_bytes=1000))
        assert len((await post(transport)).body) == 1000


async def test_an_answer_before_the_whole_request_counts_but_its_connection_does_not(
    make: MakeTransport,
) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(http(b"{}", status="413 Too Large"))
        await never()

    async with serving(script) as server:
        transport = make(backend(server.url))
        for _ in range(2):
            assert (await post(transport, b"x" * (32 << 20))).status == 413
    assert server.opened == 2
