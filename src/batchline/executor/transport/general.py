"""The transport for any HTTP backend: TLS, compression, odd servers. Only it knows aiohttp.

aiohttp brings the connection pool, name resolution, TLS and the answer parser. Its client session
is left out: it writes a request's bytes in a task of its own (one loop step after the gate was
asked), and it closes by flushing. Both break the contract, and it was half of the CPU time of an
exchange. What is left is small: take a connection, ask, write, read, give it back
(docs/decisions/0004-transport.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Final

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.http_exceptions import (
    ContentLengthError,
    HttpProcessingError,
    TransferEncodingError,
)
from aiohttp.http_parser import RawResponseMessage
from aiohttp.streams import EofStream, StreamReader
from yarl import URL

from batchline.domain.errors import NotAdmitted, NotSent, SentUnanswered
from batchline.executor.contract import BackendSettings
from batchline.executor.intake import LARGE_BYTES, Intake
from batchline.executor.transport.contract import RATE_HEADERS, Answer, Pieces
from batchline.executor.transport.heads import Heads

# uvicorn and node close an idle connection after 5 s. Letting go first keeps us from writing into a
# connection that is being closed, which would cost the line an attempt; a permit that is in use
# never idles that long, so the reconnects cost nothing.
_KEEPALIVE_S: Final = 4.0
_KEPT_HEADERS: Final = ("retry-after", "retry-after-ms", "x-request-id", "content-type")
_KEPT_BESIDE: Final = (*_KEPT_HEADERS, *RATE_HEADERS)  # where there is one of the latter
_COALESCE_BYTES: Final = 64 * 1024  # below: head and body in one write; above: spare the copy
_STALE_TRIES: Final = 8  # the pool drops dead connections itself; these are the spoiled ones
_MAX_HEADER_BYTES: Final = 64 * 1024
_MOST_DIGITS: Final = 20  # of a length: 64 bits, as the parser has checked
_UNTRUSTED: Final = "certificate not trusted"
_CERTIFICATES: Final = {  # by OpenSSL's X509_V_ERR_…, where that is not the authority's fault
    10: "certificate expired",
    62: "certificate of another host",
    64: "certificate of another host",
}
_MAX_INTERIM: Final = 16  # answers of 102 and 103 before the one that counts
_DISCARD_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # struct linger: on, zero seconds


class GeneralTransport:
    """`Transport` on aiohttp's connector. Built and used inside one running event loop.

    The number of connections is not bounded here: permits bound the requests in flight.
    """

    def __init__(
        self,
        settings: BackendSettings,
        intake: Intake | None = None,
        *,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`tls` replaces the default context, which checks certificates against the system's.

        Raises:
            ValueError: `base_url` or a configured header cannot be used.
        """
        self._settings = settings
        self._intake = intake or Intake()
        self._heads = Heads(settings.base_url, settings.headers or {})
        self._connector = aiohttp.TCPConnector(
            limit=0, keepalive_timeout=_KEEPALIVE_S, ssl=tls or True
        )
        # The connector asks a request where it goes, and nothing else: one serves for all.
        self._destination = aiohttp.ClientRequest(
            "POST", URL(settings.base_url), loop=asyncio.get_running_loop(), ssl=tls or True
        )
        self._connect_timeout = aiohttp.ClientTimeout(
            # The threshold turns off aiohttp's rounding of timeouts up to whole seconds.
            connect=settings.connect_timeout_s,
            ceil_threshold=float("inf"),
        )
        self._in_flight: set[Connection] = set()

    async def send(
        self,
        path: str,
        body: bytes,
        before_write: Callable[[], bool],
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        pieces: Pieces | None = None,
    ) -> Answer:
        """See `Transport.send`. The total timeout covers connecting, sending and the answer."""
        head = self._heads.post(path, len(body), key, headers)
        total_s = self._settings.total_timeout_s
        return await self._exchange(head, body, before_write, total_s, pieces)

    async def get_json(self, path: str, *, timeout_s: float) -> Answer:
        """See `Transport.get_json`."""
        return await self._exchange(self._heads.get(path), b"", lambda: True, timeout_s)

    async def close(self) -> None:
        """Close every connection at once; requests in flight end as `SentUnanswered`."""
        for connection in self._in_flight:
            _abort(connection)
        await self._connector.close()

    async def _exchange(
        self,
        head: bytes,
        body: bytes,
        before_write: Callable[[], bool],
        total_s: float,
        pieces: Pieces | None = None,
    ) -> Answer:
        connection: Connection | None = None
        sent = whole = False
        try:
            async with asyncio.timeout(total_s):
                connection = await self._connect()
                protocol, wire = _usable(connection)
                # No await from here to the write: this is the loop step the gate was asked in.
                if not before_write():
                    raise NotAdmitted("the gate closed before the first byte was written")
                sent = True
                self._in_flight.add(connection)
                _write(wire, head, body)
                answer = await _read_answer(protocol, self._settings, pieces, self._intake)
                whole = True
                return answer
        except TimeoutError as exc:
            if not sent:
                raise NotSent(f"no connection within {total_s:g} s") from exc
            raise SentUnanswered(f"no whole answer within {total_s:g} s", reason="timeout") from exc
        finally:
            if connection is not None:
                self._in_flight.discard(connection)
                if sent and not (whole and _all_written(connection)):
                    await _close_now(connection)
                else:
                    # Closes what cannot be used again: `Connection: close`, stray bytes, a fault.
                    connection.release()

    async def _connect(self) -> Connection:
        """A connection that was usable a moment ago, from the pool or new.

        Raises:
            NotSent: refused, unknown host, TLS, or not within the connect timeout.
        """
        for _ in range(_STALE_TRIES):
            try:
                connection = await self._connector.connect(
                    self._destination, traces=[], timeout=self._connect_timeout
                )
            except TimeoutError as exc:
                limit_s = self._settings.connect_timeout_s
                raise NotSent(f"no connection within {limit_s:g} s") from exc
            except (aiohttp.ClientError, OSError, UnicodeError) as exc:
                raise NotSent(f"no connection: {_reason(exc)}") from exc
            protocol = connection.protocol
            # A server may have sent something unasked on an idle connection (a 408, say); taken
            # as the answer to the next request it would settle the wrong line.
            if protocol is None or protocol.should_close or not protocol.is_connected():
                connection.close()
                continue
            protocol.set_response_params(
                read_until_eof=True,
                auto_decompress=True,
                max_line_size=_MAX_HEADER_BYTES,
                max_field_size=_MAX_HEADER_BYTES,
            )
            return connection
        raise NotSent("every connection was lost or spoiled before it could be used")


