"""Parts of a file by their places in it: the ranges that hold them, found by an index."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Final

from sqlalchemy import Column, RowMapping, Select, Table, bindparam, func

from batchline.domain.model import BlobRange
from batchline.store import rows

_ALL: Final = 2**62


def columns_of(table: Table) -> list[Column[Any]]:
    """What of a range's row is needed here."""
    return [table.c[name] for name in ("begin", "blob_name", "start", "stop", "crc")]


def within(query: Select[Any]) -> Select[Any]:
    """Narrow a query of one file's ranges to the first of those that hold bytes of a part of it,
    in order; which part, and how many, is said by `values` when it is executed."""
    begin = query.selected_columns.begin
    # The range that has the part's first byte is the last one that begins before it or there.
    last = query.with_only_columns(func.coalesce(func.max(begin), 0))
    last = last.where(begin <= bindparam("first_byte")).correlate(None)
    return (
        query.where(begin >= last.scalar_subquery(), begin < bindparam("end_byte"))
        .order_by(begin)
        .limit(bindparam("most_ranges"))
    )


def values(*, start: int, stop: int | None, most: int | None) -> dict[str, Any]:
    """Of the parameters of `within`: bytes `start` to `stop`, and of their ranges so many."""
    return {
        "first_byte": start,
        "end_byte": _ALL if stop is None else stop,
        "most_ranges": _ALL if most is None else most,
    }


def cut(found: Iterable[RowMapping], *, start: int, stop: int | None) -> list[BlobRange]:
    """The ranges of rows that are in order, without what is before `start` and from `stop` on.

    Where a range is missing, only those before the gap.
    """
    ranges: list[BlobRange] = []
    at = start
    for row in found:
        part = rows.range_of(row)
        end = row["begin"] + part.stop - part.start
        if row["begin"] > at or (end <= at and start):
            break
        lead, trail = at - row["begin"], 0 if stop is None else max(0, end - stop)
        if lead or trail:
            first, last = part.start + lead, part.stop - trail
            part = replace(part, start=first, stop=last, lead=lead, trail=trail)
        ranges.append(part)
        at = end
    return ranges
