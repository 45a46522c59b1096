"""One plain HTTP/1.1 connection, with one exchange at a time, on asyncio's protocol and llhttp.

The pool and the deadlines are `http1.py`'s; here is what happens between the first byte of a
request and the last of its answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import struct
from typing import Final, cast

import httptools

from batchline.domain.errors import SentUnanswered
from batchline.executor.intake import LARGE_BYTES, Intake
from batchline.executor.transport.contract import RATE_HEADERS, Answer, Pieces
from batchline.executor.transport.decoding import decoded
from batchline.executor.transport.known_heads import KnownHeads

MAX_HEAD_BYTES: Final = 64 * 1024
MAX_INTERIM: Final = 16  # answers of 102 and 103 before the one that counts
_MOST_DIGITS: Final = 20  # of a length: 64 bits, as the parser has checked

_COALESCE_BYTES: Final = 64 * 1024  # below: head and body in one write; above: spare the copy
_DISCARD_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # struct linger: on, zero seconds
_KEPT_HEADERS: Final = {
    name.encode(): name
    for name in ("retry-after", "retry-after-ms", "x-request-id", "content-type", *RATE_HEADERS)
}


class Dead(Exception):
    """The connection had ended before a byte of the request could be written."""


class Connection(asyncio.Protocol):
    """`begin` an exchange, await what it gives, and ask `reusable`. Not used by two at once."""

    def __init__(
        self,
        *,
        limit_bytes: int,
        intake: Intake | None = None,
        known_heads: KnownHeads | None = None,
    ) -> None:
        """`limit_bytes` bounds the body of an answer, `intake` those of all that are large.

        `known_heads` are those of its backend.
        """
        self._limit_bytes = limit_bytes
        self._intake = intake or Intake()
        self._look_at = self._first_look = min(limit_bytes, LARGE_BYTES)
        self._digits = len(str(limit_bytes))
        self._known_heads = known_heads or KnownHeads(self._first_look)
        self._loop = asyncio.get_running_loop()
        self._create_future = self._loop.create_future
        self._transport: asyncio.Transport | None = None
        self._fd = -1
        self._parser = httptools.HttpResponseParser(self)
        self._answer: asyncio.Future[Answer] | None = None
        self._pieces: Pieces | None = None
        self._whole = False  # the last exchange had its answer to the last byte
        self._closing: asyncio.Future[None] | None = None
        self.usable = False  # it is open, and nobody has begun to close it
        self.lost = False
        self.answers = 0  # that came to their end on this connection
        self.heard = False  # a byte came since the exchange began
        self.idle_since = 0.0  # `loop.time()`; for the pool
        self._is_large = False
        self._interim = 0
        self._headers: dict[str, str] = {}
        self._begin_answer()

    # -- for the pool ----------------------------------------------------------------------

    def begin(
        self, head: bytes, body: bytes, pieces: Pieces | None = None
    ) -> asyncio.Future[Answer]:
        """Hand the request to the socket, its first byte in this very call; then comes the answer.

        `pieces` as for `Transport.send`.

        The future gives SentUnanswered: `reset`, `malformed` or `too_large`.

        Raises:
            Dead: nothing was written.
        """
        if self._transport is None or not self.usable:
            raise Dead
        first = head + body if len(body) < _COALESCE_BYTES else head
        try:
            # Not `transport.write`: uvloop before 0.23 has it wait for the end of the loop's step,
            # and the gate is asked for this one.
            written = os.write(self._fd, first)
        except BlockingIOError:
            written = 0
        except OSError as exc:
            raise Dead from exc
        if written < len(first):
            self._transport.write(memoryview(first)[written:])
        if first is head:
            self._transport.write(body)
        self._whole = self.heard = False
        self._in_body = False
        self._pieces = pieces
        self._answer = answer = self._create_future()
        return answer

    @property
    def has_head(self) -> bool:
        """The head of the answer has come, or the exchange has ended; interim ones are none."""
        return self._in_body or not self._is_open

    def fail(self, message: str, *, reason: str) -> None:
        """End the exchange that runs, if one does, with SentUnanswered."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(SentUnanswered(message, reason=reason))

    def _fail_of_ours(self, exc: BaseException) -> None:
        """A fault of ours (no memory for the body, say) is not the backend's: it goes on up."""
        self._whole = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc)

    def end(self) -> bool:
        """The exchange is over for its caller; whether the connection can serve another."""
        self._answer = self._pieces = None
        if self._is_large:
            self._is_large = False
            self._look_at = self._first_look
            self._intake.left(self)
        transport = self._transport
        return (
            self._whole
            and self.usable
            and transport is not None
            # An answer may come before the request has left; the rest would hit the next one.
            and transport.get_write_buffer_size() == 0
        )

    def is_quiet(self) -> bool:
        """Nothing waits to be read: no end of the connection and no answer that nobody asked for.

        One system call. What the loop has not read yet would be taken as the next answer.
        """
        if not self.usable:
            return False
        asking = select.poll()
        asking.register(self._fd, select.POLLIN)
        return not asking.poll(0)

    def abort(self) -> None:
        """Close the socket without flushing: neither our buffer nor the kernel's is sent any more.

        `close()` would wait for a peer that does not read. Without the linger option the kernel
        would still deliver a whole request after we said that it was taken back.
        """
        self.usable = False
        if self._transport is None or self.lost:
            return
        sock = self._transport.get_extra_info("socket")
        with contextlib.suppress(OSError):  # the peer was quicker
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _DISCARD_ON_CLOSE)
        self._transport.abort()

    def let_go(self) -> None:
        """Close an idle connection in order."""
        self.usable = False
        if self._transport is not None:
            self._transport.close()

    async def closed(self) -> None:
        """Return when the socket is closed, however often the caller is cancelled meanwhile."""
        cancelled: asyncio.CancelledError | None = None
        while not self.lost:
            if self._closing is None:
                self._closing = self._loop.create_future()
            try:
                await asyncio.wait([self._closing])  # one loop step: an abort waits for nobody
            except asyncio.CancelledError as exc:
                cancelled = exc
        if cancelled is not None:
            raise cancelled

    # -- asyncio's side --------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._fd = transport.get_extra_info("socket").fileno()
        self.usable = True

    def data_received(self, data: bytes) -> None:
        answer = self._answer
        if answer is None or answer.done():
            # Said unasked, or more than the answer. The connection is of no use any more.
            self._whole = False
            self.abort()
            return
        if self.heard:
            self._feed(data)
            return
        self.heard = True
        if self._pieces is None:
            known = self._known_heads.answer(data)
            if known is not None:
                self._whole = True
                self.answers += 1
                answer.set_result(known)
                return
        self._interim = 0
        self._begin_answer()
        self._feed(data)
        if self._whole and self._pieces is None:  # in one piece
            self._known_heads.note(data, answer.result())

    def _feed(self, data: bytes) -> None:
        if not self._in_body:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.fail("an answer in another protocol", reason="malformed")
        except httptools.HttpParserCallbackError as exc:
            self._fail_of_ours(exc.__context__ or exc)
        except httptools.HttpParserError as exc:
            # After the whole answer it is what follows that is broken.
            self._whole = False
            self.fail(f"unusable answer: {type(exc).__name__}", reason="malformed")
        if not self._in_body and self._head_bytes > MAX_HEAD_BYTES:
            self.fail(f"a head of more than {MAX_HEAD_BYTES} bytes", reason="malformed")

    def connection_lost(self, exc: Exception | None) -> None:
        self.usable = False
        self.lost = True
        if self._closing is not None:
            self._closing.set_result(None)
        if self._answer is not None and not self._answer.done():
            if exc is None and self._ends_with_connection:
                try:
                    self._complete(self._answer, self._parser.get_status_code())
                except Exception as ours:  # noqa: BLE001  # it goes to whoever awaits the answer
                    self._fail_of_ours(ours)
            else:
                self.fail("connection lost", reason="reset")

    # -- llhttp's side ---------------------------------------------------------------------

    def _begin_answer(self) -> None:
        self._head_bytes = 0
        self._in_body = False
        self._handing_over = False  # the body goes to `_pieces`
        self._framed = False  # its length is known from its head
        self._body: list[bytes] = []
        self._body_bytes = self._announced = 0
        self._encoding = ""

    def on_message_begin(self) -> None:
        self._whole = False  # else this would be a second answer to one request
        self._headers = {}  # not those of the first one, which its answer has

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"content-length":
            self._framed = True
            if len(value) >= self._digits and value.isdigit():  # it may be above the limit
                # llhttp lets any number of zeros go before it; Python reads 4,300 digits at most.
                self._announced = int(value[-_MOST_DIGITS:])
        elif (kept := _KEPT_HEADERS.get(name)) is not None:
            if value:
                self._headers.setdefault(kept, value.decode("latin-1"))
        elif name == b"transfer-encoding":
            self._framed = True
            if value.lower() != b"chunked":
                self.fail("a transfer encoding other than chunked", reason="malformed")
        elif name == b"content-encoding":
            self._encoding = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._in_body = True
        if self._pieces is not None and self._is_open:
            status = self._parser.get_status_code()
            if status >= 200:
                head = Answer(status, self._headers, b"")
                self._handing_over = self._pieces.begin(head)
        if self._announced > self._limit_bytes and not self._handing_over:
            self.fail(f"{self._announced} bytes announced", reason="too_large")

    def on_body(self, data: bytes) -> None:
        if self._handing_over and not self._encoding:
            self._hand_over(data)
            return
        self._body.append(data)
        self._body_bytes = size = self._body_bytes + len(data)
        if size > self._look_at:
            self._look()

    def _look(self) -> None:
        """The body is large, or larger than that."""
        if self._body_bytes > self._limit_bytes:
            self._body.clear()
            self.fail(f"more than {self._limit_bytes} bytes", reason="too_large")
        elif self._is_open:
            self._look_at = min(self._limit_bytes, self._body_bytes + LARGE_BYTES)
            self._is_large = True
            self._intake.took(self, self._body_bytes)

    def pause(self) -> None:
        """Read no further (see `Taker`); the sender waits once the system's buffers are full."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def go_on(self) -> None:
        """Read further."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def _hand_over(self, piece: bytes) -> None:
        """Give a piece of the body to whoever wanted it so; what that raises ends the exchange."""
        if self._pieces is None or not self._is_open:
            return
        try:
            self._pieces.take(piece)
        except SentUnanswered as exc:
            self.fail(exc.message, reason=exc.reason)

    def on_message_complete(self) -> None:
        answer = self._answer
        if answer is None or answer.done():
            return  # given up on the way: what is kept has told its whole answer
        parser = self._parser
        status = parser.get_status_code()
        if status >= 200:
            self._whole = parser.should_keep_alive()
            body = self._body
            if len(body) == 1 and not self._encoding:  # nearly always, and in one call less
                self.answers += 1
                self._body = []
                answer.set_result(Answer(status, self._headers, body[0]))
            else:
                self._complete(answer, status)
        elif status == 101 or self._interim >= MAX_INTERIM:
            self.fail(f"status {status}", reason="malformed")
        else:  # 102 and 103 come before the answer
            self._interim += 1
            self._begin_answer()

    @property
    def _is_open(self) -> bool:
        """The exchange has not come to its end yet."""
        return self._answer is not None and not self._answer.done()

    @property
    def _ends_with_connection(self) -> bool:
        return self._in_body and not self._framed

    def _complete(self, answer: asyncio.Future[Answer], status: int) -> None:
        self.answers += 1
        pieces = self._body
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self._body = []
        if self._encoding:
            try:
                body = self._decoded(body)
            except SentUnanswered as exc:
                self._whole = False
                answer.set_exception(exc)
                return
            if answer.done():  # whoever took it had enough
                self._whole = False
                return
        answer.set_result(Answer(status, self._headers, body))

    def _decoded(self, body: bytes) -> bytes:
        """The body, decompressed; empty where it was handed over.

        Raises:
            SentUnanswered: it cannot be decompressed, or is too large.
        """
        body = decoded(body, self._encoding, limit_bytes=self._limit_bytes)
        if not self._handing_over:
            return body
        # Nobody asked for it compressed: it comes late, and in one piece.
        if body:
            self._hand_over(body)
        return b""