def _usable(connection: Connection) -> tuple[ResponseHandler, asyncio.Transport]:
    """The protocol and transport of a connection; NotSent when it was lost meanwhile."""
    protocol = connection.protocol
    if protocol is None or protocol.transport is None or protocol.transport.is_closing():
        raise NotSent("the connection was lost before the first byte")
    return protocol, protocol.transport


def _write(wire: asyncio.Transport, head: bytes, body: bytes) -> None:
    if len(body) < _COALESCE_BYTES:
        wire.write(head + body)
    else:
        wire.write(head)
        wire.write(body)


async def _read_head(protocol: ResponseHandler) -> tuple[RawResponseMessage, StreamReader]:
    message, payload = await protocol.read()
    interim = 0
    while 100 <= message.code < 200 and message.code != 101 and interim < _MAX_INTERIM:
        interim += 1
        message, payload = await protocol.read()  # 102 and 103 come before the answer
    if message.code < 200:
        raise SentUnanswered(f"status {message.code}", reason="malformed")
    return message, payload


async def _read_head_within(
    protocol: ResponseHandler, limit_s: float
) -> tuple[RawResponseMessage, StreamReader]:
    waiting = asyncio.timeout(limit_s)
    try:
        async with waiting:
            return await _read_head(protocol)
    except TimeoutError as exc:
        if not waiting.expired():  # the socket's own; for the caller
            raise
        raise SentUnanswered(f"no answer began within {limit_s:g} s", reason="timeout") from exc


async def _read_answer(
    protocol: ResponseHandler, settings: BackendSettings, pieces: Pieces | None, intake: Intake
) -> Answer:
    """The next answer, whole and decoded; its body is empty where `pieces` took it.

    Raises:
        SentUnanswered: `reset`, `malformed`, `too_large`, or `timeout` before it began.
    """
    limit_bytes, first_s = settings.max_answer_bytes, settings.first_byte_timeout_s
    try:
        if first_s is None:
            message, payload = await _read_head(protocol)
        else:
            message, payload = await _read_head_within(protocol, first_s)
        is_counted = RATE_HEADERS[0] in message.headers or RATE_HEADERS[3] in message.headers
        names = _KEPT_BESIDE if is_counted else _KEPT_HEADERS
        kept = {name: value for name in names if (value := message.headers.get(name))}
        answer = Answer(status=message.code, headers=kept, body=b"")
        if pieces is not None and pieces.begin(answer):
            await _hand_over(protocol, payload, pieces)
        else:
            announced = message.headers.get("Content-Length")
            # Any number of zeros may go before it, and Python reads 4,300 digits at most.
            if announced is not None and int(announced[-_MOST_DIGITS:]) > limit_bytes:
                raise SentUnanswered(f"{announced} bytes announced", reason="too_large")
            body = await _read_body(protocol, payload, limit_bytes, intake)
            answer = Answer(status=message.code, headers=kept, body=body)
    except HttpProcessingError as exc:
        raise SentUnanswered(f"unusable answer: {_reason(exc)}", reason="malformed") from exc
    except aiohttp.ClientPayloadError as exc:
        cut_short = isinstance(exc.__cause__, ContentLengthError | TransferEncodingError)
        reason = "reset" if cut_short else "malformed"
        raise SentUnanswered(f"unusable answer: {_reason(exc)}", reason=reason) from exc
    except (aiohttp.ClientError, OSError, EofStream) as exc:
        raise SentUnanswered(f"connection lost: {_reason(exc)}", reason="reset") from exc
    if _ended_by_reset(protocol, message):
        raise SentUnanswered("reset in a body that ends with the connection", reason="reset")
    return answer


