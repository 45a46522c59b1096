"""System calls of running processes, in the order in which the kernel saw them."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final, NoReturn

import pytest

ATTACH_S: Final = 30.0
SYNCS: Final = ("fsync", "fdatasync")
WRITES: Final = ("write", "writev", "pwrite64", "sendto", "sendmsg")
RENAMES: Final = ("rename", "renameat", "renameat2")

_LINE: Final = re.compile(r"(\d+)\s+(.*)")
_CALL: Final = re.compile(r"(\w+)\((.*)")
_RESUMED: Final = re.compile(r"<\.\.\. (\w+) resumed>(.*)")
_UNFINISHED: Final = "<unfinished ...>"


@dataclass(slots=True, eq=False)
class Call:
    """One system call. `began` and `ended` are places in the trace; `text` has the arguments, with
    paths for descriptors, and the result."""

    pid: int
    name: str
    text: str
    began: int
    ended: int

    @property
    def worked(self) -> bool:
        return not re.search(r"= -1 E", self.text)


class Trace:
    """What was traced so far."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def calls(self) -> list[Call]:
        """Every call that worked, in the order of their beginnings.

        One that was not seen to return (its effect may have been, by whoever ended the trace) ended
        after all others.
        """
        under_way: dict[int, Call] = {}
        calls: list[Call] = []
        lines = self.path.read_text(errors="replace").splitlines()
        for place, line in enumerate(lines):
            found = _LINE.match(line)
            if found is None:
                continue
            pid, rest = int(found[1]), found[2]
            if resumed := _RESUMED.match(rest):
                if call := under_way.pop(pid, None):
                    call.text += resumed[2]
                    call.ended = place
                    calls.append(call)
            elif begun := _CALL.match(rest):
                call = Call(pid, begun[1], begun[2], place, place)
                if rest.endswith(_UNFINISHED):
                    under_way[pid] = call
                else:
                    calls.append(call)
        for call in under_way.values():
            call.ended = len(lines)
            calls.append(call)
        return sorted((call for call in calls if call.worked), key=lambda call: call.began)


def select(calls: Sequence[Call], names: Sequence[str], *texts: str) -> list[Call]:
    """The calls of these names whose text contains all of `texts`."""
    return [
        call for call in calls if call.name in names and all(text in call.text for text in texts)
    ]


def assert_in_order(*calls: Call) -> None:
    """Each of them had returned before the next began."""
    for first, then in pairwise(calls):
        assert first.ended < then.began, f"{first} had not returned when {then} began"


@contextmanager
def traced(pids: Sequence[int], directory: Path) -> Iterator[Trace]:
    """Trace `pids`, their threads and their future children for the length of the block.

    Without strace the test is skipped, but in CI it fails: there it has to be installed.
    """
    output = directory / "trace"
    options = ["-y", "-s", "2000", "-e", "trace=" + ",".join([*SYNCS, *WRITES, *RENAMES])]
    with _attached(pids, directory, [*options, "-o", str(output)]):
        yield Trace(output)


@contextmanager
def tampered(
    pids: Sequence[int], directory: Path, names: Sequence[str], *, how: str
) -> Iterator[Trace]:
    """For the length of the block, calls of these names do `how` in `pids` and their children.

    `how` is strace's: `error=EIO` (the call is not made), `delay_enter=300000` (microseconds).
    The trace has those calls only; ones that were made to fail are not among `calls()`.
    """
    output = directory / f"tampered-{how}"
    calls = ",".join(names)
    options = ["-e", f"trace={calls}", "-e", f"inject={calls}:{how}", "-o", str(output)]
    with _attached(pids, directory, options):
        yield Trace(output)


@contextmanager
def _attached(pids: Sequence[int], directory: Path, options: Sequence[str]) -> Iterator[None]:
    if shutil.which("strace") is None:
        cannot("strace is not installed")
    said = directory / "strace.log"
    command = ["strace", "-f", *options]
    for pid in pids:
        command += ["-p", str(pid)]
    with said.open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        _until_attached(process, said, pids)
        yield
    finally:
        # It lets the processes go and ends; they run on.
        process.send_signal(signal.SIGINT)
        process.wait(ATTACH_S)


def _until_attached(process: subprocess.Popen[bytes], said: Path, pids: Sequence[int]) -> None:
    deadline = time.monotonic() + ATTACH_S
    while any(f"Process {pid} attached" not in said.read_text() for pid in pids):
        if process.poll() is not None:
            cannot(f"strace cannot attach here: {said.read_text()}")
        assert time.monotonic() < deadline, said.read_text()
        time.sleep(0.01)


def cannot(why: str) -> NoReturn:
    """Skip the test, but in CI fail it: there strace has to work."""
    if os.environ.get("CI"):
        pytest.fail(why)
    pytest.skip(why)
