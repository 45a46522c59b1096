"""Scratch space of child processes: unnamed files, whole writes, the disk's troubles named."""

from __future__ import annotations

import errno
import os
import tempfile
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from batchline.domain.errors import StorageFull, StoreUnavailable

# What a disk says that fails, or that was made read-only because it failed; it may get well again.
_SICK: Final = frozenset({errno.EIO, errno.EROFS, errno.ENXIO, errno.ENODEV})


@contextmanager
def disk_trouble_named() -> Iterator[None]:
    """Turn "no space left" and "quota exceeded" into StorageFull, a sick disk into
    StoreUnavailable."""
    try:
        yield
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(f"no space for scratch files: {exc.strerror}") from exc
        if exc.errno in _SICK:
            raise StoreUnavailable(f"no scratch file can be written: {exc.strerror}") from exc
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
