"""A batch's output while it grows: committed ranges, then the file's, at the same offsets.

`finalize` takes the rows from the one table and puts them into the other at the same places. One
statement sees the one or the other: two could fall to both sides of it, and see nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from sqlalchemy import Connection, Select, bindparam, select, union_all

from batchline.domain.ids import BatchId
from batchline.domain.model import BlobRange
from batchline.store import files, places
from batchline.store.tables import OUTPUT, batch, file, file_range, segment_commit


def end(
    connection: Connection, batch_id: BatchId, *, after: int, limit: int, repairs: int, now: int
) -> int | None:
    """See `Store.output_end`."""
    values = {"of_batch": batch_id, "repairs": repairs, "now": now, "before": after + limit}
    found = connection.execute(_LAST, values).first()
    stored = 0 if found is None else found.begin + found.stop - found.start
    return stored if stored >= after else None


def committed(
    connection: Connection,
    batch_id: BatchId,
    *,
    start: int,
    stop: int,
    most: int,
    repairs: int,
    now: int | None,
) -> Sequence[BlobRange]:
    """See `Store.committed_output`."""
    values = {"of_batch": batch_id, "repairs": repairs}
    values |= places.values(start=start, stop=stop, most=most)
    if now is None:
        found = connection.execute(_WITHIN_HIDDEN, values).mappings()
    else:
        found = connection.execute(_WITHIN, values | {"now": now}).mappings()
    return places.cut(found, start=start, stop=stop)


def _either(
    narrowed: Callable[[Select[Any]], Select[Any]], *, hidden_too: bool = False
) -> Select[Any]:
    """The rows that `narrowed` leaves of the one table and of the other, by their places."""
    this_batch = (batch.c.id == bindparam("of_batch"), batch.c.repairs == bindparam("repairs"))
    may_be_read = () if hidden_too else (files.is_visible(bindparam("now")),)
    of_batch = select(batch.c.sequence).where(*this_batch).scalar_subquery()
    of_file = (
        select(file.c.sequence)
        .join(batch, batch.c.output_file_id == file.c.id)
        .where(*this_batch, *may_be_read)
        .scalar_subquery()
    )
    growing = narrowed(
        select(*places.columns_of(segment_commit)).where(
            segment_commit.c.batch_sequence == of_batch, segment_commit.c.kind == OUTPUT
        )
    ).subquery()
    written = narrowed(
        select(*places.columns_of(file_range)).where(file_range.c.file_sequence == of_file)
    ).subquery()
    both = union_all(select(growing), select(written)).subquery()
    return select(both).order_by(both.c.begin)


def _last(query: Select[Any]) -> Select[Any]:
    """The last range that begins before a byte."""
    begin = query.selected_columns.begin
    return query.where(begin < bindparam("before")).order_by(begin.desc()).limit(1)


# Made once: a statement of this size is a millisecond to put together, for every page.
_LAST: Final = _either(_last)
_WITHIN: Final = _either(places.within)
_WITHIN_HIDDEN: Final = _either(places.within, hidden_too=True)
