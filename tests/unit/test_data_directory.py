"""Whose a data directory is, at the moment at which one server follows another."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

import pytest

from batchline.cli import data_directory
from batchline.cli.data_directory import DataDirectory
from batchline.domain.errors import ConfigError


def test_a_lock_that_a_dying_server_leaves_for_a_moment_is_waited_for(tmp_path: Path) -> None:
    """A child that it had begun to start holds it until it has become the other program."""
    fd = os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)
    fcntl.flock(fd, fcntl.LOCK_EX)
    ending = threading.Timer(0.3, os.close, [fd])
    ending.start()
    DataDirectory.take(tmp_path).release()
    ending.join()


def test_a_lock_that_stays_is_another_servers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_directory, "HANDED_OVER_S", 0.2)
    taken = DataDirectory.take(tmp_path)
    with pytest.raises(ConfigError, match="another server is using it"):
        DataDirectory.take(tmp_path)
    taken.release()
    DataDirectory.take(tmp_path).release()
