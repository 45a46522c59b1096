"""A whole answer comes back as it was sent, over connections that are used well."""

from __future__ import annotations

import asyncio
import gzip
import os

import pytest

from batchline.executor.transport.contract import Answer
from tests.contract.transport.raw_server import (
    IMPLEMENTATIONS,
    SOON_S,
    MakeTransport,
    answering,
    backend,
    http,
    let_arrive,
    post,
    read_request,
    serving,
)

# -- a whole answer ------------------------------------------------------------------------------


async def test_the_bytes_go_out_as_they_came_in_and_the_answer_comes_back_whole(
    make: MakeTransport,
) -> None:
    seen: list[tuple[bytes, bytes]] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await read_request(reader))
        writer.write(
            http(
                b'{"ok": 1}',
                status="429 Slow Down",
                headers="Retry-After: 7\r\nX-Request-Id: r1\r\nServer: s\r\n"
                "Content-Type: application/json\r\nretry-after-ms: 7000\r\n"
                "X-RateLimit-Limit-Requests: 60\r\nx-ratelimit-remaining-requests: 59\r\n"
                "x-ratelimit-reset-requests: 1s\r\nx-ratelimit-limit-tokens: 150000\r\n"
                "x-ratelimit-remaining-tokens: 149984\r\nx-ratelimit-reset-tokens: 6ms\r\n",
            )
        )

    async with serving(script) as server:
        answer = await post(make(backend(server.url)), b'{ "a" : 1.0 }', headers={"X-A": "b"})
    (head, body) = seen[0]
    assert body == b'{ "a" : 1.0 }'
    assert head.startswith(b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:")
    assert b"\r\nContent-Type: application/json\r\n" in head
    assert b"\r\nX-A: b\r\n" in head
    assert answer == Answer(
        status=429,
        headers={
            "retry-after": "7",
            "retry-after-ms": "7000",
            "x-request-id": "r1",
            "content-type": "application/json",
            "x-ratelimit-limit-requests": "60",
            "x-ratelimit-remaining-requests": "59",
            "x-ratelimit-reset-requests": "1s",
            "x-ratelimit-limit-tokens": "150000",
            "x-ratelimit-remaining-tokens": "149984",
            "x-ratelimit-reset-tokens": "6ms",
        },
        body=b'{"ok": 1}',
    )


async def test_configured_headers_go_out_and_those_of_the_call_win(make: MakeTransport) -> None:
    heads: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            heads.append((await read_request(reader))[0])
            writer.write(http(b"{}"))

    async with serving(script) as server:
        transport = make(backend(server.url, headers={"Authorization": "Bearer k", "X-Team": "a"}))
        await post(transport)
        await post(transport, headers={"x-team": "b"})
    assert b"\r\nAuthorization: Bearer k\r\n" in heads[0]
    assert b"\r\nX-Team: a\r\n" in heads[0]
    assert b"\r\nAuthorization: Bearer k\r\n" in heads[1]
    assert b"\r\nx-team: b\r\n" in heads[1]
    assert b"X-Team: a" not in heads[1]
    assert heads[1].lower().count(b"\r\ncontent-type:") == 1


async def test_the_key_goes_out_once_whatever_else_does(make: MakeTransport) -> None:
    keys: list[list[bytes]] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            lines = (await read_request(reader))[0].lower().split(b"\r\n")
            keys.append([line for line in lines if line.startswith(b"idempotency-key:")])
            writer.write(http(b"{}"))

    async with serving(script) as server:
        transport = make(backend(server.url))
        async with asyncio.timeout(SOON_S):
            for headers in (None, {"X-Request-Id": "r"}, None):
                await transport.send(
                    "/chat/completions", b"{}", lambda: True, key="k", headers=headers
                )
    assert keys == [[b"idempotency-key: k"]] * 3


@pytest.mark.parametrize("value", ["a\r\nX-Smuggled: 1", "a\nb", "a\x00b"])
async def test_a_header_cannot_be_smuggled_in(make: MakeTransport, value: str) -> None:
    async with serving(answering(http(b"{}"))) as server:
        with pytest.raises(ValueError, match="control character"):
            await post(make(backend(server.url)), headers={"X-A": value})
        with pytest.raises(ValueError, match="control character"):
            make(backend(server.url, headers={"X-A": value}))
    assert server.opened == 0


@pytest.mark.parametrize(
    "wire",
    [
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            b'3\r\n{"a\r\n4\r\n": 1\r\n1\r\n}\r\n0\r\n\r\n'
        ),
        http(gzip.compress(b'{"a": 1}'), headers="Content-Encoding: gzip\r\n"),
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + http(b'{"a": 1}'),
    ],
    ids=["chunked", "gzip", "early hints"],
)
async def test_the_body_is_decoded(make: MakeTransport, wire: bytes) -> None:
    async with serving(answering(wire)) as server:
        transport = make(backend(server.url))
        for _ in range(2):
            assert await post(transport) == Answer(status=200, headers={}, body=b'{"a": 1}')
    assert server.opened == 1


