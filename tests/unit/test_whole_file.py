"""Names that last: which folders are synced when one is made."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchline.cli import whole_file
from batchline.cli.whole_file import make_folder


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that were synced, in order."""
    folders: list[Path] = []
    monkeypatch.setattr(whole_file, "sync_folder", folders.append)
    return folders


def test_each_folder_that_is_made_is_named_durably(tmp_path: Path, synced: list[Path]) -> None:
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    assert synced == [tmp_path.parent, tmp_path, tmp_path / "a"]


def test_one_that_is_there_may_have_been_made_by_somebody_who_was_killed(
    tmp_path: Path, synced: list[Path]
) -> None:
    make_folder(tmp_path)
    assert synced == [tmp_path.parent]


def test_a_parent_that_cannot_be_synced_does_not_matter_when_nothing_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_: Path) -> None:
        raise PermissionError

    monkeypatch.setattr(whole_file, "sync_folder", refused)
    make_folder(tmp_path)
    with pytest.raises(PermissionError):
        make_folder(tmp_path / "new")
