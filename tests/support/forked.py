"""Our programs as processes of their own that need not import anything first.

Importing the server costs 0.8 of the 1.4 CPU seconds of an idle start and stop, and the tests start
some hundreds. Here a parent (`forked_parent.py`, one for each process that runs tests) has imported
everything and forks a child for each start: the same code from `main()` on, in a real process with
its own session, environment and output, to be killed as any other; its children are forked likewise
(`forked_children.py`). What a test wants to know about the start itself (`python -m`, imports,
options) it starts with `subprocess` as before.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from tests.support import leash
from tests.support.forked_parent import LENGTH, Start

ROOT: Final = Path(__file__).parents[2]


class Forked:
    """A started program; the part of `subprocess.Popen` that tests use."""

    def __init__(self, parent: _Parent, pid: int) -> None:
        self._parent = parent
        self.pid = pid

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return self._parent.status(self.pid, timeout_s=0)

    def wait(self, timeout: float | None = None) -> int:
        """The exit status.

        Raises:
            subprocess.TimeoutExpired: it still runs after `timeout` seconds.
        """
        status = self._parent.status(self.pid, timeout_s=timeout)
        if status is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
        return status

    def send_signal(self, number: int) -> None:
        """Nothing, when it has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):  # it ended just now: it is not ours to reap
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start(
    program: str,
    arguments: Sequence[str],
    *,
    stdin: int,
    stdout: int,
    stderr: int,
    more: Sequence[int] = (),
    env: Mapping[str, str] | None = None,
) -> Forked:
    """Start `program` (one of `forked_parent.PROGRAMS`) on these open files, as a session leader.

    The files stay open here; `env` is the whole environment, by default this process's. `more` is
    one further file, whose number there `forked_children.FD` stands for among the arguments.
    """
    request = Start(
        program=program,
        arguments=list(arguments),
        environment=dict(os.environ if env is None else env),
        directory=os.getcwd(),  # noqa: PTH109  # a string for the message
    )
    parent = _parent()
    return Forked(parent, parent.start(request, [stdin, stdout, stderr, *more]))


class _Parent:
    """This side of the connection to the parent. Threads may share it."""

    def __init__(self) -> None:
        leash.tie()
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.forked_parent", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                cwd=ROOT,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for the tests
            )
        self._socket = ours
        self._lock = threading.Lock()
        self._unread = b""
        self._started: list[int] = []
        self._ended: dict[int, int] = {}

    def start(self, request: Start, files: Sequence[int]) -> int:
        body = json.dumps(request).encode()
        with self._lock:
            socket.send_fds(self._socket, [len(body).to_bytes(LENGTH, "big")], files)
            self._socket.sendall(body)
            while not self._started:
                self._take(None)
            return self._started.pop()

    def status(self, pid: int, *, timeout_s: float | None) -> int | None:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            with self._lock:
                if pid in self._ended:
                    return self._ended[pid]
                left = 0.1 if deadline is None else max(0.0, deadline - time.monotonic())
                self._take(min(left, 0.1))  # others may wait for the lock
                if pid in self._ended:
                    return self._ended[pid]
            if deadline is not None and time.monotonic() >= deadline:
                return None

    def _take(self, timeout_s: float | None) -> None:
        """Read what the parent says, waiting for it that long at most."""
        if not select.select([self._socket], [], [], timeout_s)[0]:
            return
        said = self._socket.recv(65536)
        if not said:
            raise RuntimeError("the parent of forked programs has ended")
        *lines, self._unread = (self._unread + said).split(b"\n")
        for line in lines:
            word, pid, status = line.split()
            if word == b"started":
                # After some thousand starts process ids come round again: whoever had this one has
                # ended, and what it ended with says nothing of its successor.
                self._ended.pop(int(pid), None)
                self._started.append(int(pid))
            else:
                self._ended[int(pid)] = int(status)

    def close(self) -> None:
        self._socket.close()
        self._process.wait()


_the_parent: _Parent | None = None


def _parent() -> _Parent:
    global _the_parent  # one for each process, made when it is first needed
    if _the_parent is None:
        _the_parent = _Parent()
        atexit.register(_the_parent.close)
    return _the_parent
