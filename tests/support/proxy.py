"""A proxy before a backend, on loopback, in a thread of its own: what nginx or Envoy would be.

It hands requests on, each over a new connection, and answers with a page of its own while the
backend cannot be reached or breaks off. A request can also be one that no backend survives.
"""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

HOST: Final = "127.0.0.1"
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)
_BROKEN: Final = (OSError, asyncio.IncompleteReadError)


@dataclass(slots=True, kw_only=True)
class Proxy:
    """Before the backend at `target`. Counts are written by its thread, read by the test.

    `status`: of its pages. A request with `fatal` in it is the end of the backend, which is away
    for `away_s` then. One with `refused` in it gets a page although the backend is there.
    """

    target: str
    status: int = 502
    fatal: bytes | None = None
    refused: bytes | None = None
    away_s: float = 0.05
    port: int = 0
    pages: int = 0  # given to lines, not to looks
    deaths: int = 0
    _away_until: float = 0.0

    @property
    def base_url(self) -> str:
        return f"http://{HOST}:{self.port}/v1"

    def wait_pages(self, count: int, *, timeout_s: float = 10.0) -> None:
        """Wait until so many pages were given to lines."""
        deadline = time.monotonic() + timeout_s
        while self.pages < count:
            assert time.monotonic() < deadline, f"{self.pages} pages, not {count}"
            time.sleep(0.01)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(*_BROKEN):
                while True:
                    request = await _message(reader)
                    writer.write(await self._answered(request))
                    await writer.drain()
        finally:
            writer.close()

    async def _answered(self, request: bytes) -> bytes:
        if self.fatal is not None and self.fatal in request:
            self.deaths += time.monotonic() >= self._away_until
            self._away_until = time.monotonic() + self.away_s
        if time.monotonic() >= self._away_until and not self._refuses(request):
            with suppress(*_BROKEN):
                return await self._handed_on(request)
        self.pages += request.startswith(b"POST")
        page = b"<html>the server is temporarily away</html>"
        head = f"HTTP/1.1 {self.status} X\r\ncontent-type: text/html\r\ncontent-length: {len(page)}"
        return head.encode() + b"\r\n\r\n" + page

    def _refuses(self, request: bytes) -> bool:
        return self.refused is not None and self.refused in request

    async def _handed_on(self, request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(HOST, urlsplit(self.target).port)
        try:
            writer.write(request)
            return await _message(reader)
        finally:
            writer.close()


async def _message(reader: asyncio.StreamReader) -> bytes:
    """A request or an answer whose length is in its head."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = _LENGTH.search(head)
    return head + await reader.readexactly(int(length[1]) if length else 0)


@contextmanager
def proxy(
    target: str, *, status: int = 502, fatal: bytes | None = None, refused: bytes | None = None
) -> Iterator[Proxy]:
    """A proxy for the length of the block; see `Proxy`."""
    made = Proxy(target=target, status=status, fatal=fatal, refused=refused)
    loops: list[asyncio.AbstractEventLoop] = []
    began, over = threading.Event(), asyncio.Event()

    async def run() -> None:
        server = await asyncio.start_server(made._serve, HOST, 0)
        made.port = server.sockets[0].getsockname()[1]
        loops.append(asyncio.get_running_loop())
        began.set()
        await over.wait()
        server.close()

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    assert began.wait(5)
    try:
        yield made
    finally:
        loops[0].call_soon_threadsafe(over.set)
        thread.join(5)
