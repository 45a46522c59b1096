"""Many clients that ask for batches, as one process: `python -m bench.pollers ORDER`.

ORDER is an `Order` as JSON. Each client keeps one connection and asks in turn for a batch and for a
page of the list, at moments that were fixed before the start; what it finds late it asks late, and
its latency still counts from the moment when it was due. Says `polling` when all are connected,
ends when its standard input does, and then prints `Polled` as JSON.
"""

from __future__ import annotations

import asyncio
import gc
import re
import sys
import threading
import time
from contextlib import suppress
from typing import Final, cast

import msgspec
import uvloop

_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_PAGE: Final = 20
_LEAST: Final = 2  # what each client asks, however soon it is over: both kinds


class Order(msgspec.Struct, frozen=True):
    """Who asks for what, how often. `every_s` 0: again at once, so that the server is saturated."""

    port: int
    clients: int
    every_s: float
    batch_ids: list[str]


class Asked(msgspec.Struct, frozen=True, array_like=True):
    """One answer. `due_s` is on the machine's monotonic clock, which processes share."""

    kind: str
    due_s: float
    took_ms: float


class Polled(msgspec.Struct, frozen=True):
    """Every answer that was a good one, and what was wrong with the others."""

    asked: list[Asked]
    errors: list[str]


class _Named(msgspec.Struct):
    id: str


class _Page(msgspec.Struct):
    data: list[_Named]


_batch: Final = msgspec.json.Decoder(_Named).decode
_page: Final = msgspec.json.Decoder(_Page).decode


class _Connection(asyncio.Protocol):
    """One request at a time; the future gets its answer, head and body."""

    def __init__(self) -> None:
        self._received = b""
        self._answer: asyncio.Future[tuple[bytes, bytes]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def ask(self, path: str) -> asyncio.Future[tuple[bytes, bytes]]:
        self._answer = asyncio.get_running_loop().create_future()
        if self._transport.is_closing():
            self._answer.set_exception(ConnectionResetError("the connection is closed"))
        self._transport.write(b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path.encode())
        return self._answer

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        length = _LENGTH.search(head) if found else None
        if length is None or len(body) < int(length[1]):
            return
        self._received = b""
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((head, body))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc or ConnectionResetError("the server closed"))


async def poll(order: Order, over: asyncio.Event) -> Polled:
    """Ask until `over`."""
    loop = asyncio.get_running_loop()
    asked: list[Asked] = []
    errors: list[str] = []

    async def client(number: int, connection: _Connection, first_due_s: float) -> None:
        # Half begin with the batch and half with the list, so that both are asked for evenly.
        made, due_s = 0, first_due_s
        while True:
            await asyncio.sleep(due_s - time.monotonic())
            if over.is_set() and made >= _LEAST:
                return
            kind = ("get", "list")[(number + made) % 2]
            wanted = order.batch_ids[(number // 2) % len(order.batch_ids)]
            path = f"/v1/batches/{wanted}" if kind == "get" else f"/v1/batches?limit={_PAGE}"
            try:
                head, body = await connection.ask(path)
                took_ms = (time.monotonic() - due_s) * 1e3
                if not head.startswith(b"HTTP/1.1 200 "):
                    errors.append(f"{path}: {head[:40]!r} {body[:200]!r}")
                elif not _is_right(kind, wanted, body):
                    errors.append(f"{path}: not what was asked for: {body[:200]!r}")
                else:
                    asked.append(Asked(kind, due_s, took_ms))
            except OSError as exc:
                errors.append(f"{path}: {exc!r}")
                _, connection = await loop.create_connection(_Connection, "127.0.0.1", order.port)
            made += 1
            due_s = first_due_s + made * order.every_s if order.every_s else time.monotonic()

    connections = [
        (await loop.create_connection(_Connection, "127.0.0.1", order.port))[1]
        for _ in range(order.clients)
    ]
    print("polling", flush=True)
    began_s = time.monotonic()
    async with asyncio.TaskGroup() as tasks:
        for number, connection in enumerate(connections):
            # Evenly over one turn.
            due_s = began_s + number * order.every_s / order.clients
            tasks.create_task(client(number, connection, due_s))
    return Polled(asked, errors)


def _is_right(kind: str, batch_id: str, body: bytes) -> bool:
    with suppress(msgspec.MsgspecError):
        return _batch(body).id == batch_id if kind == "get" else len(_page(body).data) == _PAGE
    return False


async def _until_input_ends(order: Order) -> Polled:
    over, loop = asyncio.Event(), asyncio.get_running_loop()

    def wait() -> None:
        sys.stdin.buffer.read()
        loop.call_soon_threadsafe(over.set)

    threading.Thread(target=wait, daemon=True).start()
    return await poll(order, over)


def main() -> None:
    order = msgspec.json.decode(sys.argv[1], type=Order)
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    sys.stdout.buffer.write(msgspec.json.encode(uvloop.run(_until_input_ends(order))))


if __name__ == "__main__":
    main()
