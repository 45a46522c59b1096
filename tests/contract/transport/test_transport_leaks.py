"""A thousand of each fault leave no socket, no task and no timer behind."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from dataclasses import replace
from pathlib import Path

import pytest

from batchline.domain.errors import NotAdmitted, NotSent, SentUnanswered
from tests.contract.transport.raw_server import (
    CERTIFICATE,
    SPEAKS_TLS,
    MakeTransport,
    Script,
    backend,
    http,
    post,
    read_request,
    serving,
    spin_until,
)

TIMES = 1_000
AT_ONCE = 100
RESET = b"\1\0\0\0\0\0\0\0"  # struct linger: on, zero seconds


def saying(data: bytes, *, then: str) -> Script:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            writer.write(data)
            if then == "stall":
                await reader.read()  # until the client has had enough
                return
            if then == "close":
                await writer.drain()
                writer.close()
                return
            if then == "reset":
                sock = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                writer.transport.abort()
                return

    return script


@pytest.mark.parametrize(
    "script",
    [
        saying(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", then="stall"),
        saying(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", then="close"),
        saying(b"", then="close"),
        saying(b"", then="reset"),
        saying(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", then="stall"),
        saying(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000, then="stall"),
        saying(b"garbage\r\n\r\n", then="stall"),
        saying(http(b"x" * 2_000), then="go on"),
        saying(http(b"", status="302 Found", headers="Location: /x\r\n"), then="go on"),
        saying(http(b"{}") + http(b"stray"), then="go on"),
        saying(http(b'{"error":{"code":500}}'), then="go on"),
        saying(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 17, then="stall"),
    ],
    ids=[
        *("stalls in the body", "cut in the body", "closed", "reset", "broken chunk"),
        *("a head without end", "garbage", "too large", "redirect", "stray answer"),
        *("an error in a 200", "hints without end"),
    ],
)
async def test_faults_leave_nothing_behind(make: MakeTransport, script: Script) -> None:
    async with serving(script) as server:
        files, tasks = open_files(), asyncio.all_tasks()
        # A stall ends by either of the two.
        settings = backend(server.url, total_timeout_s=0.1, max_answer_bytes=1_000)
        transport = make(replace(settings, first_byte_timeout_s=0.08))
        todo = iter(range(TIMES))

        async def go() -> None:
            for _ in todo:
                # A busy machine may not connect within the total timeout.
                with contextlib.suppress(SentUnanswered, NotSent):
                    await post(transport)

        await asyncio.gather(*(go() for _ in range(AT_ONCE)))
        await transport.close()
        # The far sides are in this process too, and end when they have read the end.
        await spin_until(lambda: asyncio.all_tasks() <= tasks and open_files() == files)


async def test_certificates_that_nobody_vouches_for_leave_nothing_behind(
    make: MakeTransport, implementation: str
) -> None:
    if implementation not in SPEAKS_TLS:
        return  # by contract http1 serves http:// only
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    async with serving(saying(http(b"{}"), then="go on"), tls=context) as server:
        files, tasks = open_files(), asyncio.all_tasks()
        transport = make(backend(server.url))
        todo = iter(range(TIMES))

        async def go() -> None:
            for _ in todo:
                with pytest.raises(NotSent):
                    await post(transport)

        await asyncio.gather(*(go() for _ in range(AT_ONCE // 4)))
        await transport.close()
        await spin_until(lambda: asyncio.all_tasks() <= tasks and open_files() == files)


async def test_connections_that_are_refused_leave_nothing_behind(make: MakeTransport) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        transport = make(backend(f"http://127.0.0.1:{closed.getsockname()[1]}/v1"))
        with pytest.raises(NotSent):
            await post(transport)  # a first connection makes libuv open a file for itself
        files, tasks = open_files(), asyncio.all_tasks()

        async def go() -> None:
            for _ in range(TIMES // AT_ONCE):
                with pytest.raises(NotSent):
                    await post(transport)

        await asyncio.gather(*(go() for _ in range(AT_ONCE)))
        await transport.close()
        await spin_until(lambda: asyncio.all_tasks() <= tasks and open_files() == files)


async def test_sends_that_are_cancelled_or_not_admitted_leave_nothing_behind(
    make: MakeTransport,
) -> None:
    async with serving(saying(b"HTTP/1.1 200 OK\r\n", then="stall")) as server:
        files, tasks = open_files(), asyncio.all_tasks()
        transport = make(backend(server.url))
        for _ in range(TIMES // AT_ONCE):
            sending = [asyncio.create_task(post(transport)) for _ in range(AT_ONCE)]
            for number, task in enumerate(sending):
                if number % 5 == 0:
                    task.cancel()  # before its first step
            await asyncio.sleep(0)
            for number, task in enumerate(sending):
                if number % 5 == 1:
                    task.cancel()  # while it connects
            refused = [
                asyncio.create_task(post(transport, before_write=lambda: False)) for _ in range(5)
            ]
            ended = await asyncio.gather(*refused, return_exceptions=True)
            assert all(isinstance(one, NotAdmitted) for one in ended)
            for task in sending:
                task.cancel()
            await asyncio.wait(sending)
            assert all(task.cancelled() for task in sending)
        await transport.close()
        # The far sides are in this process too, and end when they have read the end.
        await spin_until(lambda: asyncio.all_tasks() <= tasks and open_files() == files)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
