"""A batch's output while it grows: committed ranges, then the file's, at the same offsets."""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy import BigInteger, Connection, cast, func, select, union_all

from batchline.domain.ids import BatchId
from batchline.domain.model import BlobRange
from batchline.store import files, rows
from batchline.store.tables import OUTPUT, batch, file, file_range, segment_commit


def committed(
    connection: Connection, batch_id: BatchId, *, after: int, limit: int, now: int
) -> list[BlobRange] | None:
    """See `Store.committed_output`."""
    growing = (
        select(
            segment_commit.c.sequence.label("place"),
            segment_commit.c.blob_name,
            segment_commit.c.start,
            segment_commit.c.stop,
            segment_commit.c.crc,
        )
        .join(batch, batch.c.sequence == segment_commit.c.batch_sequence)
        .where(batch.c.id == batch_id, segment_commit.c.kind == OUTPUT)
    )
    written = (
        select(
            file_range.c.position,
            file_range.c.blob_name,
            file_range.c.start,
            file_range.c.stop,
            file_range.c.crc,
        )
        .join(file, file.c.sequence == file_range.c.file_sequence)
        .join(batch, batch.c.output_file_id == file.c.id)
        .where(batch.c.id == batch_id, files.is_visible(now))
    )
    # `finalize` takes the rows from the one and puts them into the other in the same order. One
    # statement sees the one or the other: two could fall to both sides of it, and see nothing.
    part = union_all(growing, written).subquery()
    # PostgreSQL sums BIGINT as NUMERIC, which would come back as a Decimal.
    end = cast(func.sum(part.c.stop - part.c.start).over(order_by=part.c.place), BigInteger)
    placed = select(part, end.label("end")).subquery()
    begin = placed.c.end - (placed.c.stop - placed.c.start)
    query = (
        select(placed)
        # The range that ends just there is no part of the answer, but says that `after` is reached.
        .where(placed.c.end >= after, begin < after + limit)
        .order_by(placed.c.end)
    )
    found = connection.execute(query).mappings().all()
    if after and not found:
        return None
    return [
        _from(rows.range_of(row), after - (row["end"] - row["stop"] + row["start"]))
        for row in found
        if row["end"] > after
    ]


def _from(part: BlobRange, skipped: int) -> BlobRange:
    """The range without its first `skipped` bytes, if there are any to skip."""
    return part if skipped <= 0 else replace(part, start=part.start + skipped, lead=skipped)