class _Reading:
    """A `Taker`: aiohttp stops its socket soon after nobody reads what came."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()

    def pause(self) -> None:
        self.open.clear()

    def go_on(self) -> None:
        self.open.set()


async def _read_body(
    protocol: ResponseHandler, payload: StreamReader, limit_bytes: int, intake: Intake
) -> bytes:
    if payload.is_eof():
        body = await payload.readany()  # the usual case: it came with the head
        size = len(body)
    else:
        reading = _Reading()
        try:
            with _told_when_lost(protocol, payload):
                chunks, size = [], 0
                while size <= limit_bytes and not payload.at_eof():
                    chunks.append(await payload.readany())
                    size += len(chunks[-1])
                    if size >= LARGE_BYTES:
                        intake.took(reading, size)
                        await reading.open.wait()
            body = b"".join(chunks)
        finally:
            intake.left(reading)
    if size > limit_bytes:
        raise SentUnanswered(f"more than {limit_bytes} bytes", reason="too_large")
    return body


async def _hand_over(protocol: ResponseHandler, payload: StreamReader, pieces: Pieces) -> None:
    with _told_when_lost(protocol, payload):
        while not payload.at_eof():
            if piece := await payload.readany():
                pieces.take(piece)


@contextlib.contextmanager
def _told_when_lost(protocol: ResponseHandler, payload: StreamReader) -> Iterator[None]:
    """Wakes whoever reads `payload` when the connection ends.

    aiohttp does so itself, except after a fault in the framing of a body that is being read (a
    chunk without a size): it closes the connection and leaves the reader to its timeout.
    """

    def lost(ended: asyncio.Future[None] | None) -> None:
        if ended is not None and not ended.cancelled():
            ended.exception()  # seen here, or asyncio reports it as lost
        if not payload.is_eof() and payload.exception() is None:
            payload.set_exception(protocol.exception() or aiohttp.ServerDisconnectedError())

    closed = protocol.closed
    if closed is None:
        lost(None)
        yield
        return
    closed.add_done_callback(lost)
    try:
        yield
    finally:
        closed.remove_done_callback(lost)


def _ended_by_reset(protocol: ResponseHandler, message: RawResponseMessage) -> bool:
    """A body without a length ends with the connection; a reset is not such an end."""
    if message.chunked or "Content-Length" in message.headers:
        return False
    return isinstance(protocol.exception(), OSError)


def _all_written(connection: Connection) -> bool:
    """False when an answer came before the request had left; the rest would hit the next one."""
    wire = connection.transport
    return wire is None or wire.get_write_buffer_size() == 0


def _abort(connection: Connection) -> None:
    """Close the socket without flushing: neither our buffer nor the kernel's is sent any more.

    `close()` would wait for a peer that does not read. Without the linger option the kernel would
    still deliver a whole request after we said that it was taken back.
    """
    wire = connection.transport
    if wire is None:
        return
    sock = wire.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):  # the peer was quicker
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _DISCARD_ON_CLOSE)
    wire.abort()


async def _close_now(connection: Connection) -> None:
    """Abort, and return only when the socket is closed, however often we are cancelled."""
    protocol = connection.protocol
    closed = protocol.closed if protocol is not None else None
    _abort(connection)
    connection.close()
    cancelled: asyncio.CancelledError | None = None
    while closed is not None and not closed.done():
        try:
            await asyncio.wait([closed])  # one loop step: an abort waits for nobody
        except asyncio.CancelledError as exc:
            cancelled = exc
    if closed is not None and not closed.cancelled():
        closed.exception()  # a reset by the peer is no news here
    if cancelled is not None:
        raise cancelled


def _reason(exc: BaseException) -> str:
    """What went wrong in few words: kinds and system errors, nothing that a peer sent."""
    if isinstance(exc, aiohttp.ClientConnectorDNSError):
        return "unknown host"
    if isinstance(exc, aiohttp.ClientConnectorCertificateError):
        return _CERTIFICATES.get(getattr(exc.certificate_error, "verify_code", 0), _UNTRUSTED)
    if isinstance(exc, aiohttp.ClientConnectorError):
        return _reason(exc.os_error)
    if isinstance(exc, OSError) and exc.errno is not None and exc.errno > 0:
        return os.strerror(exc.errno).lower()
    return type(exc).__name__
