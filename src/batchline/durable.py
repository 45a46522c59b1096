"""What was written is on the platter, and what was renamed stays so: after power loss too."""

from __future__ import annotations

import os
import sys
from pathlib import Path

if sys.platform == "darwin":
    import fcntl


def sync_data(fd: int) -> None:
    """Make the bytes of an open file last, and its size."""
    if sys.platform == "darwin":  # it has no fdatasync, and its fsync stops at the drive's cache
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
    else:
        os.fdatasync(fd)


def sync_file(fd: int) -> None:
    """As `sync_data`, with all that is known of the file."""
    os.fsync(fd)
    if sys.platform == "darwin":
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)


def sync_folder(folder: Path) -> None:
    """Make what was created, renamed or removed in `folder` last."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
