"""Committed results damaged on disk, as a bad sector or a careless hand would."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import msgspec


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Some results of a batch as they are stored; `custom_ids` are their lines."""

    path: Path
    start: int
    stop: int
    custom_ids: tuple[str, ...]


def committed(data: Path) -> list[Range]:
    """The committed ranges of every batch that has not ended, in order."""
    return _ranges(data, "SELECT blob_name, start, stop FROM segment_commit ORDER BY sequence")


def in_files(data: Path) -> list[Range]:
    """The ranges of all output and error files, in order."""
    return _ranges(
        data,
        "SELECT r.blob_name, r.start, r.stop FROM file_range r JOIN file f"
        " ON f.sequence = r.file_sequence WHERE f.purpose = 'batch_output'"
        " ORDER BY f.sequence, r.position",
    )


def _ranges(data: Path, query: str) -> list[Range]:
    with closing(
        sqlite3.connect(f"file:{data / 'batchline.sqlite3'}?mode=ro", uri=True)
    ) as database:
        rows = database.execute(query).fetchall()
    found = []
    for name, start, stop in rows:
        path = data / "blobs" / name.partition("-")[0] / name
        lines = path.read_bytes()[start:stop].splitlines()
        ids = tuple(msgspec.json.decode(line)["custom_id"] for line in lines)
        found.append(Range(path=path, start=start, stop=stop, custom_ids=ids))
    return found


def flip_a_bit(one: Range) -> None:
    """One bit in the middle: a digit or letter becomes another, and JSON stays JSON, mostly."""
    with one.path.open("r+b") as file:
        middle = (one.start + one.stop) // 2
        file.seek(middle)
        (byte,) = file.read(1)
        file.seek(middle)
        file.write(bytes([byte ^ 1]))


def cut_off(one: Range) -> None:
    """The file ends in the middle of the range."""
    os.truncate(one.path, (one.start + one.stop) // 2)


def remove(one: Range) -> None:
    one.path.unlink()


WAYS: dict[str, Callable[[Range], None]] = {
    "changed": flip_a_bit,
    "short": cut_off,
    "gone": remove,
}
