"""The lines of a shard read ahead: always the file's bytes, and few system calls in its order."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchline.executor.read_ahead import ReadAhead

CONTENT = bytes(range(256)) * 1_000  # 256,000 bytes: four windows


@pytest.fixture(scope="module")
def fd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    path: Path = tmp_path_factory.mktemp("input") / "input"
    path.write_bytes(CONTENT)
    opened = os.open(path, os.O_RDONLY)
    yield opened
    os.close(opened)


@given(
    st.lists(
        st.tuples(
            st.integers(0, len(CONTENT) + 10),
            st.one_of(st.integers(0, 3_000), st.integers(0, 70_000)),
        ),
        max_size=20,
    )
)
def test_what_is_read_is_what_the_file_holds(fd: int, spans: list[tuple[int, int]]) -> None:
    ahead = ReadAhead(fd)
    for offset, length in spans:
        assert ahead.read(offset, length) == CONTENT[offset : offset + length]
    ahead.forget()
    for offset, length in spans:
        assert ahead.read(offset, length) == CONTENT[offset : offset + length]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of the reads that were made of the system."""
    made: list[int] = []
    real = os.pread

    def counted(fd: int, length: int, offset: int) -> bytes:
        made.append(length)
        return real(fd, length, offset)

    monkeypatch.setattr(os, "pread", counted)
    return made


def test_neighbours_cost_one_read(fd: int, reads: list[int]) -> None:
    ahead = ReadAhead(fd)
    for number in range(100):
        ahead.read(number * 600, 599)
    assert len(reads) == 1


def test_an_order_that_is_not_the_files_soon_reads_only_what_is_asked_for(
    fd: int, reads: list[int]
) -> None:
    ahead = ReadAhead(fd)
    for number in range(50):
        ahead.read(250_000 - number * 5_000, 500)
    assert reads.count(500) >= 40


def test_a_long_line_is_not_read_ahead(fd: int, reads: list[int]) -> None:
    ReadAhead(fd).read(0, 50_000)
    assert reads == [50_000]
