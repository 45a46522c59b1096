"""Whose a data directory is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from batchline.cli import data_directory
from batchline.cli.data_directory import DataDirectory
from batchline.domain.errors import ConfigError


def test_a_lock_that_a_killed_server_left_with_a_child_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = DataDirectory.take(tmp_path)
    monkeypatch.setattr("time.sleep", lambda _: os.close(left.lock_fd))
    DataDirectory.take(tmp_path).release()


def test_a_lock_that_stays_is_somebodys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_directory, "LEFT_S", 0.0)
    holder = DataDirectory.take(tmp_path)
    with pytest.raises(ConfigError, match="another server is using it"):
        DataDirectory.take(tmp_path)
    holder.release()


def test_a_directory_that_is_made_is_for_its_user_only_and_one_that_was_there_is_kept(
    tmp_path: Path,
) -> None:
    made, there = tmp_path / "some" / "made", tmp_path / "there"
    there.mkdir(mode=0o755)
    for root in (made, there):
        DataDirectory.take(root).release()
    assert made.stat().st_mode & 0o777 == 0o700
    assert there.stat().st_mode & 0o777 == 0o755