async def test_a_body_may_end_with_the_connection(make: MakeTransport) -> None:
    wire = b"HTTP/1.1 200 OK\r\n\r\n{}"
    async with serving(answering(wire, then_close=True)) as server:
        transport = make(backend(server.url))
        assert (await post(transport)).body == b"{}"
        assert (await post(transport)).body == b"{}"
    assert server.opened == 2


async def test_a_redirect_is_an_answer_and_is_not_followed(make: MakeTransport) -> None:
    asked: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head, _ = await read_request(reader)
            asked.append(head.partition(b"\r\n")[0])
            if len(asked) == 1:
                there = f"Location: {server.url}/elsewhere\r\n"
                writer.write(http(b"", status="307 Temporary Redirect", headers=there))
            else:
                writer.write(http(b"{}"))

    async with serving(script) as server:
        answer = await post(make(backend(server.url)))
    assert (answer.status, answer.body) == (307, b"")
    assert asked == [b"POST /v1/chat/completions HTTP/1.1"]


async def test_an_answer_of_many_megabytes_comes_back_whole(make: MakeTransport) -> None:
    body = os.urandom(1 << 16).hex().encode() * 64  # 8 MiB
    async with serving(answering(http(body))) as server:
        assert (await post(make(backend(server.url)))).body == body


async def test_discovery_reads_json_under_the_base_url(make: MakeTransport) -> None:
    heads: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append((await read_request(reader))[0])
        writer.write(http(b'{"data": []}'))

    async with serving(script) as server:
        transport = make(backend(server.url, headers={"Authorization": "Bearer k"}))
        answer = await transport.get_json("/models", timeout_s=SOON_S)
    assert answer.body == b'{"data": []}'
    assert heads[0].startswith(b"GET /v1/models HTTP/1.1\r\n")
    assert b"Content-Length" not in heads[0]
    assert b"Bearer k" in heads[0]


# -- connections ---------------------------------------------------------------------------------


async def test_a_connection_is_used_again(make: MakeTransport) -> None:
    async with serving(answering(http(b"{}"))) as server:
        transport = make(backend(server.url))
        for _ in range(20):
            await post(transport)
    assert server.opened == 1


async def test_a_connection_that_the_server_ends_is_not_used_again(make: MakeTransport) -> None:
    wire = http(b"{}", headers="Connection: close\r\n")
    async with serving(answering(wire)) as server:
        transport = make(backend(server.url))
        await post(transport)
        await post(transport)
    assert server.opened == 2


async def test_an_idle_connection_that_the_server_closed_costs_nothing(
    make: MakeTransport,
) -> None:
    closed = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(http(b"{}"))
        await writer.drain()
        if server.opened == 1:
            writer.close()
            await writer.wait_closed()
            closed.set()

    async with serving(script) as server:
        transport = make(backend(server.url))
        await post(transport)
        async with asyncio.timeout(SOON_S):
            await closed.wait()
        await let_arrive()
        assert (await post(transport)).status == 200
    assert server.opened == 2


async def test_what_a_server_says_unasked_is_not_the_answer_to_the_next_request(
    make: MakeTransport,
) -> None:
    unasked = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        mine = server.opened
        writer.write(http(b"%d" % mine))
        await writer.drain()
        if mine == 1:
            await first_is_done.wait()
            writer.write(http(b"stale", status="408 Request Timeout"))
            await writer.drain()
            unasked.set()

    first_is_done = asyncio.Event()
    async with serving(script) as server:
        transport = make(backend(server.url))
        assert (await post(transport)).body == b"1"
        first_is_done.set()
        async with asyncio.timeout(SOON_S):
            await unasked.wait()
        await let_arrive()
        assert (await post(transport)).body == b"2"


async def test_two_hundred_at_once_all_come_back_and_leave_no_connection(
    make: MakeTransport, implementation: str
) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            _, body = await read_request(reader)
            writer.write(http(body))

    async with serving(script) as server:
        transport = IMPLEMENTATIONS[implementation](backend(server.url))
        for _ in range(2):
            sent = [b"%d" % n for n in range(200)]
            answers = await asyncio.gather(*(post(transport, body) for body in sent))
            assert [answer.body for answer in answers] == sent
        assert server.opened <= 200
        await transport.close()
        async with asyncio.timeout(SOON_S):
            await server.all_gone.wait()
