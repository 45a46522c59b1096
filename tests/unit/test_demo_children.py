"""The demo's processes: ready or reported, stopped, and nothing left of them."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

from batchline.cli.demo import children
from batchline.cli.demo.children import Child, ChildFailed, backend_running

OBEYS = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print("ready", flush=True)
signal.pause()
"""
DEAF = OBEYS.replace("lambda *_: sys.exit(0)", "signal.SIG_IGN")


def child(tmp_path: Path, program: str) -> Child:
    return Child("child", [sys.executable, "-c", program], log=tmp_path / "log", cwd=None)


def wait_until_ready(one: Child) -> None:
    one.wait_for("it was ready", lambda: "ready" in one.log.read_text() or None)


def is_gone(pid: int) -> bool:
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_child_that_obeys_is_gone_after_the_block(tmp_path: Path) -> None:
    with child(tmp_path, OBEYS) as one:
        wait_until_ready(one)
    assert is_gone(one.pid)
    one.stop()  # again, to no effect


def test_a_child_that_dies_before_it_is_ready_is_reported_with_its_last_words(
    tmp_path: Path,
) -> None:
    one = child(tmp_path, "raise SystemExit('no room for me')")
    with pytest.raises(ChildFailed, match=r"(?s)code 1 before it was ready.*no room for me"), one:
        wait_until_ready(one)


def test_a_child_that_takes_too_long_is_reported_and_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "START_S", 0.05)
    one = child(tmp_path, OBEYS.replace("ready", "not yet"))
    with pytest.raises(ChildFailed, match="until it was ready"), one:
        one.wait_for("it was ready", lambda: None)
    assert is_gone(one.pid)


def test_a_child_that_ends_with_an_error_is_reported(tmp_path: Path) -> None:
    with (
        pytest.raises(ChildFailed, match="ended with exit code 3"),
        child(tmp_path, OBEYS.replace("exit(0)", "exit(3)")) as one,
    ):
        wait_until_ready(one)


def test_a_child_deaf_to_sigterm_is_killed_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "STOP_S", 0.1)
    monkeypatch.setattr(children, "GONE_S", 0.1)
    one = child(tmp_path, DEAF)
    with pytest.raises(ChildFailed, match="after SIGTERM and was killed"), one:
        wait_until_ready(one)
    assert is_gone(one.pid)


def test_what_a_child_leaves_behind_is_killed_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "GONE_S", 0.1)
    # A listening socket shows that its process lives, also where nobody reaps the orphan.
    deaf = (
        "import signal, socket\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "listener = socket.create_server(('127.0.0.1', 0))\n"
        "print('port', listener.getsockname()[1], 'ready', flush=True)\n"
        "signal.pause()\n"
    )
    leaves = f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {deaf!r}])\n"
    one = child(tmp_path, leaves + OBEYS.replace('print("ready", flush=True)', ""))
    wait_until_ready(one)
    port = int(one.log.read_text().split()[1])
    socket.create_connection(("127.0.0.1", port)).close()
    with pytest.raises(ChildFailed, match="left processes of its own behind"):
        one.stop()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_the_first_error_is_the_one_reported(tmp_path: Path) -> None:
    one = child(tmp_path, OBEYS.replace("exit(0)", "exit(3)"))

    def fails_inside_the_block() -> None:
        with one:
            wait_until_ready(one)
            raise KeyError("first")

    with pytest.raises(KeyError, match="first"):
        fails_inside_the_block()
    assert is_gone(one.pid)


def test_the_backend_says_where_it_listens(tmp_path: Path) -> None:
    package = tmp_path / "pretend" / "backend"
    package.mkdir(parents=True)
    (package / "__main__.py").write_text(
        OBEYS.replace("ready", "listening on http://127.0.0.1:4321")
    )
    with backend_running(package, log=tmp_path / "log") as url:
        assert url == "http://127.0.0.1:4321"
