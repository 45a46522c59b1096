"""HTTP towards the workers: one protocol a connection, one exchange in flight on each.

Fast enough for load: `httptools` and no routing layer, 50 us of CPU a request, 65 with a log file.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import re
import socket
import struct
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Final, cast

import httptools
import msgspec

from tests.support.scripted_backend import answers, streaming
from tests.support.scripted_backend.rate import Limiter
from tests.support.scripted_backend.script import Answer, Fault, Script
from tests.support.scripted_backend.witness import Event, Kind, Witness, now

CATALOGUE: Final = "/v1/models"
ABORT: Final = "/abort_request"
METRICS: Final = "/metrics"

_MARKERS: Final = re.compile(rb"\[\[(id|delay|status|fault)=([^\]]{1,200})\]\]")
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # SO_LINGER of no time
_LAST_RECEIVED: Final = 52  # tcpi_last_data_recv in the struct tcp_info of linux/tcp.h, in ms


class _Body(msgspec.Struct):
    model: msgspec.Raw = msgspec.Raw(b"null")
    stream: object = None
    rid: str | None = None


_decode_body: Final = msgspec.json.Decoder(_Body).decode


def _rid(body: bytes) -> str | None:
    """`rid` of a body, None where it has none that can be read."""
    try:
        return _decode_body(body).rid
    except (ValueError, RecursionError):
        return None


class Exchange:
    """One request that is being answered."""

    __slots__ = (
        *("abort_id", "answer", "connection", "id", "keep_alive", "marker", "model", "number"),
        *("path", "wants_stream"),
    )

    def __init__(self, connection: Connection, number: int, path: str) -> None:
        self.connection = connection
        self.number = number
        self.path = path
        self.id = ""
        self.abort_id = ""
        self.marker = b""
        self.model = b"null"
        self.answer = Answer()
        self.keep_alive = True
        self.wants_stream = False


class Responder:
    """What all connections share: the script, the witness, the answers that are held."""

    def __init__(self, script: Script, witness: Witness) -> None:
        self.witness = witness
        self.connections: set[Connection] = set()
        self._held: dict[int, Exchange] = {}
        self.follow(script)

    def follow(self, script: Script) -> None:
        """Do this from now on; what is held stays held, each id's plan starts at its first answer.

        Attempts that `Event.attempt` shows go on being counted.
        """
        self.script = script
        self.holding = True
        self.unread_resets = script.unread_resets
        self._planned: Counter[str] = Counter()
        self._limiter = None if script.rate is None else Limiter.of(script.rate)
        self._random = random.Random(script.seed)  # noqa: S311  # latencies

    def release(self, ids: Iterable[str] | None) -> int:
        """Give the held answers of these ids (None: of all); how many there were."""
        wanted = None if ids is None else set(ids)
        released = [e for e in self._held.values() if wanted is None or e.id in wanted]
        for exchange in released:
            del self._held[exchange.number]
        self.witness.held = len(self._held)
        for exchange in released:
            exchange.connection.finish(exchange)
        return len(released)

    def hold(self, exchange: Exchange) -> None:
        self._held[exchange.number] = exchange
        self.witness.held = len(self._held)
        self.witness.changed()

    def drop(self, exchange: Exchange) -> None:
        """Its client is gone."""
        if self._held.pop(exchange.number, None) is not None:
            self.witness.held = len(self._held)

    def plan(self, exchange: Exchange, markers: dict[bytes, bytes], body: bytes) -> Answer:
        """How the request that has just arrived is answered."""
        if self.script.cap and self.witness.in_flight > self.script.cap:
            return self.script.shed
        try:
            asked = _decode_body(body)
            exchange.model = bytes(asked.model)
            exchange.wants_stream = asked.stream is True
            model = json.loads(exchange.model)
        except (ValueError, RecursionError):
            return Answer(status=400)
        if self.script.check_model and model not in self.script.models:
            return Answer(status=404, code="model_not_found")
        self._planned[exchange.id] += 1
        answer = self.script.plan(exchange.id, self._planned[exchange.id])
        if self._limiter is not None:
            answer = self._limiter.answer(answer)
        return _marked(answer, markers) if len(markers) > 1 else answer

    def call_off(self, abort_id: str) -> None:
        """End the request of that id by half a text; nothing when none of that id runs."""
        for connection in list(self.connections):
            exchange = connection.exchange
            if exchange is not None and exchange.abort_id == abort_id:
                self.drop(exchange)
                exchange.answer = Answer(body=_HALF_A_TEXT)
                connection.finish(exchange)

    def latency_s(self, answer: Answer) -> float:
        knee, in_flight = self.script.knee, self.witness.in_flight + (self.script.others or 0)
        crowd = max(1.0, in_flight / knee) if knee else 1.0
        if answer.latency_max_s > answer.latency_s:
            return crowd * self._random.uniform(answer.latency_s, answer.latency_max_s)
        return crowd * answer.latency_s

    def reset_all(self) -> None:
        """End every connection at once, as a dying process does."""
        for connection in list(self.connections):
            connection.reset()


# What a client must not take for the whole answer, although it is a 200.
_HALF_A_TEXT: Final = json.dumps(
    {"choices": [{"message": {"content": "half a te"}, "finish_reason": "abort"}]}
)


def _marked(answer: Answer, markers: dict[bytes, bytes]) -> Answer:
    if b"delay" in markers:
        answer = replace(answer, latency_s=float(markers[b"delay"]), latency_max_s=0.0)
    if b"status" in markers:
        answer = replace(answer, status=int(markers[b"status"]))
    if b"fault" in markers:
        answer = replace(answer, fault=Fault(markers[b"fault"].decode()))
    return answer


class Connection(asyncio.Protocol):
    """One client connection. The `on_…` methods are called by the parser, in the order of bytes."""

    def __init__(self, responder: Responder) -> None:
        self._responder = responder
        self._witness = responder.witness
        # httptools ships no types; the two calls that are used, as it documents them.
        self._parser = httptools.HttpRequestParser(self)
        self._feed = cast("Callable[[bytes], None]", self._parser.feed_data)
        self._timer: asyncio.TimerHandle | None = None
        self._exchange: Exchange | None = None
        self._reading = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._responder.connections.add(self)
        self._witness.connections += 1
        self._witness.open += 1
        self._witness.changed()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc  # how the client left makes no difference
        self._responder.connections.discard(self)
        self._witness.open -= 1
        if self._exchange is not None:
            self._responder.drop(self._exchange)
            self._end(Kind.ABORTED)
        elif self._reading:
            self._note_cut(Kind.BROKEN_OFF)
        self._witness.changed()

    def data_received(self, data: bytes) -> None:
        if not self._reading and self._responder.unread_resets and data.startswith(b"POST"):
            self._responder.unread_resets -= 1
            self.on_message_begin()
            self._note_cut(Kind.CUT_OFF)
            self.reset()
            return
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self.reset()

    @property
    def exchange(self) -> Exchange | None:
        """The request that is in flight here."""
        return self._exchange

    # -- the parser's calls ---------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._reading = True
        self._first_byte_at = now()[0]
        self._received_at = self._kernel_had_it_at(self._first_byte_at)
        self._number = self._witness.requests
        self._witness.requests += 1
        self._path = ""
        self._idempotency_key: str | None = None
        self._request_id: str | None = None
        self._authorization: str | None = None
        self._body: list[bytes] = []

    def on_url(self, url: bytes) -> None:
        self._path += url.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        match name.lower():
            case b"idempotency-key":
                self._idempotency_key = value.decode("latin-1")
            case b"x-request-id":
                self._request_id = value.decode("latin-1")
            case b"authorization":
                self._authorization = value.decode("latin-1")
            case b"expect":
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            case _:
                pass

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        if self._exchange is not None:  # pipelining: no client of ours does, and aborts would blur
            self.reset()
            return
        self._reading = False
        exchange = Exchange(self, self._number, self._path)
        exchange.keep_alive = self._parser.should_keep_alive()
        if self._path in answers.ENDPOINTS:
            self._arrive(exchange, b"".join(self._body))
        elif self._path == ABORT:
            self._call_off(b"".join(self._body))
        else:
            self._answer_apart(exchange)

    def _kernel_had_it_at(self, now: float) -> float:
        """When the kernel received the bytes that are being read; 0 where it does not say."""
        if sys.platform != "linux":
            return 0.0
        connected = cast("socket.socket", self._transport.get_extra_info("socket"))
        told = connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAST_RECEIVED + 4)
        return now - int.from_bytes(told[_LAST_RECEIVED:], sys.byteorder) / 1000

    # -- answering ------------------------------------------------------------------------------

    def finish(self, exchange: Exchange) -> None:
        """Give the planned answer now."""
        answer = exchange.answer
        if exchange.wants_stream and streaming.is_streamed(exchange.path, answer):
            self._stream(exchange)
            return
        match answer.fault:
            case Fault.SILENT:
                return  # in flight until the client leaves
            case Fault.RESET:
                self.reset()
            case Fault.CLOSE:
                self._end(Kind.DROPPED)
                self._transport.close()
            case Fault.TRUNCATED:
                self._end(Kind.DROPPED)
                whole = answers.response(exchange.path, exchange.marker, exchange.model, answer)
                self._transport.write(whole[: -len(whole) // 3])
                self._transport.close()
            case _:
                self._end(Kind.ANSWERED)
                self._transport.write(
                    answers.response(exchange.path, exchange.marker, exchange.model, answer)
                )
                if not exchange.keep_alive or answer.fault is Fault.NOT_HTTP:
                    self._transport.close()

    def _stream(self, exchange: Exchange) -> None:
        answer = exchange.answer
        wire = streaming.streamed(exchange.path, exchange.marker, exchange.model, answer)
        if answer.fault not in streaming.ENDLESS:
            self._end(Kind.DROPPED if answer.fault in streaming.CUT else Kind.ANSWERED)
        self._transport.write(wire)
        if answer.fault in streaming.CUT:
            self._transport.close()

    def reset(self) -> None:
        """End the connection by a reset; its request, if it has one, is dropped."""
        if self._exchange is not None:
            self._responder.drop(self._exchange)
            self._end(Kind.DROPPED)
        self._reading = False
        if not self._transport.is_closing():
            connected = cast("socket.socket", self._transport.get_extra_info("socket"))
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._transport.abort()

    def _arrive(self, exchange: Exchange, body: bytes) -> None:
        markers: dict[bytes, bytes] = {}
        for name, value in _MARKERS.findall(body):
            markers.setdefault(name, value)
        if b"id" in markers:
            # JSON string content that came out of a JSON string: it can go back in as it is.
            exchange.marker = b"[[id=%b]]" % markers[b"id"]
            exchange.id = markers[b"id"].decode(errors="replace")
        else:
            exchange.id = self._idempotency_key or ""
            exchange.marker = json.dumps(f"[[id={exchange.id}]]")[1:-1].encode()
        exchange.abort_id = _rid(body) or self._request_id or self._idempotency_key or ""
        self._exchange = exchange
        self._witness.attempts[exchange.id] += 1
        at, monotonic_ns = now()
        self._witness.note(
            Event(
                kind=Kind.ARRIVED,
                request=exchange.number,
                at=at,
                monotonic_ns=monotonic_ns,
                id=exchange.id,
                path=exchange.path,
                attempt=self._witness.attempts[exchange.id],
                first_byte_at=self._first_byte_at,
                received_at=self._received_at,
                idempotency_key=self._idempotency_key,
                authorization=self._authorization,
                abort_id=exchange.abort_id,
                sha256=hashlib.sha256(body).hexdigest(),
                bytes=len(body),
            )
        )
        exchange.answer = self._responder.plan(exchange, markers, body)
        self._schedule(exchange)

    def _schedule(self, exchange: Exchange) -> None:
        if exchange.answer.hold and self._responder.holding:
            self._responder.hold(exchange)
        elif latency_s := self._responder.latency_s(exchange.answer):
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(latency_s, self.finish, exchange)
        else:
            self.finish(exchange)

    def _answer_apart(self, exchange: Exchange) -> None:
        """The catalogue, and what has no route: outside the log of requests."""
        script = self._responder.script
        if exchange.path == CATALOGUE:
            self._witness.catalogue_calls += 1
            self._witness.changed()
            answer = script.models_answer or Answer()
            body = answers.catalogue(script.models)
        elif exchange.path == METRICS and script.others is not None:
            self._witness.load_pages += 1
            answer = Answer(content_type="text/plain; version=0.0.4")
            body = answers.metrics(self._witness.in_flight + script.others)
        else:
            answer, body = Answer(status=404), b""
        match answer.fault:
            case Fault.SILENT:
                return
            case Fault.NONE:
                if answer.body is not None:
                    body = answer.body.encode()
                elif answer.status != 200:
                    body = answers.envelope(answer.status, answer.code)
                self._transport.write(answers.packed(answer, body, answer.content_type))
            case _:
                self.reset()

    def _call_off(self, body: bytes) -> None:
        rid = _rid(body)
        at, monotonic_ns = now()
        self._witness.note(
            Event(
                kind=Kind.CALLED_OFF,
                request=self._number,
                at=at,
                monotonic_ns=monotonic_ns,
                path=self._path,
                abort_id=rid,
                authorization=self._authorization,
            )
        )
        answer = self._responder.script.abort_answer
        if answer.fault is Fault.SILENT:
            return
        if answer.status == 200 and rid is not None:
            self._responder.call_off(rid)
        self._transport.write(answers.packed(answer, b"{}", answer.content_type))

    def _end(self, kind: Kind) -> None:
        exchange = self._exchange
        if exchange is None:
            return
        self._exchange = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        at, monotonic_ns = now()
        self._witness.note(
            Event(
                kind=kind,
                request=exchange.number,
                at=at,
                monotonic_ns=monotonic_ns,
                id=exchange.id,
                path=exchange.path,
                status=exchange.answer.status if kind is Kind.ANSWERED else 0,
            )
        )

    def _note_cut(self, kind: Kind) -> None:
        at, monotonic_ns = now()
        self._witness.note(
            Event(
                kind=kind,
                request=self._number,
                at=at,
                monotonic_ns=monotonic_ns,
                id=self._idempotency_key or "",
                path=self._path,
                first_byte_at=self._first_byte_at,
                received_at=self._received_at,
                idempotency_key=self._idempotency_key,
            )
        )
