"""Parts of a file by their places in it: the ranges that hold them, found by an index."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from sqlalchemy import Column, RowMapping, Select, Table, func

from batchline.domain.model import BlobRange
from batchline.store import rows


def columns_of(table: Table) -> list[Column[Any]]:
    """What of a range's row is needed here."""
    return [table.c[name] for name in ("begin", "blob_name", "start", "stop", "crc")]


def within(query: Select[Any], *, start: int, stop: int | None, most: int | None) -> Select[Any]:
    """Narrow a query of one file's ranges to the first `most` of those that hold bytes from
    `start` to `stop`, in order."""
    begin = query.selected_columns.begin
    if start:
        # The range that has byte `start` is the last one that begins before it or there.
        last = query.with_only_columns(func.max(begin)).where(begin <= start)
        query = query.where(begin >= last.correlate(None).scalar_subquery())
    if stop is not None:
        query = query.where(begin < stop)
    query = query.order_by(begin)
    return query if most is None else query.limit(most)


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
        ranges.append(
            replace(part, start=part.start + lead, stop=part.stop - trail, lead=lead, trail=trail)
            if lead or trail
            else part
        )
        at = end
    return ranges
