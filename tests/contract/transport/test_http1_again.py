"""A used connection that a server lets go of: the request goes once more, and once only."""

from __future__ import annotations

import asyncio
import socket

import pytest

from batchline.domain.errors import NotAdmitted, SentUnanswered
from batchline.executor.transport import http1
from batchline.executor.transport.http1 import Http1Transport
from tests.contract.transport.raw_server import (
    SOON_S,
    Script,
    answering,
    backend,
    http,
    post,
    read_request,
    serving,
    unanswered,
)

RESET = b"\1\0\0\0\0\0\0\0"  # struct linger: on, zero seconds


def letting_go(keys: list[bytes], *, after: int = 1, reset: bool = False) -> Script:
    """Answers `after` requests of a connection and lets go of it when it has read the next one."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for number in range(after + 1):
            head, _ = await read_request(reader)
            keys.append(head.lower().partition(b"idempotency-key: ")[2].partition(b"\r\n")[0])
            if number < after:
                writer.write(http(b"{}"))
        if reset:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        writer.transport.abort()

    return script


@pytest.mark.parametrize("reset", [False, True])
async def test_it_is_sent_again_on_a_new_connection_after_the_gate_was_asked_again(
    reset: bool,
) -> None:
    keys: list[bytes] = []
    asked: list[None] = []

    def before_write() -> bool:
        asked.append(None)
        return True

    async with serving(letting_go(keys, reset=reset)) as server:
        transport = Http1Transport(backend(server.url))
        await post(transport, headers={"idempotency-key": "a"})
        answer = await post(transport, headers={"idempotency-key": "b"}, before_write=before_write)
        await transport.close()
    assert answer.status == 200
    assert keys == [b"a", b"b", b"b"]
    assert len(asked) == 2
    assert server.opened == 2


async def test_behind_a_gate_that_closed_meanwhile_it_is_not_sent_again() -> None:
    keys: list[bytes] = []
    gate = iter([True, False])
    async with serving(letting_go(keys)) as server:
        transport = Http1Transport(backend(server.url))
        await post(transport)
        with pytest.raises(SentUnanswered) as caught:  # what was sent was sent
            await post(transport, before_write=lambda: next(gate))
        await transport.close()
    assert caught.value.reason == "reset"
    assert len(keys) == 2


async def test_a_new_connection_that_ends_so_is_an_unanswered_request() -> None:
    keys: list[bytes] = []
    async with serving(letting_go(keys, after=0)) as server:
        transport = Http1Transport(backend(server.url))
        assert await unanswered(transport) == "reset"
        await transport.close()
    assert len(keys) == 1


async def test_so_is_one_on_a_connection_that_waited_without_having_answered() -> None:
    """A gate that closed has left it idle. Whoever ends it has let go of nothing: it may be that
    this request ends its backend."""
    keys: list[bytes] = []
    async with serving(letting_go(keys, after=0)) as server:
        transport = Http1Transport(backend(server.url))
        with pytest.raises(NotAdmitted):
            await post(transport, before_write=lambda: False)
        assert await unanswered(transport) == "reset"
        await transport.close()
    assert len(keys) == 1
    assert server.opened == 1


async def test_the_second_try_is_the_last() -> None:
    keys: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await letting_go(keys, after=1 if server.opened == 1 else 0)(reader, writer)

    async with serving(script) as server:
        transport = Http1Transport(backend(server.url))
        await post(transport)
        assert await unanswered(transport) == "reset"
        await transport.close()
    assert len(keys) == 3
    assert server.opened == 2


async def test_the_second_try_is_not_on_another_used_connection() -> None:
    """Which the server may have let go of as well: they would all be tried, one after the other."""
    keys: list[bytes] = []
    async with serving(letting_go(keys)) as server:
        transport = Http1Transport(backend(server.url))
        await asyncio.gather(post(transport), post(transport))
        assert server.opened == 2
        assert (await post(transport)).status == 200
        await transport.close()
    assert len(keys) == 4
    assert server.opened == 3


async def test_what_is_merely_not_answered_in_time_is_not_sent_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http1, "_RACE_S", SOON_S)
    seen: list[None] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            seen.append(None)
            if len(seen) == 1:
                writer.write(http(b"{}"))

    async with serving(script) as server:
        transport = Http1Transport(backend(server.url, first_byte_timeout_s=3.0))
        await post(transport)
        assert await unanswered(transport) == "timeout"
        await transport.close()
    assert len(seen) == 2


async def test_without_a_server_any_more_the_first_try_counts() -> None:
    """Else a request that ends its backend would never use up its attempts."""
    keys: list[bytes] = []
    ended = asyncio.Event()
    async with serving(letting_go(keys)) as server:
        transport = Http1Transport(backend(server.url))
        await post(transport)

        def before_write() -> bool:
            ended.set()
            return True

        async def stop_listening() -> None:
            await ended.wait()
            server.listener.close()

        stopping = asyncio.create_task(stop_listening())
        with pytest.raises(SentUnanswered):
            await post(transport, before_write=before_write)
        await stopping
        await transport.close()


async def test_after_a_byte_of_the_answer_it_is_not_sent_again() -> None:
    seen: list[None] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in (http(b"{}"), b"HTTP/1.1 2"):
            await read_request(reader)
            seen.append(None)
            writer.write(answer)
            await writer.drain()
        writer.close()

    async with serving(script) as server:
        transport = Http1Transport(backend(server.url))
        await post(transport)
        assert await unanswered(transport) == "reset"
        await transport.close()
    assert len(seen) == 2


async def test_what_was_being_worked_on_is_not_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1, "_RACE_S", 0.0)
    keys: list[bytes] = []
    async with serving(letting_go(keys)) as server:
        transport = Http1Transport(backend(server.url))
        await post(transport)
        assert await unanswered(transport) == "reset"
        await transport.close()
    assert len(keys) == 2


async def test_what_the_loop_has_not_read_yet_is_not_the_answer_to_the_next_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The stale answer is in the socket, and the loop has had no step to read it."""
    monkeypatch.setattr(http1, "_LOOK_AFTER_S", 0.0)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
        loop = asyncio.get_running_loop()
        transport = Http1Transport(backend(f"http://127.0.0.1:{listener.getsockname()[1]}/v1"))
        sending = asyncio.create_task(post(transport))
        peer, _ = await loop.sock_accept(listener)
        with peer:
            await loop.sock_recv(peer, 65536)
            await loop.sock_sendall(peer, http(b"1"))
            assert (await sending).body == b"1"
            # In one turn of the loop: it would read the one before the other's first step.
            loop.call_soon(peer.send, http(b"stale", status="408 Request Timeout"))
            sending = asyncio.create_task(post(transport))
            async with asyncio.timeout(SOON_S):
                second, _ = await loop.sock_accept(listener)
            with second:
                await loop.sock_recv(second, 65536)
                await loop.sock_sendall(second, http(b"2"))
                assert (await sending).body == b"2"
        await transport.close()


async def test_a_connection_that_nobody_needs_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1, "_KEEPALIVE_S", 0.0)
    monkeypatch.setattr(http1, "_SWEEP_S", 0.01)
    async with serving(answering(http(b"{}"))) as server:
        transport = Http1Transport(backend(server.url))
        await post(transport)
        async with asyncio.timeout(SOON_S):
            await server.all_gone.wait()
        await post(transport)
        await transport.close()
    assert server.opened == 2
