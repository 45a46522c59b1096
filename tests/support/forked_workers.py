"""Workers and job children of an executor or a job queue that runs in the process of the tests.

To execute one is 0.3 CPU seconds of imports, and a test of what they do with their work needs them
only to be processes. Here they are forked as the programs of `forked.py` are: the same `main()`,
arguments, environment and socket. They are not children of this process, so what a test wants to
know of starting and reaping them it has executed, as ever.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from batchline import telemetry
from batchline.service import jobs
from tests.support import forked
from tests.support.forked_children import FD, WORKER

_STDERR: Final = 2  # inherited, as it is of an executed one
_EXECUTED: Final = (asyncio.create_subprocess_exec, jobs._spawn)


@pytest.fixture(scope="module")
def forked_workers() -> Iterator[None]:
    """For `pytest.mark.usefixtures`: nothing of a test need know of it."""
    with workers_forked():
        yield


@pytest.fixture
def executed_workers(monkeypatch: pytest.MonkeyPatch, forked_workers: None) -> None:
    """For the one test of such a module that waits for its own child, as waitid(2) can."""
    monkeypatch.setattr(asyncio, "create_subprocess_exec", _EXECUTED[0])
    monkeypatch.setattr(jobs, "_spawn", _EXECUTED[1])


@contextmanager
def workers_forked() -> Iterator[None]:
    """The two ways to start a child come here for the length of the block; Linux only."""

    async def start_worker(*command: str, **options: Any) -> Any:
        if WORKER not in command:
            return await _EXECUTED[0](*command, **options)
        words = command[command.index(WORKER) + 1 :]
        (fd,) = options["pass_fds"]
        arguments = [FD if word == str(fd) else word for word in words]
        return _Worker(_start("worker_child", arguments, fd, options["env"]))

    def start_job(theirs: socket.socket, children_dir: Path) -> forked.Forked:
        arguments = [FD, str(children_dir), telemetry.armed_spec]
        return _start("job_child", arguments, theirs.fileno(), os.environ)

    with pytest.MonkeyPatch.context() as patch:
        if sys.platform == "linux":
            patch.setattr(asyncio, "create_subprocess_exec", start_worker)
            patch.setattr(jobs, "_spawn", start_job)
        yield


def _start(
    program: str, arguments: Sequence[str], fd: int, environment: Mapping[str, str]
) -> forked.Forked:
    with Path(os.devnull).open("r+b") as nothing:
        return forked.start(
            program,
            arguments,
            stdin=nothing.fileno(),
            stdout=nothing.fileno(),
            stderr=_STDERR,
            more=[fd],
            env=environment,
        )


class _Worker:
    """The part of `asyncio.subprocess.Process` that a link uses."""

    def __init__(self, process: forked.Forked) -> None:
        self.pid = process.pid
        self._process = process
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        try:
            self._pidfd = os.pidfd_open(process.pid)
        except ProcessLookupError:  # so soon
            self._ended.set_result(None)
        else:
            self._loop.add_reader(self._pidfd, self._end)

    def _end(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._ended.set_result(None)

    async def wait(self) -> int:
        await asyncio.shield(self._ended)
        return await asyncio.to_thread(self._process.wait)

    def send_signal(self, number: int) -> None:
        if self._ended.done():
            raise ProcessLookupError
        os.kill(self.pid, number)
