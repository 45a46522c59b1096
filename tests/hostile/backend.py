"""A backend that answers each line with exact bytes, for answers that no script could mean."""

from __future__ import annotations

import asyncio
import json
import queue
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from tests.contract.transport.raw_server import http, read_request, serving

Exchange = Callable[[asyncio.StreamWriter], Awaitable[None]]
MODELS = b'{"object":"list","data":[{"id":"test-model","object":"model"}]}'


def sending(body: bytes, *, headers: str = "", status: str = "200 OK") -> Exchange:
    """A whole answer with this body."""
    return raw(http(body, status=status, headers=headers))


def raw(wire: bytes, *, then_close: bool = False) -> Exchange:
    """These bytes for an answer."""

    async def write(writer: asyncio.StreamWriter) -> None:
        writer.write(wire)
        await writer.drain()
        if then_close:
            writer.close()

    return write


def endless(start: bytes, piece: bytes) -> Exchange:
    """`start`, and then `piece` until nobody takes it."""

    async def write(writer: asyncio.StreamWriter) -> None:
        writer.write(start)
        while True:
            writer.write(piece)
            await writer.drain()

    return write


@contextmanager
def hostile_backend(answers: Mapping[str, Exchange]) -> Iterator[str]:
    """The base URL of a backend that answers a body by its `user`; it has a loop of its own."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head, body = await read_request(reader)
            if head.startswith(b"GET "):
                writer.write(http(MODELS))
            else:
                await answers[json.loads(body)["user"]](writer)

    started: queue.SimpleQueue[tuple[str, asyncio.AbstractEventLoop, asyncio.Event]] = (
        queue.SimpleQueue()
    )

    async def serve() -> None:
        stopping = asyncio.Event()
        async with serving(script) as running:
            started.put((running.url, asyncio.get_running_loop(), stopping))
            await stopping.wait()

    with ThreadPoolExecutor(1) as thread:
        serving_it = thread.submit(asyncio.run, serve())
        url, loop, stopping = started.get(timeout=10)
        try:
            yield url
        finally:
            loop.call_soon_threadsafe(stopping.set)
            serving_it.result(timeout=10)
