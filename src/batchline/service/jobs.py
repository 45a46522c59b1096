"""Runs CPU work in child processes, so that the server's event loop never waits for it.

A job is a function of one value: `await jobs.run(validate, ValidationJob(...))`. Function, value
and result travel over a socket that the child inherits; the child (`cli/job_child.py`) ends when
that socket does, whatever it is doing. Children are started by exec, never by a bare fork, and
record themselves for the next server (`executor/processes.py`).

Messages are msgpack behind four bytes of length, big-endian. Each names the program of its sender,
and is read no further when that is another one (`executor/protocol.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
import time
import typing
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from batchline import telemetry
from batchline.domain.errors import BatchlineError, BlobUnreadable, StorageFull, StoreUnavailable
from batchline.domain.job_queue import JobQueue, JobTerms
from batchline.executor import processes
from batchline.executor.protocol import PROTOCOL, named_in, other_version

Job = TypeVar("Job")
Result = TypeVar("Result")

LENGTH_BYTES: Final = 4
MOST_IDLE: Final = 2  # children, while jobs wait; a start is half a second of imports
LOOK_AGAIN_S: Final = 5.0  # after a child of another version; each look is a second of imports
_CHILD_MODULE: Final = "batchline.cli.job_child"

_NO_TERMS: Final = JobTerms()

# Errors that a job may raise on purpose and that arrive at the caller of `run` as they are.
CARRIED: Final[dict[str, type[BatchlineError]]] = {
    error.code: error for error in (BlobUnreadable, StorageFull, StoreUnavailable)
}


class JobFailed(BatchlineError):
    """A job ended without a result. `retryable`: its child died or was ended, and the same job may
    be run again; otherwise the function raised what it should not, and would do so again."""

    code = "job_failed"

    def __init__(self, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.retryable = retryable


class OtherVersion(BatchlineError):
    """The program that is installed is no longer the one that runs: it can start no job."""

    code = "other_version_installed"


class Request(msgspec.Struct):
    """Run `function` (`module:name`) of the job's value."""

    function: str
    job: msgspec.Raw
    protocol: str = PROTOCOL


class Reply(msgspec.Struct):
    """The result; or the `code` of an error (None for one that nobody raises on purpose)."""

    result: bytes | None = None  # msgpack; msgspec takes no Raw in a union
    error_code: str | None = None
    message: str = ""
    protocol: str = PROTOCOL


