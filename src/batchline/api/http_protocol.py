"""uvicorn's HTTP/1.1 protocol, with our envelope where uvicorn would answer in plain text."""

from __future__ import annotations

import asyncio
import math
from typing import Final

import httptools
from starlette.types import ASGIApp
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from batchline.api import wire
from batchline.api.edge import LINGER_S, OPENAI_VERSION, new_request_id
from batchline.api.errors import INVALID_REQUEST
from batchline.telemetry import event

MAX_HEAD_BYTES: Final = 64 * 1024  # request line and headers of one request, trailers included


class _HeadTooLarge(Exception):
    """Raised inside the parser's callbacks, which wrap it."""


class EnvelopeProtocol(HttpToolsProtocol):
    """Refuses malformed HTTP with 400 and an oversize head with 431, both as envelopes."""

    _head_bytes = 0  # names and values of the request at hand
    _idle_bytes = 0  # received since the last byte of a body or end of a request
    _progressed = False  # a body byte or an end of a request since the last look
    _refused = False
    _linger: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return  # lingering, so that the answer is not overtaken by a reset
        self._unset_keepalive_if_required()
        self._progressed = False
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            return  # websockets and h2c are not offered: the request is answered as it is
        except httptools.HttpParserError as exc:
            if isinstance(exc.__context__, _HeadTooLarge):
                self._refuse_head()
            else:
                self._refuse(400, "The request could not be parsed as HTTP/1.1.")
            return
        # A header without an end, or a chunk extension or trailer, reaches no callback: what counts
        # is how much came in without any of it being of use.
        self._idle_bytes = 0 if self._progressed else self._idle_bytes + len(data)
        if self._idle_bytes > MAX_HEAD_BYTES:
            self._refuse_head()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._linger is not None:
            self._linger.cancel()
        super().connection_lost(exc)

    # -- the parser's callbacks ------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._head_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + 4)  # colon, space, CR, LF
        super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        self._progressed = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._progressed = True
        super().on_message_complete()

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES:
            raise _HeadTooLarge

    # -- refusals --------------------------------------------------------------------------------

    def _refuse_head(self) -> None:
        self._refuse(431, f"The request's headers are larger than {MAX_HEAD_BYTES} bytes.")

    def _refuse(self, status: int, message: str) -> None:
        """Answer and close: at once for the answer, after at most LINGER_S for the connection."""
        self._refused = True
        request_id = new_request_id()
        event("request_refused", request_id=request_id, status=status)
        cycle = self.cycle
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
        body = wire.encode(wire.error(message, kind=INVALID_REQUEST))
        head = (
            STATUS_LINE[status]
            + (
                f"content-type: {wire.JSON_TYPE}\r\ncontent-length: {len(body)}\r\n"
                f"x-request-id: {request_id}\r\nopenai-version: {OPENAI_VERSION}\r\n"
                f"openai-processing-ms: 0\r\nconnection: close\r\n\r\n"
            ).encode()
        )
        self.transport.write(head + body)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        self._linger = self.loop.call_later(LINGER_S, self.transport.close)


def serve_config(app: ASGIApp, *, host: str, port: int, grace_s: float = 10.0) -> Config:
    """How uvicorn is to serve `app`; port 0 lets the kernel choose.

    Requests that still run `grace_s` after the end was asked for are answered with 503 or cut off.

    uvicorn says nothing of its own: what happens is logged by the edge, with ids and no paths.
    """
    return Config(
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
        timeout_keep_alive=75,  # longer than the SDKs keep idle connections, so they close first
        backlog=2048,
    )
