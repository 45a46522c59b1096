"""Puts the lines of a plan in the order of their prefixes: what begins alike lies side by side.

Done after the file has been read and only where that has shown that lines share prefixes
(`prefix_sample.py`): one more pass over the input, two sorts, one new plan. Nothing is held but a
block of the input and a run of a sort.

Within a model, from the outside in:
- *classes* of output limits, where long outputs go first;
- *families*: lines that share more with each other than nearly every line does. The family that
  saves the most tokens comes first, lines without a family come last, in the file's order;
- *groups* inside a family: up to GROUP_LINES neighbours that share most, with one `prefix_hash`.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Final, NamedTuple

from batchline.domain import plan
from batchline.domain.prefixes import (
    KEY_BYTES,
    Prompt,
    group_hash,
    key_of,
    neighbours,
    output_limit,
    prompt_of,
    shared_bytes,
    shared_levels,
)
from batchline.service.inputs import BLOCK_BYTES, InputFile
from batchline.service.plans import PlanWriter
from batchline.service.record_sort import RecordSort
from batchline.service.scratch import unnamed_file, write_all

# A prefix is computed once for so many lines at least; more lines of it may go elsewhere, so that
# many places are busy with a prefix that many lines have. At 64 that costs at most 1.6 % of it.
GROUP_LINES: Final = 64

_LINE: Final = struct.Struct(f">HB{KEY_BYTES}sQII")  # model, class, key, offset, length, number
_FAMILY: Final = struct.Struct(">HBQQQQ")  # model, class, unsaved, offset of a line, first, entries
_NO_KEY: Final = bytes(KEY_BYTES)
_MOST_SAVED: Final = 2**64 - 1
_WRITTEN_ENTRIES: Final = 4_096  # written at a time
_COPIED_BYTES: Final = 1024 * 1024


class _Line(NamedTuple):
    """One line on its way through the sort; the class is 0 where output limits do not matter."""

    model: int
    output_class: int
    key: bytes
    offset: int
    length: int
    number: int


def put_in_order(
    planned: PlanWriter,
    source: InputFile,
    scratch_dir: Path,
    *,
    endpoint: str,
    models: int,
    trunks: Mapping[int, bytes] | None,
    long_first: bool,
) -> None:
    """Reorder `planned`, whose entries are in file order and of `models` models, before its finish.

    `trunks` are those of `PrefixSample`; None: no line shares anything. `long_first`: lines whose
    output may be longer come first, by powers of two of their limit, those without a limit before
    all others.

    About 8 us for a line of 600 bytes (bench/prefix.py).

    Raises:
        OSError: the scratch files could not be written.
        BlobUnreadable: as `InputFile`.
    """
    with (
        closing(RecordSort(scratch_dir, _LINE.size)) as lines,
        closing(_Families(scratch_dir, trunks or {})) as families,
    ):
        counts = [0] * models
        prompt = None if trunks is None else prompt_of(endpoint)
        for line in _lines(planned, source, prompt, long_first=long_first):
            counts[line.model] += 1
            lines.add(_LINE.pack(*line))
        for record in lines.ascending():
            families.add(_Line._make(_LINE.unpack(record)))
        lines.close()
        planned.reorder(families.in_order(), counts)


def _lines(
    planned: PlanWriter, source: InputFile, prompt: Prompt | None, *, long_first: bool
) -> Iterator[_Line]:
    """Every line of the plan, in file order."""
    window, start = b"", 0
    for entries, models in planned.runs():
        for (offset, length, number, _), model in zip(
            plan.ENTRY.iter_unpack(entries), models, strict=True
        ):
            if offset + length > start + len(window):
                window = source.at(offset, max(length, min(BLOCK_BYTES, source.size - offset)))
                start = offset
            raw = window[offset - start : offset - start + length]
            key = _NO_KEY if prompt is None else key_of(prompt(raw))
            output_class = _class_of(output_limit(raw)) if long_first else 0
            yield _Line(model, output_class, key, offset, length, number)


def _class_of(limit: int | None) -> int:
    """Classes ascend where limits descend; a line without a limit may be the longest of all."""
    return 0 if limit is None else 255 - min(limit.bit_length(), 254)


class _Families:
    """Takes lines in the order of their keys, and gives packed entries in dispatch order."""

    def __init__(self, scratch_dir: Path, trunks: Mapping[int, bytes]) -> None:
        self._trunks = trunks
        self._fd = unnamed_file(scratch_dir)  # all entries, in the order of keys
        self._written = 0
        self._packed: list[bytes] = []
        self._sort = RecordSort(scratch_dir, _FAMILY.size)
        self._groups = _Groups()
        self._last: _Line | None = None  # the newest line of the family that is open
        self._first = self._saved = self._offset = 0  # of that family

    def add(self, line: _Line) -> None:
        last = self._last
        if last is not None and self._in_one_family(last, line):
            shared = shared_levels(last.key, line.key)
            self._saved += shared_bytes(shared)
            self._offset = min(self._offset, line.offset)
            self._write(self._groups.add(line, shared))
        else:
            self._end_family()
            self._first, self._saved, self._offset = self._entries, 0, line.offset
            self._groups.add(line, 0)
        self._last = line

    def _in_one_family(self, one: _Line, other: _Line) -> bool:
        if one[:2] != other[:2]:
            return False
        return neighbours(one.key, other.key, self._trunks.get(one.model, b""))

    @property
    def _entries(self) -> int:
        return self._written + len(self._packed)

    def _end_family(self) -> None:
        if self._last is None:
            return
        self._write(self._groups.end())
        if len(self._packed) >= _WRITTEN_ENTRIES:
            self._flush()
        self._sort.add(
            _FAMILY.pack(
                self._last.model,
                self._last.output_class,
                _MOST_SAVED - self._saved,
                self._offset,
                self._first,
                self._entries - self._first,
            )
        )

    def _write(self, packed: list[bytes]) -> None:
        self._packed += packed
        if len(self._packed) >= _WRITTEN_ENTRIES:
            self._flush()

    def _flush(self) -> None:
        write_all(self._fd, b"".join(self._packed))
        self._written += len(self._packed)
        self._packed.clear()

    def in_order(self) -> Iterator[bytes]:
        """The entries of all families; nothing may be added any more."""
        self._end_family()
        self._flush()
        pieces: list[bytes] = []
        for record in self._sort.ascending():
            *_, first, entries = _FAMILY.unpack(record)
            at, stop = first * plan.ENTRY_BYTES, (first + entries) * plan.ENTRY_BYTES
            while at < stop:
                piece = os.pread(self._fd, min(stop - at, _COPIED_BYTES), at)
                if not piece:
                    raise OSError("a scratch file ends before its end")
                at += len(piece)
                pieces.append(piece)
                if len(piece) == _COPIED_BYTES or len(pieces) == _WRITTEN_ENTRIES:
                    yield b"".join(pieces)
                    pieces.clear()
        yield b"".join(pieces)

    def close(self) -> None:
        self._sort.close()
        os.close(self._fd)


class _Groups:
    """Cuts the lines of one family into groups, as they come: at most GROUP_LINES are held.

    A group ends before a line that shares less than half of what the lines of the group share, or
    less than half of what it shares with the line after it, or when it is full.
    """

    def __init__(self) -> None:
        self._lines: list[_Line] = []
        self._levels = 0  # that all of them share; of one line, what it shared with the one before
        self._pending: tuple[_Line, int] | None = None  # the newest line, not in a group yet
        self._base: tuple[bytes, int] | None = None  # the prefix of the group before
        self._piece = 0

    def add(self, line: _Line, shared: int) -> list[bytes]:
        """Take the next line, which shares `shared` levels with the one before; entries that are
        done."""
        done: list[bytes] = []
        if self._pending is not None:
            done = self._place(*self._pending, following=shared)
        self._pending = (line, shared)
        return done

    def _place(self, line: _Line, shared: int, *, following: int) -> list[bytes]:
        done: list[bytes] = []
        share = shared_bytes(shared)
        if self._lines and (
            len(self._lines) == GROUP_LINES
            or (len(self._lines) > 1 and 2 * share < shared_bytes(self._levels))
            or 2 * share < shared_bytes(following)
        ):
            done = self._close()
        if not self._lines:
            self._levels = max(shared, following)
        elif len(self._lines) == 1:
            self._levels = shared
        else:
            self._levels = min(self._levels, shared)
        self._lines.append(line)
        return done

    def _close(self) -> list[bytes]:
        base = (self._lines[0].key, self._levels)
        if self._base is None or not _same(self._base, base):
            self._piece = 0
        hashed = group_hash(*base, self._piece)
        self._base = base
        self._piece += 1
        done = [
            plan.ENTRY.pack(line.offset, line.length, line.number, hashed) for line in self._lines
        ]
        self._lines.clear()
        return done

    def end(self) -> list[bytes]:
        """The family is over: the rest of its entries. A line by itself is in no group."""
        if self._pending is None:
            return []
        done = self._place(*self._pending, following=0)
        self._pending = None
        if self._base is None and len(self._lines) == 1:
            line = self._lines.pop()
            done.append(plan.ENTRY.pack(line.offset, line.length, line.number, 0))
        elif self._lines:
            done += self._close()
        self._base, self._piece = None, 0
        return done


def _same(one: tuple[bytes, int], other: tuple[bytes, int]) -> bool:
    return one[1] == other[1] <= shared_levels(one[0], other[0])
