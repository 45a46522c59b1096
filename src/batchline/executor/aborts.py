"""What still runs behind a closed gate, and how it is brought to an end: `contract.CancelBy`.

A worker has one of these. It is told of a gate that closed and of the times that are left, and
ends each request in the way of its backend. A request that is ended by a call is *doomed* from the
first byte of the call on: an engine that aborts may answer 200 with half a text, so whatever comes
then is not a result.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Final
from urllib.parse import urlsplit

from batchline import telemetry
from batchline.domain.errors import BlobUnreadable, NotSent, SentUnanswered
from batchline.domain.ids import BatchId
from batchline.domain.splices import with_member
from batchline.executor.contract import AbortCall, BackendSettings, CancelBy
from batchline.executor.line import EndedBy, Gate, Line
from batchline.executor.shard_run import ShardRun
from batchline.executor.transport.contract import Transport

CALL_S: Final = 2.0  # all calls of one batch to one backend; then connections close without
SHUTDOWN_CALL_S: Final = 0.5  # the same when the server ends, past its grace
_CALLS_AT_ONCE: Final = 32  # an engine answers calls in the loop that serves its other clients
_MAX_CALL_ANSWER_BYTES: Final = 1024 * 1024

# What it is called when time is up in earnest.
_CUT_OFF: Final = MappingProxyType(
    {
        CancelBy.CLOSE: EndedBy.CLOSED,
        CancelBy.DRAIN: EndedBy.UNANSWERED,
        CancelBy.CALL: EndedBy.CALL_FAILED,
    }
)


class Aborts:
    """Ends requests. `runs` are those that the worker holds now.

    `callers` are there for the backends that are called, by name: they also tell requests apart.
    """

    def __init__(
        self,
        backends: Sequence[BackendSettings],
        *,
        transport: Callable[[BackendSettings], Transport],
        runs: Callable[[], Iterable[ShardRun]],
    ) -> None:
        self._ways = {backend.name: backend.cancel for backend in backends}
        self.callers = {
            backend.name: Caller(backend, backend.abort_call, transport)
            for backend in backends
            if backend.abort_call is not None
        }
        self._runs = runs
        self._calls: set[asyncio.Task[None]] = set()

    def schedule(self, batch_id: BatchId, *, grace_s: float, last_s: float) -> None:
        """The gate of `batch_id` closed: end what runs, by its backend's way after `grace_s`."""
        # A grace that leaves no time for calls is cut for them.
        calls_from_s = min(grace_s, max(last_s - CALL_S, last_s / 2))
        calls_s = min(CALL_S, last_s - calls_from_s)
        _later(calls_from_s, partial(self._call_all, batch_id, calls_s))
        _later(min(grace_s, last_s), partial(self._close_all, batch_id, drains=True))
        _later(last_s, partial(self._cut_off, batch_id))

    def shut_down(self, *, grace_s: float) -> None:
        """Every gate closed for good: nothing is drained for longer than `grace_s`."""
        _later(grace_s, partial(self._call_all, None, SHUTDOWN_CALL_S))
        _later(grace_s, partial(self._close_all, None, drains=False))

    def end_run(self, run: ShardRun) -> None:
        """Close what runs of a shard that somebody else holds, whatever its backend's way."""
        for line in run.in_flight:
            line.end(EndedBy.CLOSED)

    async def close(self) -> None:
        """Let go of the connections for calls."""
        for call in self._calls:
            call.cancel()
        for caller in self.callers.values():
            await caller.transport.close()

    def _behind_gates(self, batch_id: BatchId | None) -> list[Line]:
        return [
            line
            for run in self._runs()
            if run.gate is not Gate.OPEN and batch_id in (None, run.batch_id)
            for line in run.in_flight
        ]

    def _call_all(self, batch_id: BatchId | None, within_s: float) -> None:
        """Call those backends that are to be called. Each call ends in a closed connection."""
        telemetry.probe("abort.starting")
        deadline = asyncio.get_running_loop().time() + within_s
        for line in self._behind_gates(batch_id):
            if line.written and self._ways[line.backend] is CancelBy.CALL:
                self._call(line, deadline)

    def _close_all(self, batch_id: BatchId | None, *, drains: bool) -> None:
        """Close the others, without those that are drained where `drains` says so."""
        for line in self._behind_gates(batch_id):
            way = self._ways[line.backend] if line.written else CancelBy.CLOSE
            if way is CancelBy.CLOSE:
                line.end(EndedBy.CLOSED)
            elif way is CancelBy.DRAIN and not drains:
                line.end(EndedBy.UNANSWERED)

    def _cut_off(self, batch_id: BatchId) -> None:
        """Nothing may run any longer."""
        for line in self._behind_gates(batch_id):
            line.end(_CUT_OFF[self._ways[line.backend]])

    def _call(self, line: Line, deadline: float) -> None:
        if line.doomed or line.ended_by is not None:
            return
        line.doomed = True
        call = asyncio.create_task(self._call_and_close(line, deadline))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    async def _call_and_close(self, line: Line, deadline: float) -> None:
        """The connection is open until the call is answered: closing it first would have some
        engines forget the id that they are called with."""
        how = EndedBy.CALL_FAILED
        try:
            if await self.callers[line.backend].abort(line, deadline):
                how = EndedBy.CALLED
        finally:
            line.end(how)


def _later(delay_s: float, act: Callable[[], None]) -> None:
    if delay_s <= 0:
        act()
    else:
        asyncio.get_running_loop().call_later(delay_s, act)


class Caller:
    """Calls one backend to abort requests, over connections of its own."""

    def __init__(
        self,
        backend: BackendSettings,
        call: AbortCall,
        transport: Callable[[BackendSettings], Transport],
    ) -> None:
        host = urlsplit(backend.base_url)
        self.transport = transport(
            replace(
                backend,
                base_url=f"{host.scheme}://{host.netloc}",
                connect_timeout_s=min(backend.connect_timeout_s, CALL_S),
                total_timeout_s=CALL_S,
                max_answer_bytes=_MAX_CALL_ANSWER_BYTES,
            )
        )
        self._call = call
        self._at_once = asyncio.Semaphore(_CALLS_AT_ONCE)

    def tag(self, line: Line, body: bytes, headers: dict[str, str]) -> bytes:
        """The body to send for `line`, with the id for a call where it belongs there.

        `headers` are those of the request, and get it where it belongs to them.
        """
        call = self._call
        if call.id_header is None and call.id_field is None:
            line.abort_id = line.idempotency_key
            return body
        # Of each attempt its own: an earlier one may still run, and no engine takes an id twice.
        line.abort_id = f"{line.line_id}-{line.run.work.shard.epoch}-{line.sends}"
        if call.id_header is not None:
            headers[call.id_header] = line.abort_id
        if call.id_field is None:
            return body
        try:
            tagged = with_member(body, call.id_field, line.abort_id)
        except BlobUnreadable:  # damaged; it goes out as it is, as it would to any other backend
            tagged = None
        if tagged is None:  # or it brings an id of its own, which we do not know how to read
            line.abort_id = None
            return body
        return tagged

    async def abort(self, line: Line, deadline: float) -> bool:
        """Whether the backend took the call (2xx) before `deadline` (of the loop's clock)."""
        if line.abort_id is None:
            return False
        path = self._call.path.replace("{id}", line.abort_id)
        body = self._call.body.replace("{id}", line.abort_id).encode()
        try:
            async with asyncio.timeout_at(deadline), self._at_once:
                answer = await self.transport.send(path, body, before_write=lambda: True)
        except (TimeoutError, NotSent, SentUnanswered):
            return False
        return 200 <= answer.status < 300
