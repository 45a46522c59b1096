"""Children of the server as the next server must find them: by process id and start time.

A child records itself in `<data-dir>/children/<pid>` before it can do any harm. A server that
starts on the directory kills whatever of that survived before it lets anything new dispatch.
The start time tells a survivor from a stranger that got the same process id.
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

_PS_TIMEOUT_S: Final = 5.0


def start_time(pid: int) -> str | None:
    """When the process began, in the system's own spelling; None when there is no such process.

    A zombie counts as gone: it holds no connection and can write nothing.
    """
    if sys.platform == "linux":
        fields = _fields(pid)
        # Ticks since the boot: those of another boot say nothing, so it is named too.
        return None if not fields or fields[0] in "ZX" else f"{_boot()} {fields[19]}"
    else:  # noqa: RET505  # mypy follows the platform through if/else only
        answer = subprocess.run(
            ["/bin/ps", "-o", "lstart=,stat=", "-p", str(pid)],
            capture_output=True,
            text=True,
            timeout=_PS_TIMEOUT_S,
            check=False,
        )
        started, _, state = answer.stdout.strip().rpartition(" ")
        return None if not started or state.startswith("Z") else started.strip()


@functools.cache
def _boot() -> str:
    """Which boot of Linux this is (random(4)); empty where that is not told."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def is_held_up(pid: int) -> bool:
    """Whether the main thread of a process would go on, had it the processor or the disk.

    That of a process that is stopped, or that waits for something else, would not. Where the system
    does not tell (it is Linux that does) nobody is held up.
    """
    fields = _fields(pid)
    return bool(fields) and fields[0] in "RD"


def _fields(pid: int) -> list[str]:
    """What Linux tells of a process from its state on (proc(5)); nothing when it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return []
    # The command name may hold spaces and brackets; the fields after it are fixed.
    return stat.rpartition(")")[2].split()


def record_self(directory: Path) -> None:
    """Write this process into `directory`; called by a child before it opens anything."""
    pid = os.getpid()
    partial = directory / f".{pid}"
    partial.write_text(start_time(pid) or "", encoding="ascii")
    partial.replace(directory / str(pid))


def leave_the_end_to_the_server() -> None:
    """Ignore what a terminal, or whoever stops a service, sends to all processes of a group."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def forget(directory: Path, pid: int) -> None:
    """Drop the record of a child that has been reaped."""
    (directory / str(pid)).unlink(missing_ok=True)


def kill_survivors(directory: Path, *, timeout_s: float = 5.0) -> int:
    """Kill every recorded child that still runs and wait until it is gone; how many there were.

    Raises:
        TimeoutError: one is still there after `timeout_s` (stuck in the kernel); nothing may
            dispatch then.
    """
    directory.mkdir(parents=True, exist_ok=True)
    killed: list[tuple[int, str]] = []
    for record in directory.iterdir():
        if record.name.isdigit():
            # Records are not synced: after a power cut there may be anything in one.
            recorded = record.read_text(encoding="ascii", errors="replace")
            if start_time(int(record.name)) == recorded:
                _kill(int(record.name))
                killed.append((int(record.name), recorded))
    deadline = time.monotonic() + timeout_s
    for pid, recorded in killed:
        while start_time(pid) == recorded:
            if time.monotonic() > deadline:
                raise TimeoutError(f"process {pid} of an earlier server does not die")
            time.sleep(0.002)
    for record in list(directory.iterdir()):
        record.unlink(missing_ok=True)
    return len(killed)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def exit_with_peer(fd: int, *, before_exit: Callable[[], None] | None = None) -> threading.Thread:
    """End this process within milliseconds when the other side of the socket `fd` is gone.

    A thread, so that a busy event loop cannot delay it; `os._exit`, so that the kernel closes every
    connection at once. Only hang-ups wake it: data on the socket is for the event loop.

    When it is gone already, this does not return: a child that recorded itself too late for the
    next server to kill it must not begin with what its own server had still asked of it.
    """
    poller = select.poll()
    # POLLHUP is always reported. POLLRDHUP exists on Linux only and comes with a half-close.
    poller.register(fd, getattr(select, "POLLRDHUP", 0))

    def look(timeout_ms: int | None) -> None:
        for _, events in poller.poll(timeout_ms):
            if events & (select.POLLHUP | select.POLLERR | getattr(select, "POLLRDHUP", 0)):
                if before_exit is not None:
                    before_exit()
                os._exit(0)

    def watch() -> None:
        while True:
            look(None)

    look(0)
    thread = threading.Thread(target=watch, name="exit-with-peer", daemon=True)
    thread.start()
    return thread
