"""The children of a forked server, forked as well: half the CPU of a start is what they import.

Before a forked server runs anything it forks a *nursery*, which keeps one thread and all modules
imported for as long as the server lives. Asked for a child, the nursery forks twice and lets the
process in between end at once; the server is the *subreaper* of its descendants (prctl(2)), so the
child becomes its own: it is waited for, signalled and killed as one that was executed. It runs the
same `main()` with the same arguments, on the file that it was given and no other.

Linux only. A server that is executed (`fork=False`) executes its children as ever.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, TypedDict

from batchline import telemetry

LENGTH: Final = 8
WORKER: Final = "batchline.cli.worker_child"
JOB: Final = "batchline.cli.job_child"
# What the server is sent, and what would end the nursery before it when all of a group get it.
_OF_THE_SERVER: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PR_SET_NAME: Final = 15
_PR_SET_CHILD_SUBREAPER: Final = 36


class Wanted(TypedDict):
    """A child to fork. `FD` among the arguments is the number of its file."""

    module: str
    arguments: list[str]
    environment: dict[str, str]


FD: Final = "FD"


def adopt() -> str | None:
    """Give this process a nursery. Returns None here, and in each child the module to run."""
    ours, theirs = socket.socketpair()
    server = os.getpid()
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    nursery = os.fork()
    if nursery == 0:
        ours.close()
        for number in _OF_THE_SERVER:
            signal.signal(number, signal.SIG_IGN)
        return _nurse(theirs, server)
    theirs.close()
    _Nursery(ours).take_over()
    telemetry._kill_children = partial(_kill_children_but, nursery)
    return None


# -- in the server -----------------------------------------------------------------------------


class _Nursery:
    """The server's side. Threads may share it."""

    def __init__(self, nursery: socket.socket) -> None:
        self._socket = nursery
        self._lock = threading.Lock()
        self._exec = asyncio.create_subprocess_exec

    def take_over(self) -> None:
        """Have the server's two ways to start a child come here."""
        from batchline.service import jobs

        asyncio.create_subprocess_exec = self._start_worker  # type: ignore[assignment]  # what a link uses
        jobs._spawn = self._start_job  # type: ignore[assignment]  # what of a Popen is used there

    async def _start_worker(self, *command: str, **options: Any) -> Any:
        if WORKER not in command:
            return await self._exec(*command, **options)
        (fd,) = options["pass_fds"]
        words = command[command.index(WORKER) + 1 :]
        arguments = [FD if word == str(fd) else word for word in words]
        return _Process(self._fork(WORKER, arguments, fd, options["env"]))

    def _start_job(self, theirs: socket.socket, children_dir: Path) -> _Child:
        arguments = [FD, str(children_dir), telemetry.armed_spec]
        return _Child(self._fork(JOB, arguments, theirs.fileno(), os.environ))

    def _fork(
        self, module: str, arguments: Sequence[str], fd: int, environment: Mapping[str, str]
    ) -> int:
        wanted = Wanted(module=module, arguments=list(arguments), environment=dict(environment))
        body = json.dumps(wanted).encode()
        with self._lock:
            socket.send_fds(self._socket, [len(body).to_bytes(LENGTH, "big")], [fd])
            self._socket.sendall(body)
            said = self._socket.recv(LENGTH, socket.MSG_WAITALL)
        if len(said) != LENGTH:
            raise RuntimeError("the nursery has ended")
        return int.from_bytes(said, "big")


class _Child:
    """The part of `subprocess.Popen` that the server uses of a job's child."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._status: int | None = None
        self._lock = threading.Lock()

    def wait(self) -> int:
        with self._lock:
            if self._status is None:
                self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            return self._status

    def kill(self) -> None:
        if self._lock.acquire(blocking=False):  # else it is being waited for, dead or about to be
            try:
                if self._status is None:
                    os.kill(self.pid, signal.SIGKILL)
            finally:
                self._lock.release()


class _Process:
    """The part of `asyncio.subprocess.Process` that the server uses of a worker."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._pidfd = os.pidfd_open(pid)
        self._loop.add_reader(self._pidfd, self._reap)

    def _reap(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._ended.set_result(os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]))

    @property
    def returncode(self) -> int | None:
        return self._ended.result() if self._ended.done() else None

    async def wait(self) -> int:
        return await asyncio.shield(self._ended)

    def send_signal(self, number: int) -> None:
        if self._ended.done():
            raise ProcessLookupError
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _kill_children_but(nursery: int) -> None:
    """What the program's own does, which knows of no nursery."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        pid = int(stat.parent.name)
        with suppress(OSError):  # ended meanwhile
            parent = int(stat.read_text(errors="replace").rpartition(")")[2].split()[1])
            if parent == os.getpid() and pid != nursery:
                os.kill(pid, signal.SIGKILL)


# -- in the nursery ----------------------------------------------------------------------------


def _nurse(server: socket.socket, server_pid: int) -> str:
    """Fork what is asked for until the server is gone. Returns in the children only."""
    while True:
        try:
            wanted, file = _asked(server)
        except ConnectionError:  # it was killed, with something of ours unread
            os._exit(0)
        told, tell = os.pipe()
        between = os.fork()
        if between == 0:
            child = os.fork()
            if child == 0:
                for one in (told, tell):
                    os.close(one)
                server.close()
                return _become(wanted, file, server_pid)
            os.write(tell, child.to_bytes(LENGTH, "big"))
            os._exit(0)
        os.waitpid(between, 0)  # from here on the child is the server's
        with suppress(ConnectionError):
            server.sendall(os.read(told, LENGTH))
        for one in (told, tell, file):
            os.close(one)


def _asked(server: socket.socket) -> tuple[Wanted, int]:
    """The next request and the child's file.

    Raises:
        ConnectionError: the server is gone.
    """
    length, files, _, _ = socket.recv_fds(server, LENGTH, 1)
    size = int.from_bytes(length, "big")
    body = server.recv(size, socket.MSG_WAITALL) if files else b""
    if not files or len(body) < size:
        raise ConnectionResetError
    wanted: Wanted = json.loads(body)
    return wanted, files[0]


def _become(wanted: Wanted, file: int, server_pid: int) -> str:
    """Make of a forked process what an executed one would be; the module whose `main` it runs."""
    for number in _OF_THE_SERVER:
        signal.signal(number, signal.SIG_DFL)
    with suppress(ProcessLookupError):  # the server has been killed meanwhile, and this ends too
        limit = resource.prlimit(server_pid, resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    if wanted["module"] == JOB:
        os.dup2(nothing, 1)
    os.close(nothing)
    os.environ.clear()
    os.environ.update(wanted["environment"])
    name = wanted["module"].rpartition(".")[2]
    _prctl(_PR_SET_NAME, name.encode())
    arguments = [str(file) if word == FD else word for word in wanted["arguments"]]
    sys.argv = [wanted["module"], *arguments]
    return wanted["module"]


def _prctl(option: int, value: int | bytes) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
