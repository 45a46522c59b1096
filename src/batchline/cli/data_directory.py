"""The data directory: one server at a time, and where it can be found."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from dataclasses import dataclass
from pathlib import Path

from batchline.domain.errors import ConfigError


@dataclass(frozen=True, slots=True)
class DataDirectory:
    """Paths inside one data directory, and its lock while this value's file is open."""

    root: Path
    lock_fd: int

    @classmethod
    def take(cls, root: Path) -> DataDirectory:
        """Create the directory if need be and lock it, as `take_if_free` does.

        Raises:
            ConfigError: another server uses the directory, or it cannot be used.
        """
        directory = cls.take_if_free(root)
        if directory is None:
            raise ConfigError(f"data directory {root}: another server is using it")
        return directory

    @classmethod
    def take_if_free(cls, root: Path) -> DataDirectory | None:
        """Create the directory if need be and lock it; None when somebody else holds the lock.

        The lock is the kernel's: it ends with this process, however that ends, and children do not
        inherit it (the descriptor is close-on-exec).

        Raises:
            ConfigError: the directory cannot be used.
        """
        try:
            root.mkdir(parents=True, exist_ok=True)
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
        directory.children.mkdir(exist_ok=True)
        directory.note_stopped()
        return directory

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


def admin_socket(root: Path) -> Path:
    """Where the server on the directory `root` listens for commands, while there is one."""
    return root / "admin.sock"
