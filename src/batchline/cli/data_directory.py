"""The data directory: one server at a time, and where it can be found."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from batchline.cli.outcome import CommandFailed
from batchline.cli.whole_file import make_folder, whole_file
from batchline.domain.errors import ConfigError
from batchline.store.schema import refuse_newer

# What everything in the directory that is no row looks like: folders and names, plans, segments.
# Whoever changes one of them so that an older server would misread it raises this (decision 0017).
FORMAT: Final = 2

FREE_S: Final = 10.0  # a server that starts or stops holds the lock without answering
# A server that was killed while it started a child has left a copy of its lock with that child,
# until it executes its program.
LEFT_S: Final = 2.0
_LOOK_S: Final = 0.05

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class DataDirectory:
    """Paths inside one data directory, and its lock while this value's file is open."""

    root: Path
    lock_fd: int

    @classmethod
    def take(cls, root: Path) -> DataDirectory:
        """Create the directory if need be and lock it, as `take_if_free` does; waits for a lock
        that a killed server may have left behind, `LEFT_S` at most.

        Raises:
            ConfigError: another server uses the directory, or it cannot be used.
        """
        until = time.monotonic() + LEFT_S
        while (directory := cls.take_if_free(root)) is None:
            if time.monotonic() > until:
                raise ConfigError(f"data directory {root}: another server is using it")
            time.sleep(_LOOK_S)
        return directory

    @classmethod
    def take_if_free(cls, root: Path) -> DataDirectory | None:
        """Create the directory if need be and lock it; None when somebody else holds the lock.

        The lock is the kernel's: it ends with this process, however that ends, and children keep it
        no longer than until they execute their program (the descriptor is close-on-exec).

        Raises:
            ConfigError: the directory cannot be used, or a newer Batchline wrote it: then nothing
                in it is changed.
        """
        try:
            make_folder(root.absolute(), mode=0o700)  # prompts, answers and keys are in it
            fd = os.open(root / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise ConfigError(f"data directory {root}: {os.strerror(exc.errno or 0)}") from exc
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            os.close(fd)
            if exc.errno in (errno.EWOULDBLOCK, errno.EACCES):
                return None
            raise ConfigError(f"data directory {root}: it cannot be locked") from exc
        directory = cls(root, fd)
        try:
            directory._check_versions()
            directory.children.mkdir(exist_ok=True)
            directory.note_stopped()
        except BaseException:
            os.close(fd)
            raise
        return directory

    def _check_versions(self) -> None:
        """Refuse what a newer Batchline wrote; note the format where none is noted yet."""
        noted = format_of(self.root)
        refuse_newer(self.database)
        if noted != FORMAT:
            # A full disk is no reason not to start: the database's schema was raised with it, and
            # keeps an older server away too.
            with suppress(CommandFailed), whole_file(self.format) as file:
                file.write(b"%d\n" % FORMAT)

    @property
    def format(self) -> Path:
        """The number of the directory's format; the first directories have no note of it."""
        return self.root / "format"

    @property
    def database(self) -> Path:
        return self.root / "batchline.sqlite3"

    @property
    def blobs(self) -> Path:
        return self.root / "blobs"

    @property
    def children(self) -> Path:
        return self.root / "children"

    @property
    def admin_socket(self) -> Path:
        return admin_socket(self.root)

    @property
    def validating(self) -> Path:
        """What is being validated, for a server that comes after a death (`service/tries.py`)."""
        return self.root / "validating.json"

    @property
    def drained(self) -> Path:
        """Which backends are drained for maintenance (`service/drains.py`)."""
        return self.root / "drained.json"

    @property
    def note(self) -> Path:
        """`server.json`: {"pid", "host", "port"} of the server that listens, while it does."""
        return self.root / "server.json"

    def note_listening(self, host: str, port: int) -> None:
        partial = self.root / ".server.json"
        partial.write_text(json.dumps({"pid": os.getpid(), "host": host, "port": port}))
        partial.replace(self.note)

    def note_stopped(self) -> None:
        self.note.unlink(missing_ok=True)

    def release(self) -> None:
        self.note_stopped()
        os.close(self.lock_fd)


def existing(root: Path) -> Path:
    """`root`, unless nothing is there: a misspelt directory is not made.

    Raises:
        ConfigError: nothing is there.
    """
    if not root.is_dir():
        raise ConfigError(f"data directory {root}: there is none")
    return root


def reached_or_taken(root: Path, reach: Callable[[], T | None]) -> T | DataDirectory | None:
    """What `reach` gives of the server on `root`; the directory, locked, where there is none.

    None when a server is starting or stopping there for longer than that should take.
    """
    until = time.monotonic() + FREE_S
    while True:
        found = reach()
        if found is not None:
            return found
        directory = DataDirectory.take_if_free(root)
        if directory is not None or time.monotonic() > until:
            return directory
        time.sleep(_LOOK_S)  # neither the lock nor the socket tells when it will be there


def format_of(root: Path) -> int | None:
    """The format of the directory `root`; None where none is noted.

    Raises:
        ConfigError: it is a newer one than ours, or the note is damaged.
    """
    path = root / "format"
    try:
        noted = int(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as exc:
        raise ConfigError(f"data directory {root}: {path} cannot be read, or is damaged") from exc
    if noted > FORMAT:
        raise ConfigError(
            f"data directory {root} was written by a newer Batchline (format {noted}, this one"
            f" knows up to {FORMAT}): upgrade, or restore a backup of before; nothing was changed"
        )
    return noted


def admin_socket(root: Path) -> Path:
    """Where the server on the directory `root` listens for commands, while there is one."""
    return root / "admin.sock"
