"""Input files as children read them: whole lines at their places, and no more memory than that."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from batchline.domain.errors import BlobUnreadable
from batchline.service.inputs import BLOCK_BYTES, InputFile

BOM = b"\xef\xbb\xbf"
SOME = b"0123456789"


def open_files() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "input"
    path.write_bytes(SOME)
    return path


@pytest.fixture
def source(path: Path) -> Iterator[InputFile]:
    with InputFile(str(path), len(SOME)) as source:
        yield source


def lines_of(source: InputFile, max_line_bytes: int) -> list[tuple[int, bytes | None]]:
    """(offset, line) of every line; None for one that is too long."""
    found: list[tuple[int, bytes | None]] = []
    for offset, lines in source.blocks(max_line_bytes):
        if lines is None:
            found.append((offset, None))
            continue
        for line in lines:
            found.append((offset, line))
            offset += len(line) + 1
    return found


def expected(content: bytes, max_line_bytes: int) -> list[tuple[int, bytes | None]]:
    offset = len(BOM) if content.startswith(BOM) else 0
    lines = content[offset:].split(b"\n")
    if not lines[-1]:
        lines.pop()
    found: list[tuple[int, bytes | None]] = []
    for line in lines:
        found.append((offset, line if len(line) <= max_line_bytes else None))
        offset += len(line) + 1
    return found


@given(
    st.lists(st.sampled_from([b"\n", b"\r", b"a", b"bb", b"c" * 9, BOM]), max_size=40).map(
        b"".join
    ),
    st.integers(1, 12),
)
@example(BOM, 1)
@example(BOM[:2], 1)
@example(BOM + b"\n", 3)
@example(b"aaa\nbbb", 3)
@example(b"aaaa\nbbbb", 3)
def test_every_line_comes_once_with_its_place(content: bytes, max_line_bytes: int) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        with InputFile(file.name, len(content)) as source:
            assert lines_of(source, max_line_bytes) == expected(content, max_line_bytes)


@pytest.mark.parametrize("length", [BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 2 * BLOCK_BYTES])
def test_lines_that_end_beside_the_end_of_a_block_are_whole(path: Path, length: int) -> None:
    content = b"x" * length + b"\n" + b"y" * length + b"\nz"
    path.write_bytes(content)
    with InputFile(str(path), len(content)) as source:
        assert lines_of(source, 2**62) == expected(content, 2**62)


@pytest.mark.parametrize(("offset", "length"), [(0, 10), (3, 4), (9, 1), (10, 0), (0, 0)])
def test_bytes_are_read_by_their_place(source: InputFile, offset: int, length: int) -> None:
    assert source.at(offset, length) == SOME[offset : offset + length]


@pytest.mark.parametrize(("offset", "length"), [(0, 11), (9, 2), (10, 1), (100, 1)])
def test_bytes_past_the_end_are_not_there(source: InputFile, offset: int, length: int) -> None:
    with pytest.raises(BlobUnreadable, match="the input ends before byte"):
        source.at(offset, length)


@pytest.mark.parametrize("length", [9, 11])
def test_a_file_of_another_length_is_not_read_and_not_left_open(path: Path, length: int) -> None:
    before = open_files()
    with pytest.raises(BlobUnreadable, match=f"not the promised {length} bytes long"):
        InputFile(str(path), length)
    assert open_files() == before


def test_a_file_that_is_gone_is_unreadable(tmp_path: Path) -> None:
    with pytest.raises(BlobUnreadable, match="cannot be opened"):
        InputFile(str(tmp_path / "gone"), 10)


def test_a_file_that_shrinks_while_it_is_read_is_unreadable(path: Path, source: InputFile) -> None:
    os.truncate(path, 4)
    with pytest.raises(BlobUnreadable, match="the input ends at byte 4"):
        lines_of(source, 100)


def test_a_place_that_cannot_be_read_is_unreadable(tmp_path: Path) -> None:
    size = tmp_path.stat().st_size
    with InputFile(str(tmp_path), size) as source, pytest.raises(BlobUnreadable, match="be read"):
        source.at(0, 1)
