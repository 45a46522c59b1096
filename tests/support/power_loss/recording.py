"""A server's system calls as steps on a file system, and as what it told its clients.

The trace is strace's, of the server and all its children from their first instruction on. It shows
every way in which they can change a file. One it shows only the beginning of: SQLite's index of
its log (`-shm`) is a shared mapping; it is rebuilt after a crash, so what is in it never counts.
Whatever else would go past the trace (another shared mapping, io_uring) is an error here.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

from tests.support.power_loss.file_system import FileSystem
from tests.support.strace import Call, Trace, cannot

# libuv may otherwise hand its calls on files to the kernel through a ring, past any trace. (Another
# ring, that only carries epoll's registrations, it always has.)
_NO_RING: Final = "UV_USE_IO_URING=0"

_TOLD: Final = ("write", "writev", "sendto", "sendmsg")
_CALLS: Final = (
    *("open", "openat", "openat2", "creat", "lseek", "mkdir", "mkdirat"),
    *("write", "writev", "pwrite64", "pwritev", "pwritev2", "sendto", "sendmsg"),
    *("truncate", "ftruncate", "fallocate", "sendfile", "copy_file_range", "splice", "mmap"),
    *("rename", "renameat", "renameat2", "link", "linkat", "symlink", "symlinkat"),
    *("unlink", "unlinkat", "rmdir", "fsync", "fdatasync", "io_uring_setup"),
)
END_S: Final = 30.0
_LONGEST: Final = 16 * 1024 * 1024  # bytes of one write; no test writes as much at once

_DESCRIPTOR: Final = re.compile(r"(?:(\d+)|AT_FDCWD)<((?:\\x[0-9a-f]{2})*)>(\(deleted\))?")
_STRING: Final = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_NUMBER: Final = re.compile(r", (-?\d+)")
_RESULT: Final = re.compile(r"\)\s+= (-?\d+)")


def under_strace(trace: Path) -> list[str]:
    """What to put before a command so that it is recorded in `trace`.

    The command stays the process that was started; strace is a grandchild and ends with the last
    process that it watches. Without strace the test is skipped, but in CI it fails.
    """
    if shutil.which("strace") is None:
        cannot("strace is not installed")
    options = ["-DD", "-f", "--seccomp-bpf", "-y", "-xx", "-s", str(_LONGEST), "-E", _NO_RING]
    return ["strace", *options, "-o", str(trace), "-e", "trace=" + ",".join(_CALLS)]


def wait_recorded(trace: Path) -> None:
    """Until strace has written all of `trace`; what it watched has ended."""
    deadline = time.monotonic() + END_S
    while any(_is_writing(process, trace) for process in Path("/proc").glob("[0-9]*")):
        assert time.monotonic() < deadline, f"strace still writes {trace}"
        time.sleep(0.01)


def _is_writing(process: Path, trace: Path) -> bool:
    try:
        words = (process / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return words[0] == b"strace" and os.fsencode(trace) in words


@dataclass(frozen=True, slots=True)
class Sent:
    """Bytes handed to a socket by a call that began at `place`."""

    socket: str
    data: bytes
    place: int


@dataclass(slots=True)
class Recording:
    """What was traced below `root`, to be played to a file system from the beginning on.

    What is directly in `root` under a name of `ignored` is left out (the test's own files).

    A *place* is a line of the trace. A crash at a place is after the calls that had returned before
    it; those that had only begun may have done all, some or nothing.
    """

    root: Path
    calls: Sequence[Call]
    ignored: frozenset[str] = frozenset()
    sent: list[Sent] = field(default_factory=list)

    @classmethod
    def of(
        cls, traces: Sequence[Path], root: Path, *, ignored: frozenset[str] = frozenset()
    ) -> Recording:
        """`traces` of processes that ran one after the other."""
        calls: list[Call] = []
        for trace in traces:
            before = _end(calls)
            for call in Trace(trace).calls():
                call.began += before
                call.ended += before
                calls.append(call)
        return cls(root, calls, ignored, list(_sent(calls)))

    def player(self) -> Player:
        return Player(self)

    @property
    def end(self) -> int:
        """The place behind everything that ended."""
        return _end(self.calls)

    def place_of(self, words: bytes) -> int:
        """Where a call began to write `words`, to whatever it was."""
        return next(
            call.began for call in self.calls if call.name == "write" and words in _data(call)
        )

    def busy_places(self) -> list[int]:
        """The places right behind each change or sync of a file of ours."""
        player = self.player()
        begun = sorted({call.began for call in self.calls} | {call.ended for call in self.calls})
        return [place + 1 for place in begun if player.go_to(place + 1)]


class Player:
    """A file system that is brought from one place of a recording to a later one."""

    def __init__(self, recording: Recording) -> None:
        self.files = FileSystem()
        self.place = 0
        self._root = str(recording.root)
        self._ignored = recording.ignored
        self._steps = iter(_in_order(recording.calls))
        self._next = next(self._steps, None)
        self._positions: dict[tuple[int, PurePosixPath], int] = {}  # of descriptors, by file

    def go_to(self, place: int) -> bool:
        """Play what began before `place`; whether anything of it was a change or a sync."""
        assert place >= self.place, "a recording is played forwards"
        self.place = place
        changed = False
        while self._next is not None and self._next[0] < place:
            _, call = self._next
            changed = self._step(call) or changed
            self._next = next(self._steps, None)
        return changed

    def _step(self, call: Call) -> bool:
        """One call; False for one that does nothing to our files."""
        match call.name:
            case "open" | "openat" | "openat2" | "creat":
                return self._open(call)
            case "lseek":
                return self._seek(call)
            case "write" | "writev" | "pwrite64" | "pwritev" | "pwritev2":
                return self._write(call)
            case "ftruncate":
                return self._truncate(call)
            case "fsync" | "fdatasync":
                found = self._descriptor(call)
                if found is None:
                    return False
                self.files.sync(found[1], began=call.began)
                return True
            case "mkdir" | "mkdirat":
                for path in self._named(call):
                    self.files.make_directory(path, ended=call.ended)
                    return True
                return False
            case "unlink" | "unlinkat" | "rmdir":
                for path in self._named(call):
                    self.files.remove(path, ended=call.ended)
                    return True
                return False
            case "rename" | "renameat" | "renameat2":
                return self._rename(call)
            case "mmap":
                found = self._descriptor(call)
                if found is None or "PROT_WRITE" not in call.text or "MAP_SHARED" not in call.text:
                    return False
                assert found[1].name.endswith("-shm"), f"a mapping goes past the trace: {call}"
                return False
            case "sendto" | "sendmsg":
                return False
            case "io_uring_setup":
                assert "IORING_SETUP_SQPOLL" not in call.text, (
                    "calls through a ring go past the trace"
                )
                return False
            case _:
                concerned = self._descriptor(call) is not None or list(self._named(call))
                assert not concerned, f"the model does not have this call: {call}"
                return False

    def _open(self, call: Call) -> bool:
        flags = call.text.rpartition('"')[2]
        paths = list(self._named(call))
        result = _result(call)
        if not paths or "O_TMPFILE" in flags or "O_DIRECTORY" in flags or result is None:
            return False  # what has no name is gone with its process
        (path,) = paths
        self._positions[result, path] = 0
        changed = False
        if "O_CREAT" in flags:
            changed = True
            self.files.create(path, ended=call.ended)
        if "O_TRUNC" in flags:
            changed = True
            self.files.resize(path, 0, ended=call.ended)
        if "O_APPEND" in flags:
            raise AssertionError(f"the model does not have appending descriptors: {call}")
        return changed

    def _seek(self, call: Call) -> bool:
        # Nothing reads and writes through one descriptor, so that only these move its position.
        found, result = self._descriptor(call), _result(call)
        if found is not None and result is not None:
            self._positions[found] = result
        return False

    def _write(self, call: Call) -> bool:
        found = self._descriptor(call)
        if found is None:
            return False
        data = _data(call)
        if call.name.startswith("p"):
            offset = int(_NUMBER.findall(call.text.rpartition('"')[2])[1])
        else:
            offset = self._positions[found]
            self._positions[found] += len(data)
        self.files.write(found[1], offset, data, ended=call.ended)
        return True

    def _truncate(self, call: Call) -> bool:
        found = self._descriptor(call)
        if found is None:
            return False
        size = _NUMBER.search(call.text)
        assert size is not None, call
        self.files.resize(found[1], int(size[1]), ended=call.ended)
        return True

    def _rename(self, call: Call) -> bool:
        paths = list(self._named(call))
        if not paths:
            return False
        source, target = paths
        self.files.rename(source, target, ended=call.ended)
        for (number, path), position in list(self._positions.items()):
            if path == source:
                self._positions[number, target] = position
                del self._positions[number, path]
        return True

    # -- what a call names -----------------------------------------------------------------

    def _descriptor(self, call: Call) -> tuple[int, PurePosixPath] | None:
        """The first descriptor of a call, when it is a file of ours that still has a name."""
        found = _DESCRIPTOR.search(call.text)
        if found is None or found[1] is None or found[3]:
            return None
        path = self._below(_bytes(found[2]).decode(errors="surrogateescape"))
        return None if path is None else (int(found[1]), path)

    def _named(self, call: Call) -> Iterator[PurePosixPath]:
        """The paths of ours among a call's arguments, each from its directory's descriptor."""
        directories = [_bytes(one[2]).decode() for one in _DESCRIPTOR.finditer(call.text)]
        for number, name in enumerate(_STRING.findall(call.text)):
            path = _bytes(name).decode(errors="surrogateescape")
            if not path.startswith("/"):
                assert directories, f"a relative path without its directory: {call}"
                path = os.path.join(directories[min(number, len(directories) - 1)], path)  # noqa: PTH118  # of the trace
            below = self._below(path)
            if below is not None:
                yield below

    def _below(self, path: str) -> PurePosixPath | None:
        path = os.path.normpath(path)
        if not f"{path}/".startswith(f"{self._root}/"):
            return None
        below = PurePosixPath(path[len(self._root) + 1 :])
        return None if below.parts[:1] and below.parts[0] in self._ignored else below


def _end(calls: Sequence[Call]) -> int:
    return 1 + max((call.ended for call in calls), default=-1)


def _in_order(calls: Sequence[Call]) -> list[tuple[int, Call]]:
    """Changes when they began, syncs when they had ended."""
    return sorted(
        (
            (call.ended if call.name in ("fsync", "fdatasync") else call.began, call)
            for call in calls
        ),
        key=lambda step: step[0],
    )


def _sent(calls: Sequence[Call]) -> Iterator[Sent]:
    for call in calls:
        if call.name not in _TOLD:
            continue
        found = _DESCRIPTOR.search(call.text)
        if found is not None and (name := _bytes(found[2]).decode()).startswith("socket:"):
            yield Sent(name, _data(call), call.began)


def _data(call: Call) -> bytes:
    """What a call wrote: all of its buffers, as far as the kernel took them."""
    data = b"".join(_bytes(one) for one in _STRING.findall(call.text))
    result = _result(call)
    return data if result is None else data[:result]


def _result(call: Call) -> int | None:
    """None for a call that was not seen to return."""
    found = _RESULT.search(call.text)
    return None if found is None else int(found[1])


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))
