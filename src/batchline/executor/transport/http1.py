"""The transport for plain HTTP/1.1: the same promises as the general one at a fraction of its cost.

An exchange is one system call to write, llhttp to read, one future and one timer; the general
transport's costs four to five times as much CPU (docs/decisions/0020-fast-transport.md). It speaks
`http://` only and asks for no compression; TLS is the general transport's.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from batchline.domain.errors import NotAdmitted, NotSent, SentUnanswered
from batchline.executor.contract import BackendSettings
from batchline.executor.intake import LARGE_BYTES, Intake
from batchline.executor.transport.connection import Connection, Dead
from batchline.executor.transport.contract import Answer, Pieces
from batchline.executor.transport.deadlines import Deadlines
from batchline.executor.transport.heads import Heads
from batchline.executor.transport.known_heads import KnownHeads

# uvicorn and node close an idle connection after 5 s. Letting go first keeps us from writing into a
# connection that is being closed; a permit that is in use never idles that long.
_KEEPALIVE_S: Final = 4.0
_SWEEP_S: Final = 1.0
# One that was idle for longer is looked at before it is used, for 2 µs. In a busy pool none is.
_LOOK_AFTER_S: Final = 0.05
# A server that had let go of an idle connection answers the next request on it with a reset, one
# round trip later. What dies after more than this was being worked on.
_RACE_S: Final = 1.0
_ADDRESSES_S: Final = 10.0  # how long the addresses of a name are believed


class Http1Transport:
    """`Transport` for `http://` backends. Built and used inside one running event loop.

    The number of connections is not bounded here: permits bound the requests in flight.

    A request that dies on a used connection before a byte of its answer, within a round trip or so,
    met a server that was letting go of it. It is sent again at once, and once, on a new connection,
    after the gate was asked again (RFC 9112, 9.3.1, with the same `Idempotency-Key`).
    """

    def __init__(self, settings: BackendSettings, intake: Intake | None = None) -> None:
        """Raises ValueError when `base_url` or a configured header cannot be used."""
        url = urlsplit(settings.base_url)
        if url.scheme != "http" or not url.hostname:
            raise ValueError("this transport speaks http:// only")
        self._settings = settings
        self._intake = intake or Intake()
        self._known_heads = KnownHeads(min(settings.max_answer_bytes, LARGE_BYTES))
        self._heads = Heads(settings.base_url, settings.headers or {})
        self._host, self._port = url.hostname, url.port or 80
        self._loop = asyncio.get_running_loop()
        self._idle: deque[Connection] = deque()  # the one that was used last is used first
        self._in_use: Deadlines[Connection] = Deadlines(self._loop, self._time_out)
        self._total_s = settings.total_timeout_s
        self._first_s = settings.first_byte_timeout_s
        self._unheard: Deadlines[Connection] = Deadlines(self._loop, self._stay_silent)
        self._sweeper: asyncio.TimerHandle | None = None
        self._resolving: asyncio.Task[list[str]] | None = None
        self._resolved_at = 0.0
        self._is_closed = False

    def send(
        self,
        path: str,
        body: bytes,
        before_write: Callable[[], bool],
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        pieces: Pieces | None = None,
    ) -> Coroutine[Any, Any, Answer]:
        """See `Transport.send`. The total timeout covers connecting, sending and the answer."""
        head = self._heads.post(path, len(body), key, headers)
        return self._exchange(head, body, before_write, self._total_s, pieces)

    async def get_json(self, path: str, *, timeout_s: float) -> Answer:
        """See `Transport.get_json`."""
        return await self._exchange(self._heads.get(path), b"", _admit, timeout_s)

    async def close(self) -> None:
        """Close every connection at once; requests in flight end as `SentUnanswered`."""
        self._is_closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        if self._resolving is not None:
            self._resolving.cancel()
        every = [*self._idle, *self._in_use]
        self._idle.clear()
        self._in_use.close()
        self._unheard.close()
        for connection in every:
            connection.abort()
        for connection in every:
            await connection.closed()

    # -- one exchange ----------------------------------------------------------------------

    # Its arguments go from call to call one by one: an object for them costs each line 0.5 us.

    async def _exchange(
        self,
        head: bytes,
        body: bytes,
        before_write: Callable[[], bool],
        timeout_s: float,
        pieces: Pieces | None = None,
    ) -> Answer:
        began = self._loop.time()
        ends = began + timeout_s
        connection = self._idle.pop() if self._idle else None
        if connection is None or not (
            connection.usable and began - connection.idle_since < _LOOK_AFTER_S
        ):
            connection = self._first_quiet(connection, began)
        if connection is None:
            return await self._anew(head, body, before_write, ends, pieces)
        used = connection.answers > 0
        try:
            answer = self._begin(connection, head, body, before_write, ends, pieces)
        except Dead:  # nothing was written: this is the first try
            return await self._anew(head, body, before_write, ends, pieces)
        try:
            # As in `_anew`, here once more: a coroutine for it would cost each line 0.4 µs.
            try:
                return await answer
            finally:
                if not self._taken_back(connection):
                    await _ended(connection)
        except SentUnanswered as exc:
            in_time = self._loop.time() - began < _RACE_S
            if exc.reason != "reset" or connection.heard or not used or not in_time:
                raise
            try:
                return await self._anew(head, body, before_write, ends, pieces)
            except (NotAdmitted, NotSent):
                raise exc from None  # a second try that did not begin leaves the first as it ended

    async def _anew(
        self,
        head: bytes,
        body: bytes,
        before_write: Callable[[], bool],
        ends: float,
        pieces: Pieces | None,
    ) -> Answer:
        connection = await self._connect(ends)
        try:
            answer = self._begin(connection, head, body, before_write, ends, pieces)
        except Dead as exc:
            raise NotSent("the connection was lost before the first byte") from exc
        try:
            return await answer
        finally:
            if not self._taken_back(connection):
                await _ended(connection)

    def _taken_back(self, connection: Connection) -> bool:
        """The exchange is over: keep the connection for the next one, if it can serve another."""
        self._in_use.remove(connection)
        if self._first_s is not None:
            self._unheard.remove(connection)
        if not connection.end():
            return False
        if self._sweeper is None or self._is_closed:
            self._keep(connection)
        else:  # as that would, without the call
            connection.idle_since = self._loop.time()
            self._idle.append(connection)
        return True

    def _begin(
        self,
        connection: Connection,
        head: bytes,
        body: bytes,
        before_write: Callable[[], bool],
        ends: float,
        pieces: Pieces | None,
    ) -> asyncio.Future[Answer]:
        """Ask the gate and hand the first byte to the socket, in this loop step.

        `ends` is the `loop.time()` at which it is too late for the answer.

        Raises:
            NotAdmitted: the gate is closed; the connection is kept for others.
            Dead: nothing was written.
        """
        if not connection.usable:
            raise Dead
        if not before_write():
            self._keep(connection)
            raise NotAdmitted("the gate closed before the first byte was written")
        try:
            answer = connection.begin(head, body, pieces)
        except Dead:
            connection.abort()
            raise
        self._in_use.add(connection, ends)
        if self._first_s is not None:
            self._unheard.add(connection, self._loop.time() + self._first_s)
        return answer

    def _time_out(self, connection: Connection) -> None:
        connection.fail("no whole answer in time", reason="timeout")

    def _stay_silent(self, connection: Connection) -> None:
        if not connection.has_head:
            connection.fail("no answer began in time", reason="timeout")

    # -- connections -----------------------------------------------------------------------

    def _first_quiet(self, connection: Connection | None, now: float) -> Connection | None:
        """This one, or the first idle one, that may be used; those that may not are let go of."""
        while connection is not None:
            if connection.usable:
                if now - connection.idle_since < _LOOK_AFTER_S or connection.is_quiet():
                    return connection
                connection.abort()
            connection = self._idle.pop() if self._idle else None
        return None

    def _keep(self, connection: Connection) -> None:
        if self._is_closed:
            connection.let_go()
            return
        connection.idle_since = self._loop.time()
        self._idle.append(connection)
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(_SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        """Let go of what has been idle for long; the oldest are on the left."""
        oldest = self._loop.time() - _KEEPALIVE_S
        while self._idle and (not self._idle[0].usable or self._idle[0].idle_since < oldest):
            self._idle.popleft().let_go()
        self._sweeper = self._loop.call_later(_SWEEP_S, self._sweep) if self._idle else None

    async def _connect(self, latest: float) -> Connection:
        """A new connection, to the first address that takes one, before `latest`.

        Raises:
            NotSent: refused, unknown host, or not within the connect timeout.
        """
        now = self._loop.time()
        ends = min(latest, now + self._settings.connect_timeout_s)
        try:
            async with asyncio.timeout_at(ends):
                return await self._connect_to_any(await self._addresses())
        except TimeoutError as exc:
            raise NotSent(f"no connection within {ends - now:.3g} s") from exc
        except socket.gaierror as exc:
            raise NotSent("no connection: unknown host") from exc
        except (OSError, UnicodeError) as exc:
            raise NotSent(f"no connection: {_reason(exc)}") from exc

    async def _connect_to_any(self, addresses: list[str]) -> Connection:
        for address in addresses[:-1]:
            try:
                return await self._connect_to(address)
            except OSError:
                continue
        return await self._connect_to(addresses[-1])

    async def _connect_to(self, address: str) -> Connection:
        _, connection = await self._loop.create_connection(self._connection, address, self._port)
        return connection

    def _connection(self) -> Connection:
        return Connection(
            limit_bytes=self._settings.max_answer_bytes,
            intake=self._intake,
            known_heads=self._known_heads,
        )

    async def _addresses(self) -> list[str]:
        """The host's addresses; many callers at once ask the resolver once."""
        task = self._resolving
        stale = self._loop.time() - self._resolved_at > _ADDRESSES_S
        if task is None or (task.done() and (stale or task.cancelled() or task.exception())):
            task = self._resolving = self._loop.create_task(self._resolve())
        return await asyncio.shield(task)

    async def _resolve(self) -> list[str]:
        found = await self._loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        self._resolved_at = self._loop.time()
        return list(dict.fromkeys(str(info[4][0]) for info in found))


def _admit() -> bool:
    return True


async def _ended(connection: Connection) -> None:
    """The connection is of no more use: gone when this returns."""
    connection.abort()
    await connection.closed()


def _reason(exc: BaseException) -> str:
    """What went wrong in few words: kinds and system errors, nothing that a peer sent."""
    if isinstance(exc, OSError) and exc.errno is not None and exc.errno > 0:
        return os.strerror(exc.errno).lower()
    return type(exc).__name__
