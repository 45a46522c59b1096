"""A real file system that a test can fill to its last byte."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

_MIB = 1024 * 1024


@contextmanager
def mounted_disk(mount_point: Path, *, mib: int) -> Iterator[Path]:
    """A tmpfs of `mib` MiB at `mount_point` for the length of the block.

    Whoever may not mount skips the test, but in CI it fails.
    """
    mount_point.mkdir()
    options = f"size={mib}m"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(mount_point)],  # noqa: S607  # where it is differs between systems
        capture_output=True,
        check=False,
    )
    if mounted.returncode != 0:
        why = "only root may mount the small file system that this test fills"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    try:
        yield mount_point
    finally:
        # Lazy: a killed process may hold a file open for some milliseconds more.
        subprocess.run(["umount", "--lazy", str(mount_point)], check=True)  # noqa: S607  # as above


def occupy(path: Path, *, mib: int) -> None:
    """A file at `path` that takes `mib` MiB of the disk."""
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, mib * _MIB)


def fill(path: Path) -> None:
    """A file at `path` that takes all that is left of the disk, to the last page."""
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


def used_bytes(directory: Path) -> int:
    """What is taken of the file system of `directory`."""
    stat = os.statvfs(directory)
    return (stat.f_blocks - stat.f_bfree) * stat.f_frsize
