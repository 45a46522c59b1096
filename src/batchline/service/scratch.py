"""Scratch space of child processes: unnamed files, whole writes, a full disk called by its name."""

from __future__ import annotations

import errno
import os
import tempfile
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from batchline.domain.errors import StorageFull


@contextmanager
def disk_full_named() -> Iterator[None]:
    """Turn "no space left" and "quota exceeded" into StorageFull."""
    try:
        yield
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(f"no space for scratch files: {exc.strerror}") from exc
        raise


def unnamed_file(directory: Path) -> int:
    """The descriptor of a file without a name: gone with this process, however that ends."""
    # TemporaryFile leaves no name behind even when this process is killed between two calls,
    # where the system can do that (O_TMPFILE); the descriptor is ours, so that it is not buffered.
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        return os.dup(file.fileno())


def write_all(fd: int, data: bytes | array[int]) -> None:
    """Write all of `data` at the descriptor's position; a full disk may take a part and then raise.

    Raises:
        OSError: the bytes are not all written.
    """
    view = memoryview(data).cast("B")
    while view:
        view = view[os.write(fd, view) :]
