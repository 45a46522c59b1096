"""Which backends are drained: noted before it is done, and done again after a start."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from batchline.domain.errors import ConfigError, NotFound, StorageFull
from batchline.service.drains import Drains


@dataclass(slots=True)
class Server:
    """One start on the directory; `done` is what the dispatch was told."""

    note: Path
    done: list[tuple[str, bool]] = field(default_factory=list)
    drains: Drains = field(init=False)

    def __post_init__(self) -> None:
        self.drains = Drains(self.note, apply=self._apply)
        self.drains.restore(["a", "b"])

    def _apply(self, name: str, *, drained: bool) -> None:
        if drained:
            assert name in self.note.read_text(), "done before it was noted"
        self.done.append((name, drained))


async def test_what_was_drained_is_drained_after_a_start(tmp_path: Path) -> None:
    note = tmp_path / "drained.json"
    first = Server(note)
    await first.drains.set("b", drained=True)
    await first.drains.set("a", drained=True)
    await first.drains.set("b", drained=False)
    assert first.done == [("b", True), ("a", True), ("b", False)]
    assert Server(note).done == [("a", True)]
    await Server(note).drains.set("a", drained=False)
    assert Server(note).done == []


async def test_to_drain_twice_is_as_good_as_once(tmp_path: Path) -> None:
    note = tmp_path / "drained.json"
    server = Server(note)
    for _ in range(2):
        await server.drains.set("a", drained=True)
    await server.drains.set("a", drained=False)
    assert Server(note).done == []


async def test_a_backend_that_is_not_there_can_only_be_taken_back(
    tmp_path: Path,
) -> None:
    note = tmp_path / "drained.json"
    server = Server(note)
    with pytest.raises(NotFound, match="no backend 'c'; there are: a, b"):
        await server.drains.set("c", drained=True)
    assert not note.exists()
    note.write_text('["gone"]')
    again = Server(note)
    with pytest.raises(NotFound):
        await again.drains.set("gone", drained=True)
    await again.drains.set("gone", drained=False)
    assert (again.done, note.read_text()) == ([], "[]")


async def test_what_cannot_be_noted_is_not_done(tmp_path: Path) -> None:
    server = Server(tmp_path / "drained.json")
    (tmp_path / ".drained.json").mkdir()
    with pytest.raises(StorageFull):
        await server.drains.set("a", drained=True)
    assert server.done == []


@pytest.mark.parametrize("content", ["", "{}", "[1]", '["a"'])
def test_a_damaged_file_ends_the_start(tmp_path: Path, content: str) -> None:
    """To send to a machine that somebody works on is worse, and nobody knows which it was."""
    note = tmp_path / "drained.json"
    note.write_text(content)
    with pytest.raises(ConfigError, match=r"drained\.json"):
        Server(note)
