"""A backend that costs as little as can be: much the same answer after a fixed delay, and counts.

`python -m bench.fast_backend` prints its port and ends when its standard input does. It parses
exactly what the clients of the benchmarks send (HTTP/1.1, kept alive, `Content-Length`); the
scripted backend of the tests, which plays faults and keeps a log, costs three times as much.

Under `/bench/` it tells its counts and takes its delay; `POST /abort_request` it takes and counts.
Stamps are Unix nanoseconds. With `--kernel-stamps` arrivals carry the time at which the kernel
received their last byte: on a busy machine a process reads its sockets milliseconds later, too late
to say what came before what.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import struct
import sys
import threading
import time
from array import array
from collections import deque
from email.utils import formatdate
from typing import Final, cast
from urllib.parse import parse_qs, urlsplit

import msgspec
import uvloop

MODEL: Final = "bench"
_BACKLOG: Final = 4096
# The loop's timers tick in milliseconds; what is due within half a tick goes with this one.
_HALF_TICK_NS: Final = 500_000

KERNEL_STAMPS: Final = "--kernel-stamps"
_SO_TIMESTAMPNS: Final = 35  # asm-generic/socket.h; the socket module has no name for it
_TIMESPEC: Final = struct.Struct("@ll")
_READ_BYTES: Final = 64 * 1024

_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_LENGTHS: Final = 16  # a power of two
_TEXT: Final = "The answer to this request, in some forty words of no consequence. " * 4


def packed(body: bytes, second: int = 0) -> bytes:
    """A 200 with `body` at that second of the epoch; its head is what uvicorn sends."""
    head = (
        b"HTTP/1.1 200 OK\r\ndate: %b\r\nserver: uvicorn\r\n"
        b"content-length: %d\r\ncontent-type: application/json\r\n\r\n"
    )
    return head % (formatdate(second, usegmt=True).encode(), len(body)) + body


def answers(second: int) -> list[bytes]:
    """Those given at that second of the epoch: of several lengths, as a model's are."""
    return [packed(body, second) for body in _BODIES]


def _body(text: str) -> bytes:
    return msgspec.json.encode(
        {
            "id": "chatcmpl-bench",
            "object": "chat.completion",
            "created": 1_700_000_000,
            "model": MODEL,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": text},
                    "logprobs": None,
                    "finish_reason": "stop",
                }
            ],
            "usage": {"prompt_tokens": 100, "completion_tokens": 40, "total_tokens": 140},
        }
    )


_BODIES: Final = [_body(_TEXT[: len(_TEXT) - 8 * n]) for n in range(_LENGTHS)]
_ABORT: Final = b"POST /abort_request "
CALLED_OFF: Final = packed(b"{}")
CATALOGUE: Final = packed(
    msgspec.json.encode({"object": "list", "data": [{"id": MODEL, "object": "model"}]})
)


class Stats(msgspec.Struct, frozen=True):
    """What reached the backend since the last reset."""

    arrivals: int
    answered: int
    in_flight: int
    max_in_flight: int
    aborted: int  # the client left before its answer
    first_arrival_ns: int
    last_arrival_ns: int
    last_answer_ns: int
    last_leave_ns: int  # when the last client left before its answer
    called_off: int  # calls to abort a request; it is the client's leaving that ends one here
    arrivals_after: int  # later than the `after` that was asked for
    unstamped: int  # the kernel did not say when they came: stamped as they were read
    cpu_s: float


