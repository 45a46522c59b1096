"""Which part of a file a Range header asks for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchline.api.byte_range import part_wanted
from batchline.api.errors import RangeNotSatisfiable

TAG = '"file-1"'


def wanted(header: str, size: int = 100, **more: str) -> tuple[int, int] | None:
    headers = {"range": header, **{name.replace("_", "-"): text for name, text in more.items()}}
    return part_wanted(headers, size=size, tag=TAG)


@pytest.mark.parametrize(
    ("header", "part"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=0-99", (0, 100)),
        ("bytes=10-19", (10, 20)),
        ("bytes=10-", (10, 100)),
        ("bytes=99-", (99, 100)),
        ("bytes=90-1000", (90, 100)),
        ("bytes=-1", (99, 100)),
        ("bytes=-1000", (0, 100)),
        ("Bytes= 5-6 ", (5, 7)),
    ],
)
def test_one_range_of_bytes_is_a_part(header: str, part: tuple[int, int]) -> None:
    assert wanted(header) == part


@pytest.mark.parametrize(
    "header",
    [
        *("", "bytes", "bytes=", "bytes=-", "bytes=a-b", "bytes=1-0", "bytes=1", "bytes=--1"),
        *("lines=1-2", "bytes=0-1,5-6", "bytes=1-2x", "bytes=٣-٤", "bytes=" + "9" * 30 + "-"),
    ],
)
def test_anything_else_is_the_whole(header: str) -> None:
    assert wanted(header) is None
    assert part_wanted({}, size=100, tag=TAG) is None


@pytest.mark.parametrize(
    ("header", "size"),
    [("bytes=100-", 100), ("bytes=200-300", 100), ("bytes=-0", 100), ("bytes=0-", 0)],
)
def test_a_part_without_a_byte_is_refused(header: str, size: int) -> None:
    with pytest.raises(RangeNotSatisfiable) as caught:
        wanted(header, size)
    assert caught.value.size == size


def test_a_range_of_another_file_is_the_whole() -> None:
    assert wanted("bytes=1-2", if_range=TAG) == (1, 3)
    assert wanted("bytes=1-2", if_range='"file-2"') is None
    assert wanted("bytes=500-", if_range="Tue, 01 Jan 2030 00:00:00 GMT") is None


@given(st.text(), st.integers(0, 1_000))
def test_whatever_comes_a_part_is_inside_the_file(header: str, size: int) -> None:
    try:
        part = wanted(f"bytes={header}", size)
    except RangeNotSatisfiable:
        return
    assert part is None or 0 <= part[0] < part[1] <= size
