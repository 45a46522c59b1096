"""Scripted raw sockets, and the transports that are held to the contract against them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from batchline.domain.errors import SentUnanswered
from batchline.executor.contract import BackendSettings
from batchline.executor.transport.contract import Answer, Transport
from batchline.executor.transport.general import GeneralTransport
from batchline.executor.transport.http1 import Http1Transport

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
MakeTransport = Callable[..., Transport]

CERTIFICATE = Path(__file__).with_name("localhost.pem")  # self-made, for this suite only
SOON_S = 20.0  # everything here takes milliseconds; this bounds a failure

IMPLEMENTATIONS: dict[str, Callable[..., Transport]] = {
    "general": GeneralTransport,
    "http1": Http1Transport,
}
SPEAKS_TLS = ("general",)


class RawServer:
    """Runs a script for each connection and remembers what it saw."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.opened = 0
        self.open_now = 0
        self.url = ""
        self.listener: asyncio.Server
        self.all_gone = asyncio.Event()
        self._handlers: set[asyncio.Task[None]] = set()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened += 1
        self.open_now += 1
        self.all_gone.clear()
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        try:
            await self._script(reader, writer)
            # The script is done; the connection stays until the peer ends it.
            while await reader.read(65536):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        except asyncio.CancelledError:
            pass  # the test is over; StreamReaderProtocol would report it as an error
        finally:
            self._handlers.discard(task)
            self.open_now -= 1
            if self.open_now == 0:
                self.all_gone.set()
            writer.transport.abort()

    async def stop(self) -> None:
        for task in list(self._handlers):
            task.cancel()
        if self._handlers:
            await asyncio.wait(list(self._handlers))


@contextlib.asynccontextmanager
async def serving(script: Script, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[RawServer]:
    server = RawServer(script)
    listener = server.listener = await asyncio.start_server(
        server.handle, "127.0.0.1", 0, ssl=tls, backlog=512
    )
    port = listener.sockets[0].getsockname()[1]
    server.url = f"{'https' if tls else 'http'}://127.0.0.1:{port}/v1"
    try:
        yield server
    finally:
        listener.close()
        await server.stop()


async def read_request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Head and body of one request; IncompleteReadError when there is none."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = 0
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    return head, await reader.readexactly(length)


def answering(answer: bytes, *, then_close: bool = False) -> Script:
    """Answers every request of a connection with the same bytes."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            writer.write(answer)
            await writer.drain()
            if then_close:
                writer.close()
                return

    return script


def http(body: bytes, *, status: str = "200 OK", headers: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


def backend(url: str, **changes: object) -> BackendSettings:
    settings = BackendSettings(
        name="b", base_url=url, connect_timeout_s=SOON_S, total_timeout_s=SOON_S
    )
    return replace(settings, **changes)  # type: ignore[arg-type]  # the test names the fields


async def post(
    transport: Transport,
    body: bytes = b"{}",
    *,
    before_write: Callable[[], bool] = lambda: True,
    headers: dict[str, str] | None = None,
) -> Answer:
    async with asyncio.timeout(2 * SOON_S):
        return await transport.send(
            "/chat/completions", body, headers=headers or {}, before_write=before_write
        )


async def let_arrive() -> None:
    """What is in our socket already is read by the loop's next polls; there is no event for it."""
    for _ in range(5):
        await asyncio.sleep(0)


async def unanswered(transport: Transport, body: bytes = b"{}") -> str:
    with pytest.raises(SentUnanswered) as caught:
        await post(transport, body)
    return caught.value.reason


async def never() -> None:
    await asyncio.get_running_loop().create_future()


async def readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def arrived() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(sock, arrived)
    try:
        async with asyncio.timeout(SOON_S):
            await ready
    finally:
        loop.remove_reader(sock)


async def spin_until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOON_S):
        while not condition():  # noqa: ASYNC110  # a socket's state has no event to wait for
            await asyncio.sleep(0.002)


def drained(peer: socket.socket) -> tuple[int, str]:
    """Bytes that are to be had from `peer` without waiting, and how it stands after them."""
    size = 0
    while True:
        try:
            data = peer.recv(1 << 20)
        except BlockingIOError:
            return size, "open"
        except ConnectionResetError:
            return size, "reset"
        if not data:
            return size, "closed"
        size += len(data)
