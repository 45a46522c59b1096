"""The edge of the application: what holds for every request, whichever route it takes.

Pure ASGI, outside everything but the server. Each answer gets `x-request-id`, `openai-version` and
`openai-processing-ms`; each exception becomes an envelope here and nowhere else; requests without
a key are refused where there are keys, and those that a web page of another site could have made
where there are none. Starlette's BaseHTTPMiddleware was not taken:
it runs the application in a task of its own and hides disconnects from streams.
"""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from batchline.api import access, wire
from batchline.api.errors import Problem, place_of, problem_of, refusal, shutting_down
from batchline.domain.keys import KeyRing
from batchline.telemetry import event, trouble

Headers = list[tuple[bytes, bytes]]

OPENAI_VERSION: Final = "2020-10-01"
SMALL_BODY_BYTES: Final = 64 * 1024  # the server swallows that much unread without closing
LINGER_S: Final = 2.0  # enough for the answer to be read on loopback and on most networks

_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})


def new_request_id() -> str:
    """`req_` + 32 hex."""
    return f"req_{os.urandom(16).hex()}"


@dataclass(frozen=True, slots=True)
class Edge:
    """The outermost middleware.

    `loopback_only`: the server listens on loopback. It matters as long as `ring` is empty.
    """

    app: ASGIApp
    ring: KeyRing
    loopback_only: bool = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send)
        try:
            problem = foreign(scope) if self.loopback_only and self.ring.is_empty else None
            if problem is not None:
                await exchange.answer(problem)
            else:
                access.admit(scope, self.ring)
                await self.app(scope, exchange.receive, exchange.send)
        except asyncio.CancelledError:
            if not exchange.started:
                await exchange.answer(shutting_down())
            raise
        except Exception as exc:  # noqa: BLE001  # whatever it was, the caller gets an envelope
            await exchange.fail(exc)


class _Exchange:
    """One request and its answer, seen from outside."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._id = new_request_id()
        self._began_at = time.perf_counter()
        self._unread = _has_large_body(scope)
        self._lingering = False
        self.started = False

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._unread = False
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._start(message)
        elif self._lingering and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            await self._linger()
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
        else:
            await self._send(message)

    async def _start(self, message: Message) -> None:
        headers: Headers = list(message.get("headers", []))
        took_ms = round((time.perf_counter() - self._began_at) * 1000)
        headers.append((b"x-request-id", self._id.encode()))
        headers.append((b"openai-version", OPENAI_VERSION.encode()))
        headers.append((b"openai-processing-ms", str(took_ms).encode()))
        if message["status"] >= 400 and self._unread:
            self._lingering = True
            headers.append((b"connection", b"close"))
        self.started = True
        await self._send({**message, "headers": headers})

    async def _linger(self) -> None:
        """Take in what the client still sends, for LINGER_S at most, before the close.

        Closing a socket with unread bytes resets the connection, and the reset can overtake the
        answer: the client would see a broken pipe in the place of `File is too large.`
        """
        with anyio.move_on_after(LINGER_S) as patience:
            # The deadline is looked at as well: under uvloop a client that sends all the time has
            # each wait done before a cancellation could reach it, for ever.
            while self._unread and anyio.current_time() < patience.deadline:
                await self.receive()

    async def answer(self, problem: Problem) -> None:
        """Send `problem`."""
        body = wire.encode(problem.body)
        headers: Headers = [
            (b"content-type", wire.JSON_TYPE.encode()),
            (b"content-length", str(len(body)).encode()),
        ]
        headers += [(name.encode(), value.encode()) for name, value in problem.headers.items()]
        await self.send(
            {"type": "http.response.start", "status": problem.status, "headers": headers}
        )
        await self.send({"type": "http.response.body", "body": body, "more_body": False})

    async def fail(self, exc: Exception) -> None:
        """Answer with what `exc` stands for, and log it when it is ours.

        An answer that had begun is left incomplete: the server then closes the connection, so that
        the client sees less than the Content-Length and not a short file.
        """
        method, path = self._scope["method"], self._scope["path"]
        problem = problem_of(exc, method=method, path=path)
        if problem.status >= 500 or self.started:
            route = self._scope.get("route")
            trouble(
                "request_failed",
                request_id=self._id,
                method=method,
                route=getattr(route, "path", None),
                status=problem.status,
                error=type(exc).__name__,
                place=place_of(exc),
            )
        else:
            event("request_refused", request_id=self._id, status=problem.status)
        if not self.started:
            await self.answer(problem)


def _has_large_body(scope: Scope) -> bool:
    """Whether a body comes that is too long, or of unknown length, to leave unread."""
    for name, value in scope["headers"]:
        if name == b"transfer-encoding":
            return True
        if name == b"content-length":
            return not value.isdigit() or int(value) > SMALL_BODY_BYTES
    return False


def foreign(scope: Scope) -> Problem | None:
    """Why a server without keys must not answer this request; None when it may.

    A web page elsewhere can make a browser send requests to loopback: by a name of its own that
    resolves to 127.0.0.1 (then `Host` is that name) or across origins (then writes carry `Origin`).
    """
    hosts = [value for name, value in scope["headers"] if name == b"host"]
    origins = [value for name, value in scope["headers"] if name == b"origin"]
    if len(hosts) > 1 or (not hosts and scope["http_version"] == "1.1"):
        return refusal(400, "Expected exactly one Host header.")
    host = hosts[0].decode("latin-1").strip().lower() if hosts else ""
    if hosts and not is_loopback(host):
        return refusal(
            403,
            "This server has no keys and answers to loopback addresses only "
            "(localhost, 127.0.0.1, [::1]).",
            code="host_not_allowed",
        )
    own = (f"http://{host}", f"https://{host}")
    if scope["method"] not in _SAFE_METHODS and any(
        origin.decode("latin-1").strip().lower() not in own for origin in origins
    ):
        return refusal(
            403,
            "This server has no keys and takes no writes from web pages of other origins.",
            code="origin_not_allowed",
        )
    return None


def is_loopback(host: str) -> bool:
    """Whether a Host header names this machine: localhost or a loopback address, with any port."""
    if host.startswith("["):
        name, bracket, port = host[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            return False
    else:
        name, _, _ = host.partition(":")
    if name == "localhost":
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False
