"""Processes from outside: CPU seconds, anonymous memory, and the cores they run on (Linux)."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from tests.support.server import ServerProcess

SAMPLE_S: Final = 0.05
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_PSS_ANON: Final = re.compile(r"^Pss_Anon:\s+(\d+) kB", re.MULTILINE)
_RSS_ANON: Final = re.compile(r"^RssAnon:\s+(\d+) kB", re.MULTILINE)


# -- cores -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cores:
    """Who runs where. What is measured (the worker, the bare loop) has a core to itself."""

    measured: frozenset[int]
    backend: frozenset[int]
    others: frozenset[int]  # the control process, job children, the benchmark itself

    @classmethod
    def of_this_machine(cls) -> Self:
        cores = sorted(os.sched_getaffinity(0))
        first, rest = frozenset(cores[:1]), frozenset(cores[1:])
        if not rest:
            return cls(first, first, first)
        if len(rest) == 1:
            return cls(first, rest, rest)
        return cls(first, frozenset(cores[1:2]), frozenset(cores[2:]))

    def __str__(self) -> str:
        def spell(cores: frozenset[int]) -> str:
            return ",".join(map(str, sorted(cores)))

        return (
            f"worker and bare loop on core {spell(self.measured)}, backend on "
            f"{spell(self.backend)}, everything else on {spell(self.others)}"
        )


def pin(pid: int, cores: Collection[int]) -> None:
    """Put every thread of a process on `cores`; threads that they start later stay there too."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with suppress(ProcessLookupError):  # it ended while we looked
            os.sched_setaffinity(int(thread.name), cores)


# -- what a process used -----------------------------------------------------------------------


def cpu_s(pid: int) -> float:
    """User and system seconds of a process, in steps of 10 ms; 0 when it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0.0
    # The command name may hold spaces and brackets; the fields after it are fixed (proc(5)).
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def anonymous_bytes(pid: int) -> int:
    """Anonymous memory that is the process's own: what page cache cannot explain.

    The proportional figure where the kernel gives it; 0 when the process is gone.
    """
    for name, pattern in (("smaps_rollup", _PSS_ANON), ("status", _RSS_ANON)):
        with suppress(OSError):
            found = pattern.search(Path(f"/proc/{pid}/{name}").read_text(encoding="ascii"))
            if found is not None:
                return int(found[1]) * 1024
    return 0


# -- the processes of a server -----------------------------------------------------------------


def by_role(server: ServerProcess) -> dict[str, list[int]]:
    """Process ids of a running server: `control`, `worker` and `job`."""
    workers = server.workers()
    return {
        "control": [server.pid],
        "worker": workers,
        "job": [pid for pid in server.children() if pid not in workers],
    }


class CpuMeter:
    """CPU seconds of a server's processes over the length of a block, by role."""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        self.spent: Mapping[str, float] = {}

    def __enter__(self) -> Self:
        self._roles = by_role(self._server)
        self._before = {pid: cpu_s(pid) for pids in self._roles.values() for pid in pids}
        return self

    def __exit__(self, *raised: object) -> None:
        after = by_role(self._server)
        if raised[0] is None and after["worker"] != self._roles["worker"]:
            raise RuntimeError(f"a worker was replaced: {self._roles} became {after}")
        self.spent = {
            role: sum(cpu_s(pid) - self._before.get(pid, 0.0) for pid in pids)
            for role, pids in after.items()
        }


@dataclass(slots=True)
class MemoryMeter:
    """Anonymous memory by role at the ends of a block, and the peaks of looks every 50 ms.

    A role's figure is the sum over its processes at one look.
    """

    server: ServerProcess
    at_start: dict[str, int] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)
    at_end: dict[str, int] = field(default_factory=dict)
    looks: int = 0
    _over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.at_start = self._look()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        self.at_end = self._look()

    def _watch(self) -> None:
        while not self._over.wait(SAMPLE_S):
            self._look()

    def _look(self) -> dict[str, int]:
        self.looks += 1
        now = {r: sum(map(anonymous_bytes, pids)) for r, pids in by_role(self.server).items()}
        for role, seen in now.items():
            self.peaks[role] = max(self.peaks.get(role, 0), seen)
        return now