class Backend:
    """The counts, and the answers that are due. A fixed delay makes them a queue, without timers
    of their own."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._due: deque[tuple[int, Connection]] = deque()
        self._delay_ns = 0
        self._second = 0
        self._answers: list[bytes] = []
        self._timer: asyncio.TimerHandle | None = None
        self.reset(0.0)

    def reset(self, delay_s: float) -> None:
        """Count from zero, answer after `delay_s` from now on. Only while nothing is in flight."""
        self._delay_ns = int(delay_s * 1e9)
        self._due.clear()  # of clients that left
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._arrivals = array("q")
        self.answered = 0
        self.in_flight = 0
        self._max_in_flight = 0
        self.aborted = 0
        self.last_answer_ns = 0
        self.last_leave_ns = 0
        self.called_off = 0
        self._last_arrival_ns = 0
        self._unstamped = 0

    def arrived(self, connection: Connection, stamp_ns: int | None) -> None:
        now = time.time_ns()
        stamp = stamp_ns or now
        self._unstamped += stamp_ns is None
        self._arrivals.append(stamp)
        if stamp > self._last_arrival_ns:  # stamps of the kernel are read in any order
            self._last_arrival_ns = stamp
        self.in_flight += 1
        if self.in_flight > self._max_in_flight:
            self._max_in_flight = self.in_flight
        if not self._delay_ns:
            connection.answer(now)
            return
        self._due.append((now + self._delay_ns, connection))
        if self._timer is None:
            self._set_timer(self._delay_ns)

    def next_answer(self, now_ns: int) -> bytes:
        """The next of those that are given now."""
        second = now_ns // 1_000_000_000
        if second != self._second:
            self._second = second
            self._answers = answers(second)
        return self._answers[self.answered & (_LENGTHS - 1)]

    def _set_timer(self, delay_ns: int) -> None:
        self._timer = self._loop.call_later(delay_ns / 1e9, self._answer_due)

    def _answer_due(self) -> None:
        due, now = self._due, time.time_ns()
        while due and due[0][0] <= now + _HALF_TICK_NS:
            due.popleft()[1].answer(now)
        self._timer = None
        if due:
            self._set_timer(due[0][0] - now)

    def stats(self, after_ns: int | None = None) -> Stats:
        arrivals = self._arrivals
        later = 0 if after_ns is None else sum(stamp > after_ns for stamp in arrivals)
        return Stats(
            arrivals=len(arrivals),
            answered=self.answered,
            in_flight=self.in_flight,
            max_in_flight=self._max_in_flight,
            aborted=self.aborted,
            first_arrival_ns=arrivals[0] if arrivals else 0,
            last_arrival_ns=self._last_arrival_ns,
            last_answer_ns=self.last_answer_ns,
            last_leave_ns=self.last_leave_ns,
            called_off=self.called_off,
            arrivals_after=later,
            unstamped=self._unstamped,
            cpu_s=time.process_time(),
        )

    def control(self, target: str) -> bytes:
        """`/bench/reset?delay_s=…`, `/bench/stats[?after_ns=…]`."""
        url = urlsplit(target)
        asked = {name: values[0] for name, values in parse_qs(url.query).items()}
        if url.path == "/bench/reset":
            self.reset(float(asked["delay_s"]))
        after = asked.get("after_ns")
        return packed(msgspec.json.encode(self.stats(None if after is None else int(after))))


class Connection(asyncio.Protocol):
    """One client connection with at most one request in flight."""

    __slots__ = ("_backend", "_buffer", "_busy", "_transport")

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._buffer = b""
        self._busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc  # how the client left makes no difference
        if self._busy:
            self._busy = False
            self._backend.in_flight -= 1
            self._backend.aborted += 1
            self._backend.last_leave_ns = time.time_ns()

    def data_received(self, data: bytes, stamp_ns: int | None = None) -> None:
        if self._buffer:
            data = self._buffer + data
        head_end = data.find(b"\r\n\r\n")
        length = _LENGTH.search(data, 0, head_end) if head_end >= 0 else None
        stop = head_end + 4 + (int(length[1]) if length is not None else 0)
        if head_end < 0 or len(data) < stop:
            self._buffer = data
            return
        self._buffer = data[stop:]
        if data.startswith(_ABORT):
            self._backend.called_off += 1
            self.write(CALLED_OFF)
            return
        if data.startswith(b"POST"):
            self._busy = True
            self._backend.arrived(self, stamp_ns)
            return
        target = data[: data.find(b"\r\n")].split(b" ")[1].decode("latin-1")
        if target.startswith("/bench/"):
            self.write(self._backend.control(target))
        else:
            self.write(CATALOGUE)

    def answer(self, now_ns: int) -> None:
        if self._busy:
            self._busy = False
            backend = self._backend
            backend.in_flight -= 1
            backend.answered += 1
            backend.last_answer_ns = now_ns
            self.write(backend.next_answer(now_ns))

    def write(self, data: bytes) -> None:
        self._transport.write(data)


class StampedConnection(Connection):
    """The same on a bare socket, since only `recvmsg` tells when bytes came; slower for it."""

    __slots__ = ("_socket",)

    def __init__(self, backend: Backend, connected: socket.socket) -> None:
        super().__init__(backend)
        self._socket = connected
        connected.setblocking(False)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        asyncio.get_running_loop().add_reader(connected, self._read)

    def _read(self) -> None:
        try:
            data, notes, _, _ = self._socket.recvmsg(_READ_BYTES, 64)
        except BlockingIOError:
            return
        except OSError:
            data, notes = b"", []
        if not data:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self.connection_lost(None)
            return
        stamp_ns = None
        for level, kind, value in notes:
            if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS):
                seconds, nanoseconds = _TIMESPEC.unpack(value)
                stamp_ns = seconds * 1_000_000_000 + nanoseconds
        self.data_received(data, stamp_ns)

    def write(self, data: bytes) -> None:
        self._socket.sendall(data)  # a small answer to a client that reads: it never blocks


async def serve() -> None:
    backend = Backend()
    loop = asyncio.get_running_loop()
    listening = socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG)
    listening.setblocking(False)
    print(listening.getsockname()[1], flush=True)
    if KERNEL_STAMPS in sys.argv:
        # Here, so that connections have it from their first byte on.
        listening.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        while True:
            connected, _ = await loop.sock_accept(listening)
            StampedConnection(backend, connected)
    server = await loop.create_server(lambda: Connection(backend), sock=listening)
    await server.serve_forever()


def _end_with_standard_input() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    threading.Thread(target=_end_with_standard_input, daemon=True).start()
    uvloop.run(serve())