class Jobs:
    """At most `max_children` jobs at once, but for an urgent one and small ones beside large ones;
    others wait, and whose is next is said by `domain/job_queue.py`. One idle child is kept, or
    two while jobs wait.

    Every child records itself in `children_dir`, which must exist. Belongs to one event loop.
    """

    def __init__(
        self,
        children_dir: Path,
        *,
        max_children: int = 2,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._children_dir = children_dir
        self._clock = clock
        self._queue = JobQueue(places=max_children)
        self._waiting: dict[int, asyncio.Future[None]] = {}  # by ticket
        self._idle: list[_Child] = []
        self._children: set[_Child] = set()
        self._starting: set[asyncio.Task[_Child]] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._closed = False
        self.failing: str | None = None  # why no job can be run, for people
        self._look_again_at = 0.0  # monotonic

    async def run(
        self,
        function: Callable[[Job], Result],
        job: Job,
        *,
        terms: JobTerms = _NO_TERMS,
        during: contextlib.AbstractContextManager[object] | None = None,
    ) -> Result:
        """The result of `function(job)`, computed in a child.

        It begins when it is its turn by its `terms`, which may be long after the call; then
        `during` is entered. The end of a batch is urgent: it may not take longer for all the files
        that are to be validated.

        `function` is a module's own function with annotated types that msgspec can carry. When
        the awaiting task is cancelled, the child is killed and reaped before the cancellation goes
        on: nothing of the job runs afterwards.

        Raises:
            JobFailed, OtherVersion: see there.
            BlobUnreadable, StorageFull, StoreUnavailable: the function raised it.
        """
        async with self._turn(terms):
            self._refuse_when_just_refused()
            child = await self._child()
            try:
                with during or contextlib.nullcontext():
                    raw = await child.ask(_request(function, job))
                self._check_version(raw)
            except BaseException:
                await _to_the_end(self._end(child))
                raise
            await self._put_back(child)
        reply = msgspec.msgpack.decode(raw, type=Reply)
        if reply.result is not None:
            result: Result = msgspec.msgpack.decode(
                reply.result, type=typing.get_type_hints(function)["return"]
            )
            return result
        if reply.error_code is not None:
            raise CARRIED[reply.error_code](reply.message)
        raise JobFailed(reply.message, retryable=False)

    @contextlib.asynccontextmanager
    async def _turn(self, terms: JobTerms) -> AsyncIterator[None]:
        """The block runs once it is its turn. Nothing of it is left when the caller is cancelled,
        neither a place in the queue nor the one that it was just given."""
        ticket = self._queue.enter(terms)
        begins = self._waiting[ticket] = asyncio.get_running_loop().create_future()
        self._begin_what_may()
        try:
            await begins
            yield
        finally:
            self._waiting.pop(ticket, None)
            self._queue.leave(ticket)
            self._begin_what_may()

    def _begin_what_may(self) -> None:
        while (ticket := self._queue.begin_next(self._clock())) is not None:
            begins = self._waiting.pop(ticket)
            if not begins.done():  # else its caller was cancelled just now, and will leave
                begins.set_result(None)

    def _check_version(self, reply: bytes) -> None:
        theirs = named_in(reply)
        if theirs == PROTOCOL:
            self.failing = None
            return
        if self.failing is None:
            telemetry.trouble("job_of_another_version_refused", installed=theirs, running=PROTOCOL)
        self.failing = other_version(theirs)
        self._look_again_at = time.monotonic() + LOOK_AGAIN_S
        raise OtherVersion(self.failing)

    def _refuse_when_just_refused(self) -> None:
        if self.failing is not None and time.monotonic() < self._look_again_at:
            raise OtherVersion(self.failing)

    async def warm(self) -> None:
        """Start the child that the first job will find ready; its imports take half a second."""
        async with self._turn(_NO_TERMS):
            if not self._idle and not self._closed:
                with contextlib.suppress(JobFailed):  # closed meanwhile
                    await self._put_back(await self._start())

    async def close(self) -> None:
        """End and reap every child; jobs that run or wait fail. Idempotent."""
        self._closed = True
        for child in list(self._children):
            self._end_soon(child)
        while at_work := {*self._starting, *self._ending}:
            await _to_the_end(asyncio.wait(at_work))

    async def _child(self) -> _Child:
        if self._idle and not self._closed:
            return self._idle.pop()
        self._refuse_when_closed()
        return await self._start()

    def _refuse_when_closed(self) -> None:
        if self._closed:
            raise JobFailed("the server is stopping", retryable=True)

    async def _start(self) -> _Child:
        """A new child; a caller that is cancelled meanwhile leaves none."""
        starting = asyncio.ensure_future(self._spawned())
        self._starting.add(starting)
        starting.add_done_callback(self._starting.discard)
        try:
            return await _to_the_end(starting)
        except BaseException:
            if starting.exception() is None:
                await _to_the_end(self._end(starting.result()))
            raise

    async def _spawned(self) -> _Child:
        ours, theirs = socket.socketpair()
        try:
            ours.setblocking(False)
            # In a thread: exec takes milliseconds.
            process = await asyncio.to_thread(_spawn, theirs, self._children_dir)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        child = _Child(process, self._lost)
        self._children.add(child)
        await asyncio.get_running_loop().create_connection(lambda: child, sock=ours)
        if self._closed:
            await self._end(child)
            self._refuse_when_closed()
        return child

    async def _put_back(self, child: _Child) -> None:
        if self._closed or child.lost:
            await _to_the_end(self._end(child))
            return
        self._idle.append(child)
        # Where two small jobs run beside large ones, the next two need no new children.
        most = max(1, min(MOST_IDLE, len(self._queue)))
        while len(self._idle) > most:
            await _to_the_end(self._end(self._idle[0]))

    def _lost(self, child: _Child) -> None:
        """The child closed its end: it is dead or dying."""
        if child in self._idle:  # else whoever runs a job on it ends it
            self._end_soon(child)

    def _end_soon(self, child: _Child) -> None:
        task = asyncio.ensure_future(self._end(child))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _end(self, child: _Child) -> None:
        """Kill and reap a child. May be called more than once."""
        if child in self._idle:
            self._idle.remove(child)
        child.kill()
        await asyncio.to_thread(child.process.wait)
        processes.forget(self._children_dir, child.process.pid)
        self._children.discard(child)


class _Child(asyncio.Protocol):
    """One child and our end of its socket; at most one question at a time."""

    def __init__(
        self, process: subprocess.Popen[bytes], when_lost: Callable[[_Child], None]
    ) -> None:
        self.process = process
        self.lost = False
        self._when_lost = when_lost
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._answer: asyncio.Future[bytes] | None = None

    def ask(self, message: bytes) -> asyncio.Future[bytes]:
        """Send a message. The future gets the answer, or JobFailed when the child dies first."""
        self._answer = asyncio.get_running_loop().create_future()
        if self._transport is None or self.lost:
            self._answer.set_exception(_died(self.process.pid))
        else:
            self._transport.write(len(message).to_bytes(LENGTH_BYTES) + message)
        return self._answer

    def kill(self) -> None:
        self.process.kill()
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = typing.cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if len(self._received) < LENGTH_BYTES:
            return
        stop = LENGTH_BYTES + int.from_bytes(self._received[:LENGTH_BYTES])
        if len(self._received) >= stop:
            message = bytes(self._received[LENGTH_BYTES:stop])
            self._received.clear()  # one question, one answer: nothing can follow
            if self._answer is not None and not self._answer.done():
                self._answer.set_result(message)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's own name
        self.lost = True
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(_died(self.process.pid))
        self._when_lost(self)


def _request(function: Callable[[Job], Result], job: Job) -> bytes:
    return msgspec.msgpack.encode(
        Request(
            function=f"{function.__module__}:{function.__qualname__}",
            job=msgspec.Raw(msgspec.msgpack.encode(job)),
        )
    )


def _died(pid: int) -> JobFailed:
    return JobFailed(f"the child process {pid} ended before its job", retryable=True)


def _spawn(theirs: socket.socket, children_dir: Path) -> subprocess.Popen[bytes]:
    # -P: what lies in the working directory must not be imported in place of our modules.
    return subprocess.Popen(
        [
            *(sys.executable, "-P", "-m", _CHILD_MODULE),
            *(str(theirs.fileno()), str(children_dir), telemetry.armed_spec),
        ],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )


Value = TypeVar("Value")


async def _to_the_end(work: Coroutine[object, object, Value] | asyncio.Future[Value]) -> Value:
    """Await `work` until it is done, even when cancelled meanwhile; then pass the cancellation on.

    For milliseconds only: starting, killing and reaping a child of ours.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as exc:
            cancelled = exc
        except Exception:  # noqa: BLE001  # raised below, by result()
            break
    if cancelled is not None:
        raise cancelled
    return task.result()
