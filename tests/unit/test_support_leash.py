"""What a killed test run or benchmark leaves: no process and no directory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchline.executor.processes import start_time

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")

GONE_S = 30.0
ROOT = Path(__file__).parents[2]

# Ties itself, and starts a child that leads a session, whose own child ignores what is soft.
TIED = """
import subprocess, sys
from pathlib import Path
from tests.support import leash
leash.tie()
leash.remove_at_end(Path(sys.argv[1]))
subprocess.Popen([sys.executable, "-S", "-c", sys.argv[2]], start_new_session=True)
sys.stdin.read()
"""
CHILD = """
import os, signal, time
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
grandchild = os.fork()
if grandchild:
    print(os.getpid(), grandchild, flush=True)
time.sleep(60)
"""


@pytest.fixture
def tied(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], list[int], Path]]:
    """A process on a leash, those that it started, and its directory."""
    directory = tmp_path / "left"
    directory.mkdir()
    (directory / "file").touch()
    with subprocess.Popen(
        [sys.executable, "-c", TIED, directory, CHILD],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        pids = [int(word) for word in process.stdout.readline().split()]
        try:
            yield process, pids, directory
        finally:
            process.kill()
            for pid in pids:
                if start_time(pid) is not None:
                    os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_a_killed_process_started_is_gone(
    number: int, tied: tuple[subprocess.Popen[str], list[int], Path]
) -> None:
    process, pids, directory = tied
    assert len(pids) == 2
    assert all(start_time(pid) for pid in pids)
    process.send_signal(number)
    assert process.wait() == -number
    deadline = time.monotonic() + GONE_S
    while directory.exists() or any(start_time(pid) for pid in pids):
        assert time.monotonic() < deadline, [pid for pid in pids if start_time(pid)]
        time.sleep(0.005)


def test_who_ends_by_itself_leaves_nothing_either(
    tied: tuple[subprocess.Popen[str], list[int], Path],
) -> None:
    process, pids, directory = tied
    process.communicate("")
    assert process.returncode == 0
    assert not any(start_time(pid) for pid in pids)  # it waited for that
    assert not directory.exists()
