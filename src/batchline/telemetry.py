"""One call per event gives one log line; and the probes, the named points at which a test may act.

Log events carry ids, enums, counts and sizes only: their arguments are keyword-only scalars, so no
prompt, body or key can reach a log by accident.

A probe is one dictionary look-up when no test armed it. Armed through the environment (read by
`config`, handed to `arm`), it ends a process at an exact point of the program:

    segment.synced=kill            SIGKILL this process the first time
    commit.before=kill@3           ... the third time
    worker.answered=kill_parent    SIGKILL the parent (the server, seen from a worker)
    worker.answered=kill_both      the parent, then this process
    commit.before=kill_children    SIGKILL the children (the workers, seen from the server)
    commit.before=kill_family      the children, then this process
    segment.written=enospc@2       the caller sees OSError(ENOSPC) the second time
    blob.synced=stop               SIGSTOP this process
    gate.closed=busy               half a second of nothing but computing
    gate.asking=drop               the message that would follow is lost
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Final, Protocol, TextIO, TypeAlias, cast

from batchline.domain.errors import ConfigError

Field: TypeAlias = str | int | float | bool | None

LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}

_level = "info"


def configure_logging(*, level: str = "info") -> None:
    """Readable lines on a terminal, JSON lines otherwise; always on stderr."""
    global _level  # one process, one log
    _level = level
    _log.cache_clear()


class _Log(Protocol):
    """Writes one line."""

    def __call__(self, level: str, name: str, fields: Mapping[str, Field]) -> None: ...


@cache
def _log() -> _Log:
    """How lines are written, settled when there is something to say."""
    return _for_a_terminal() if sys.stderr.isatty() else _json_line


def _json_line(level: str, name: str, fields: Mapping[str, Field]) -> None:
    # By hand: structlog brings rich along, and 100 ms of imports at its first trouble are 100 ms in
    # which a worker sends nothing.
    now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    line = json.dumps({**fields, "event": name, "level": level, "timestamp": now}, default=repr)
    stderr = _Stderr()
    stderr.write(f"{line}\n")
    stderr.flush()


def _for_a_terminal() -> _Log:
    import structlog

    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.dev.ConsoleRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(file=cast("TextIO", _Stderr())),
    )
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger("batchline")

    def say(level: str, name: str, fields: Mapping[str, Field]) -> None:
        logger.log(LEVELS[level], name, **fields)

    return say


class _Stderr:
    """Standard error, for as long as there is one: a line that cannot be written is dropped.

    Its terminal may be closed and its disk full, and neither may keep a server from committing.
    """

    def write(self, text: str) -> None:
        with suppress(OSError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            sys.stderr.flush()


def event(name: str, **fields: Field) -> None:
    """Something worth knowing happened; `name` is `<thing>_<past participle>`."""
    _say("info", name, fields)


def trouble(name: str, **fields: Field) -> None:
    """Something is wrong and Batchline goes on; a person may want to look."""
    _say("warning", name, fields)


def _say(level: str, name: str, fields: Mapping[str, Field]) -> None:
    if LEVELS[level] >= LEVELS[_level]:
        _log()(level, name, fields)


# -- probes ------------------------------------------------------------------------------------

ACTIONS: Final = frozenset(
    {
        *("kill", "kill_parent", "kill_both", "kill_children", "kill_family"),
        *("stop", "enospc", "eio", "exit", "drop", "busy"),
    }
)


_BUSY_S: Final = 0.5


@dataclass(slots=True)
class _Armed:
    action: str
    countdown: int  # acts when it reaches zero; further hits do nothing


armed: dict[str, _Armed] = {}  # empty but in tests; for who cannot spare a call to find that out
armed_spec: str = ""  # handed on to children, which arm themselves with it


def arm(spec: str) -> None:
    """Arm probes from `name=action[@hit]` items separated by commas; an empty spec disarms all.

    Raises:
        ConfigError: the spec does not parse.
    """
    global armed_spec  # one process, one set of probes, armed once at start
    armed.clear()
    armed_spec = spec
    for item in filter(None, (part.strip() for part in spec.split(","))):
        name, _, rest = item.partition("=")
        action, _, hit = rest.partition("@")
        if action not in ACTIONS or (hit and not hit.isdigit()):
            raise ConfigError(f"probe {item!r}: expected NAME=ACTION[@HIT], ACTION of {ACTIONS}")
        armed[name] = _Armed(action, int(hit or 1))


def probe(name: str) -> bool:
    """A named point of the program. Does nothing unless a test armed it.

    Returns:
        True where what follows is to be left out, at the points that look at it.
    """
    if not armed:
        return False
    return _reached(name)


def _reached(name: str) -> bool:
    one = armed.get(name)
    if one is None:
        return False
    one.countdown -= 1
    if one.countdown != 0:
        return False
    match one.action:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "kill_parent":
            os.kill(os.getppid(), signal.SIGKILL)
        case "kill_both":
            os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
        case "kill_children":
            _kill_children()
        case "kill_family":
            _kill_children()
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "drop":
            return True
        case "busy":
            until = time.monotonic() + _BUSY_S
            while time.monotonic() < until:
                pass
        case "enospc":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), f"probe {name}")
        case "eio":
            raise OSError(errno.EIO, os.strerror(errno.EIO), f"probe {name}")
        case _:
            os._exit(3)
    return False


def _kill_children() -> None:
    """SIGKILL every child of this process, as the process table (Linux's) has them."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # ended meanwhile
            # The command name may hold spaces and brackets; what follows it is fixed (proc(5)).
            parent = int(stat.read_text(errors="replace").rpartition(")")[2].split()[1])
            if parent == os.getpid():
                os.kill(int(stat.parent.name), signal.SIGKILL)
