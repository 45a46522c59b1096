"""The process that has imported our programs and forks one whenever it is asked to.

`python -m tests.support.forked_parent FD`: FD is a connected socket. A request is a length with
file descriptors for the child (its first three, and one more where it takes one), then a `Start`
as JSON; answers are lines `started PID 0` and `ended PID STATUS`. It ends when the socket does;
what it started runs on.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
import threading
from contextlib import suppress
from typing import Final, TypedDict

from tests.support import forked_children

LENGTH: Final = 8
FILES: Final = 4  # at most

# Name of a program to its module; `main()` is called there.
PROGRAMS: Final = {
    "batchline": "batchline.cli.main",
    "job_child": forked_children.JOB,
    "scripted_backend": "tests.support.scripted_backend.__main__",
    "worker_child": forked_children.WORKER,
}
# Commands that start children.
SERVING: Final = (["serve"], ["run"])
# What these import when they run.
PRELOADED: Final = (
    *PROGRAMS.values(),
    "alembic.command",
    "alembic.config",
    "batchline.cli.client.batches",
    "batchline.cli.client.files",
    "batchline.cli.network_disk",
    "batchline.cli.run_engine",
    "batchline.cli.serve",
    "uvicorn.lifespan.off",
)


class Start(TypedDict):
    """A program to start, with its whole environment.

    `forked_children.FD` among the arguments is the number of its fourth file.
    """

    program: str
    arguments: list[str]
    environment: dict[str, str]
    directory: str


def serve(connection: socket.socket) -> str | None:
    """Fork as asked. In a child: the module to run. In the parent: None, when the socket ended."""
    woken, waker = socket.socketpair()
    for one in (woken, waker):
        one.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker.fileno())
    with selectors.DefaultSelector() as selector:
        selector.register(connection, selectors.EVENT_READ)
        selector.register(woken, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is woken:
                    woken.recv(4096)
                    _tell_ended(connection)
                    continue
                length, files, _, _ = socket.recv_fds(connection, LENGTH, FILES)
                if not length:
                    return None
                body = connection.recv(int.from_bytes(length, "big"), socket.MSG_WAITALL)
                request: Start = json.loads(body)
                pid = os.fork()
                if pid == 0:
                    signal.set_wakeup_fd(-1)
                    for opened in (selector, connection, woken, waker):
                        opened.close()
                    return _become(request, files)
                for file in files:
                    os.close(file)
                connection.sendall(b"started %d 0\n" % pid)


def _tell_ended(connection: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        connection.sendall(b"ended %d %d\n" % (pid, os.waitstatus_to_exitcode(status)))


def _become(request: Start, files: list[int]) -> str:
    """Make a process of its own of a forked child; the module whose `main` it is to run."""
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, file in enumerate(files[:3]):
        os.dup2(file, number)
        os.close(file)
    words = [
        str(files[-1]) if word == forked_children.FD else word for word in request["arguments"]
    ]
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["environment"])
    module = PROGRAMS[request["program"]]
    sys.argv = [module, *words]
    return module


def main() -> None:
    connection = socket.socket(fileno=int(sys.argv[1]))
    os.set_inheritable(connection.fileno(), False)
    for module in PRELOADED:
        importlib.import_module(module)
    _make_commands()
    assert threading.active_count() == 1, "a fork would lose the other threads"
    gc.collect()
    gc.freeze()
    program = serve(connection)
    if program is None:
        return
    if sys.platform == "linux" and program == PROGRAMS["batchline"] and sys.argv[1:2] in SERVING:
        program = forked_children.adopt() or program
    _run(program)


def _make_commands() -> None:
    """Have the tree of our commands made: 50 ms of every call otherwise."""
    from typer import main as typer_main

    from batchline.cli.main import app

    typer_main.get_command = functools.cache(typer_main.get_command)
    typer_main.get_command(app)


def _run(module: str) -> None:
    """Its `main`, and an end that does not take apart a thousand modules: 50 ms of CPU each time.

    All else of an interpreter's end is done: threads are waited for, exit functions called, what
    the program left in cycles is collected (and complains, where it does), output flushed.
    """
    try:
        importlib.import_module(module).main()
        status = 0
    except SystemExit as exc:
        if not isinstance(exc.code, int | None):
            raise
        status = exc.code or 0
    threading._shutdown()  # type: ignore[attr-defined]  # what the interpreter itself calls
    atexit._run_exitfuncs()
    gc.collect()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # closed by whoever read it, or by the program
            stream.flush()
    os._exit(status & 0xFF)


if __name__ == "__main__":
    main()
