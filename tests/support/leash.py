"""What a test run or a benchmark started ends with it, however that ends: by SIGKILL as well.

A keeper (this file as a program) holds the end of a pipe from whoever is tied to it. Every process
that is started afterwards has the keeper's token in its environment, and so has whatever that one
starts. When the pipe ends, the keeper kills all that have the token and removes the directories
that it was told of. So nobody has to be told of a new process, there is no moment in which one is
not held, and one whose parent has ended, or that leads a session of its own, is found as well.

Not `PR_SET_PDEATHSIG`: it goes by the thread that started a process, and tests start some from
threads that end. Linux only, as it is `/proc` that shows environments; elsewhere nothing is held.
"""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

NAME: Final = "LEASH"  # not BATCHLINE_...: those are settings, and one that is unknown is refused
GONE_S: Final = 10.0
POLL_S: Final = 0.01

_keeper: subprocess.Popen[bytes] | None = None


def tie() -> None:
    """Whatever is started from now on ends when this process does. Safe to repeat."""
    global _keeper  # one for each process, made when it is first needed
    if _keeper is not None or sys.platform != "linux":
        return
    token = secrets.token_hex(16)
    _keeper = subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, token],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # what is sent to all of a terminal or a group is not for it
        env={},  # nor is it held by another keeper: that of a test that runs a benchmark
    )
    os.environ[NAME] = token
    atexit.register(_let_go, _keeper)


def _let_go(keeper: subprocess.Popen[bytes]) -> None:
    assert keeper.stdin is not None
    keeper.stdin.close()
    keeper.wait()


def remove_at_end(directory: Path) -> None:
    """Have a directory removed if this process ends without doing it."""
    tie()
    if _keeper is not None:
        assert _keeper.stdin is not None
        _keeper.stdin.write(os.fsencode(directory) + b"\n")
        _keeper.stdin.flush()


# -- the keeper --------------------------------------------------------------------------------


def main() -> None:
    marked = f"{NAME}={sys.argv[1]}".encode()
    directories = sys.stdin.buffer.read().splitlines()  # until whoever is tied is gone
    give_up = time.monotonic() + GONE_S
    while (
        held := having(marked)
    ) and time.monotonic() < give_up:  # some may start others meanwhile
        for pid in held:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(POLL_S)
    for directory in directories:
        shutil.rmtree(directory, ignore_errors=True)


def having(marked: bytes) -> list[int]:
    """Ids of the processes that were started with this `NAME=value` in their environment.

    A zombie has none any more.
    """
    held = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):  # it ended while we looked, or is another user's
                if marked in (entry / "environ").read_bytes().split(b"\0"):
                    held.append(int(entry.name))
    return held


if __name__ == "__main__":
    main()
