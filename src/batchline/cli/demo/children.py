"""The demo's two processes: started in sessions of their own, stopped and seen to be gone.

Owns starting, waiting until ready and ending. Each child leads its own session, so a Ctrl-C in the
terminal reaches only the demo, which then ends its children in the right order, and a child's own
children can be found by its process group.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar
from urllib.parse import urlsplit

T = TypeVar("T")

START_S: Final = 60.0  # imports and 90 MB of weights from a cold, slow disk
STOP_S: Final = 20.0  # twice the server's own `shutdown.grace_s`
GONE_S: Final = 2.0  # a worker ends by itself within 0.1 s of its server, then has to be reaped
POLL_S: Final = 0.02
REQUEST_S: Final = 10.0
LOG_TAIL_LINES: Final = 20

_LISTENING: Final = re.compile(r"listening on (http://\S+)")


class ChildFailed(Exception):
    """A child did not start, died, or did not end; the message has the end of its log."""


class Child:
    """One process with its log; as a context manager it is stopped on the way out."""

    def __init__(self, name: str, arguments: list[str], *, log: Path, cwd: Path | None) -> None:
        """Start it; output and errors go to `log`."""
        self.name = name
        self.log = log
        with log.open("wb") as sink:
            self._process = subprocess.Popen(
                arguments,
                cwd=cwd,
                # Held open and never written: its end tells the child that we are gone, even when
                # we were killed.
                stdin=subprocess.PIPE,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_for(self, what: str, look: Callable[[], T | None]) -> T:
        """Ask `look` until it gives something else than None, and return that.

        Raises:
            ChildFailed: the child ended first, or START_S passed.
        """
        deadline = time.monotonic() + START_S
        while (found := look()) is None:
            code = self._process.poll()
            if code is not None:
                raise self._failure(f"ended with exit code {code} before {what}")
            if time.monotonic() > deadline:
                raise self._failure(f"took more than {START_S:.0f} s until {what}")
            time.sleep(POLL_S)
        return found

    def stop(self) -> None:
        """SIGTERM, wait, and see that no process of its session is left. Safe to call twice.

        Raises:
            ChildFailed: it did not end in STOP_S, ended with an error, or left processes behind;
                in each case nothing of it is left afterwards.
        """
        if self._process.stdin is None or self._process.stdin.closed:
            return
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            code: int | None = self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            code = None
        self._process.stdin.close()
        left = _session_remains(self.pid)
        if left:
            with suppress(ProcessLookupError):  # it may end just now
                os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()
            _session_remains(self.pid)  # SIGKILL returns before the process is gone
        if code is None:
            raise self._failure(f"was still running {STOP_S:.0f} s after SIGTERM and was killed")
        if code != 0:
            raise self._failure(f"ended with exit code {code}")
        if left:
            raise self._failure("left processes of its own behind; they were killed")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.stop()
        else:
            # What went wrong first is what is reported.
            with suppress(ChildFailed):
                self.stop()

    def _failure(self, what: str) -> ChildFailed:
        lines = self.log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
        tail = "\n".join(f"  {line}" for line in lines) or "  (nothing)"
        return ChildFailed(f"the {self.name} {what}; the end of {self.log}:\n{tail}")


@contextmanager
def backend_running(package: Path, *, log: Path) -> Iterator[str]:
    """Run the embeddings backend for the length of the block; gives its address once it listens.

    Raises:
        ChildFailed: it did not come up, or did not end well.
    """
    module = f"{package.parent.name}.{package.name}"
    arguments = [sys.executable, "-m", module, "--port", "0", "--until-stdin-closes"]

    def address() -> str | None:
        match = _LISTENING.search(log.read_text(errors="replace"))
        return match and match[1]

    with Child("backend", arguments, log=log, cwd=package.parent.parent) as backend:
        yield backend.wait_for("it listened", address)


@contextmanager
def server_running(*, data_dir: Path, upstream: str, config: Path, log: Path) -> Iterator[str]:
    """Run `batchline serve` for the length of the block, on a port of the kernel's choice.

    Gives its address once it is ready.

    Raises:
        ChildFailed: it did not come up, or did not end well.
    """
    arguments = [
        *(sys.executable, "-m", "batchline.cli.main", "serve", "--port", "0"),
        *("--data-dir", str(data_dir), "--upstream", upstream, "--config", str(config)),
    ]
    with Child("server", arguments, log=log, cwd=None) as server:

        def address() -> str | None:
            try:
                listening = json.loads((data_dir / "server.json").read_bytes())
            except (FileNotFoundError, ValueError):
                return None  # not yet, or half written
            # A directory that was used before may hold the address of then.
            if listening["pid"] != server.pid:
                return None
            return f"http://{listening['host']}:{listening['port']}"

        url = server.wait_for("it listened", address)
        server.wait_for("it was ready", lambda: True if _is_ready(url) else None)
        yield url


def get(url: str) -> tuple[int, bytes]:
    """Status and body of a GET on loopback, past any proxy of the environment.

    Raises:
        OSError: nobody answers there.
    """
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=REQUEST_S)
    try:
        connection.request("GET", parts.path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def _is_ready(url: str) -> bool:
    try:
        status, _ = get(f"{url}/healthz/ready")
    except (OSError, http.client.HTTPException):
        return False
    return status == http.client.OK


def _session_remains(leader: int) -> bool:
    """Whether a process group still has a member after GONE_S; returns as soon as it has none."""
    deadline = time.monotonic() + GONE_S
    while True:
        try:
            os.killpg(leader, 0)
        except (ProcessLookupError, PermissionError):  # macOS: "not permitted" for the reaped
            return False
        if time.monotonic() > deadline:
            return True
        time.sleep(POLL_S)
