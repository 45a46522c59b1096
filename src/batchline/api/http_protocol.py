"""uvicorn's HTTP/1.1 protocol, with our envelope where uvicorn would answer in plain text."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import struct
from typing import Final, cast

import httptools
from starlette.types import ASGIApp
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from batchline.api import wire
from batchline.api.connections import KEEP_ALIVE_S, ConnectionSettings, Overdue, Patience
from batchline.api.edge import LINGER_S, OPENAI_VERSION, new_request_id
from batchline.api.errors import Problem, overloaded, refusal
from batchline.telemetry import event

MAX_HEAD_BYTES: Final = 64 * 1024  # request line and headers of one request, trailers included
MAX_PIPELINED: Final = 32  # requests that wait behind the one at hand; 256 KiB could bring 6,000

# What is above `max_open` and still told so; beyond, connections are closed without a word.
_TOLD_SHARE: Final = 8

_DISCARD_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # struct linger: on, zero seconds


class ServeConfig(Config):
    """uvicorn's configuration, which is all that a protocol is given, with ours."""

    connections: ConnectionSettings = ConnectionSettings()


class _Refusal(Exception):
    """Raised inside the parser's callbacks, which wrap it."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem


class EnvelopeProtocol(HttpToolsProtocol):
    """Refuses what is malformed, oversize or overdue, each as an envelope; see `Patience`.

    A client that has closed its side of the connection is still answered.
    """

    config: ServeConfig
    _head_bytes = 0  # names and values of the request at hand
    _idle_bytes = 0  # received since the last byte of a body or end of a request
    _progressed = False  # a body byte or an end of a request since the last look
    _refused = False
    _surplus = False  # one connection too many: told so, and closed
    _linger: asyncio.TimerHandle | None = None
    _next_look: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast("asyncio.Transport", transport))
        most = self.config.connections.max_open
        self._patience = Patience(self.config.connections, self.loop.time())
        if len(self.connections) <= most:
            self._look_later()
            return
        if len(self.connections) > most + most // _TOLD_SHARE + 1:
            self.transport.abort()
            return
        # Told at its first byte: an answer before the request confuses some clients.
        self._surplus = True
        self._linger = self.loop.call_later(LINGER_S, self.transport.close)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return  # lingering, so that the answer is not overtaken by a reset
        if self._surplus:
            self._refuse(overloaded())
            return
        self._unset_keepalive_if_required()
        self._progressed = False
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            return  # websockets and h2c are not offered: the request is answered as it is
        except httptools.HttpParserError as exc:
            cause = exc.__context__
            malformed = refusal(400, "The request could not be parsed as HTTP/1.1.")
            self._refuse(cause.problem if isinstance(cause, _Refusal) else malformed)
            return
        # A header without an end, or a chunk extension or trailer, reaches no callback: what counts
        # is how much came in without any of it being of use.
        self._idle_bytes = 0 if self._progressed else self._idle_bytes + len(data)
        if self._idle_bytes > MAX_HEAD_BYTES:
            self._refuse(_head_too_large())

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio's, of which uvicorn has less
        """The client sends no more. It may well read: what it asked for whole is answered.

        False lets the transport close itself, once what we have written is sent.
        """
        if self._refused or self._surplus:
            return False
        if self._patience.is_midway:
            self._refuse(refusal(400, "The request was cut short before its end."))
        cycle = self.cycle
        if cycle is None or cycle.disconnected or cycle.response_complete:
            return False  # nothing was asked that is not answered
        cycle.keep_alive = False  # closes the connection once it is answered
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._linger, self._next_look):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def resume_writing(self) -> None:
        self._patience.taken(self.loop.time())
        super().resume_writing()

    # -- the parser's callbacks ------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= MAX_PIPELINED:
            raise _Refusal(refusal(400, "Too many requests were sent ahead of their answers."))
        self._head_bytes = 0
        self._patience.head_began(self.loop.time())
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + 4)  # colon, space, CR, LF
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._patience.head_ended(self.loop.time())
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._progressed = True
        self._patience.body_came(len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._progressed = True
        self._patience.request_ended(self.loop.time())
        if self.cycle.response_complete:  # given before the body had come
            self._patience.answered(self.loop.time())
        super().on_message_complete()

    def on_response_complete(self) -> None:
        if not self.pipeline:
            self._patience.answered(self.loop.time())
        super().on_response_complete()

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES:
            raise _Refusal(_head_too_large())

    # -- clients that take their time --------------------------------------------------------------

    def _look_later(self) -> None:
        self._next_look = self.loop.call_later(self._patience.look_s, self._look)

    def _look(self) -> None:
        if self._refused or self.transport.is_closing():
            return
        overdue = self._patience.overdue(
            self.loop.time(),
            reading=not self.flow.read_paused,
            unsent=self.transport.get_write_buffer_size(),
        )
        if overdue is None:
            self._look_later()
        elif overdue is Overdue.REQUEST:
            self.transport.close()
        elif overdue is Overdue.READING:
            event("answer_given_up")
            self._reset()
        else:
            self._refuse(refusal(408, f"The request's {overdue.value} came too slowly."))

    def _reset(self) -> None:
        """End the connection for a client that does not read: what waits for it is discarded.

        Else the kernel keeps megabytes of the answer and goes on offering them for minutes.
        """
        sock = self.transport.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError):  # the client was quicker
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _DISCARD_ON_CLOSE)
        self.transport.abort()

    # -- refusals --------------------------------------------------------------------------------

    def _refuse(self, problem: Problem) -> None:
        """Answer and close: at once for the answer, after at most LINGER_S for the connection."""
        self._refused = True
        request_id = new_request_id()
        event("request_refused", request_id=request_id, status=problem.status)
        cycle = self.cycle
        if cycle is not None and cycle.response_complete and cycle.more_body:
            self.transport.close()  # it has its answer
            return
        if cycle is not None and not cycle.response_complete:
            if not cycle.more_body:  # complete, and it was what came after it that is broken
                cycle.keep_alive = False  # closes the connection once it is answered
                return
            # Its own body is broken: to its handler that is a client that went away.
            cycle.disconnected = True
            cycle.message_event.set()
            if cycle.response_started or self.pipeline:
                self.transport.close()  # an answer of ours would land inside another one
                return
        body = wire.encode(problem.body)
        more = "".join(f"{name}: {value}\r\n" for name, value in problem.headers.items())
        head = (
            STATUS_LINE[problem.status]
            + (
                f"content-type: {wire.JSON_TYPE}\r\ncontent-length: {len(body)}\r\n{more}"
                f"x-request-id: {request_id}\r\nopenai-version: {OPENAI_VERSION}\r\n"
                f"openai-processing-ms: 0\r\nconnection: close\r\n\r\n"
            ).encode()
        )
        self.transport.write(head + body)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        if self._linger is not None:
            self._linger.cancel()
        self._linger = self.loop.call_later(LINGER_S, self.transport.close)


def _head_too_large() -> Problem:
    return refusal(431, f"The request's headers are larger than {MAX_HEAD_BYTES} bytes.")


def serve_config(
    app: ASGIApp,
    *,
    host: str,
    port: int,
    grace_s: float = 10.0,
    connections: ConnectionSettings | None = None,
) -> ServeConfig:
    """How uvicorn is to serve `app`; port 0 lets the kernel choose.

    Requests that still run `grace_s` after the end was asked for are answered with 503 or cut off.

    uvicorn says nothing of its own: what happens is logged by the edge, with ids and no paths.
    """
    config = ServeConfig(
        app,
        host=host,
        port=port,
        loop="uvloop",
        http=EnvelopeProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=math.ceil(grace_s),  # a slow download must not keep us for ever
        timeout_keep_alive=math.ceil(KEEP_ALIVE_S),
        backlog=2048,
    )
    config.connections = connections or config.connections
    return config
