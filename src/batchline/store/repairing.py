"""Committed ranges: listed so that they can be checked, and taken back when they are damaged.

What a range holds was written beside it when it was committed: the shard's entries and what they
added. Taking it back is the one thing that makes a settled line unsettled, and lets counts fall.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import merge
from itertools import islice
from operator import attrgetter
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Connection,
    RowMapping,
    bindparam,
    cast,
    delete,
    func,
    select,
    update,
)

from batchline.domain import bitmap
from batchline.domain.ids import BatchId
from batchline.domain.lifecycle import BatchEvent, BatchStatus, Stopping
from batchline.domain.model import Batch, CommittedRange
from batchline.store import batches, rows
from batchline.store.tables import ERROR, OUTPUT, USAGE_COLUMNS, batch, segment_commit, shard

_AT_ONCE = 1_000  # values bound in one statement

_COUNTERS = ("completed", "failed", *USAGE_COLUMNS)
_OF_BATCH = (*_COUNTERS, "calls_saved")


def committed(
    connection: Connection, batch_id: BatchId, *, after: int, limit: int
) -> list[CommittedRange]:
    """See `Store.committed_ranges`."""
    # By kind, as the index is: for both at once SQLite would read every range of the batch for each
    # page, and sort them.
    pages = [
        _page(connection, batch_id, kind, after=after, limit=limit) for kind in (OUTPUT, ERROR)
    ]
    return list(islice(merge(*pages, key=attrgetter("sequence")), limit))


def _page(
    connection: Connection, batch_id: BatchId, kind: str, *, after: int, limit: int
) -> list[CommittedRange]:
    values = {"of_batch": batch_id, "of_kind": kind, "after": after, "most": limit}
    return [
        CommittedRange(
            sequence=row["sequence"],
            part=rows.range_of(row),
            lines=None if row["lines"] is None else bitmap.count(bytes(row["lines"][2:])),
        )
        for row in connection.execute(_PAGE, values).mappings()
    ]


# Made once: of every batch's end.
_PAGE: Final = (
    select(segment_commit)
    .where(
        segment_commit.c.batch_sequence
        == select(batch.c.sequence).where(batch.c.id == bindparam("of_batch")).scalar_subquery(),
        segment_commit.c.kind == bindparam("of_kind"),
        segment_commit.c.sequence > bindparam("after"),
    )
    .order_by(segment_commit.c.sequence)
    .limit(bindparam("most"))
)


def unsettle(
    connection: Connection,
    batch_id: BatchId,
    damaged: Sequence[int],
    *,
    from_status: BatchStatus,
    stopping: Stopping | None,
    now: int,
) -> Batch | None:
    """See `Store.unsettle_ranges`."""
    # The guard comes first: from here on nobody can cancel, commit or finalize.
    target = batches.advance_stopped(
        connection,
        batch_id,
        BatchEvent.RESULTS_DAMAGED,
        from_status=from_status,
        stopping=stopping,
        also={"repairs": batch.c.repairs + 1},
        now=now,
    )
    if target is None:
        return None
    query = select(batch.c.sequence).where(batch.c.id == batch_id)
    sequence = int(connection.execute(query).scalar_one())
    for first in range(0, len(damaged), _AT_ONCE):
        _take_back(connection, sequence, damaged[first : first + _AT_ONCE])
    _close_up(connection, sequence)
    return batches.load(connection, batch_id)


def _close_up(connection: Connection, batch_sequence: int) -> None:
    """Give what is left the places that it has now."""
    length = segment_commit.c.stop - segment_commit.c.start
    of_batch = segment_commit.c.batch_sequence == batch_sequence
    before = func.sum(length).over(
        partition_by=segment_commit.c.kind, order_by=segment_commit.c.sequence
    )
    # PostgreSQL sums BIGINT as NUMERIC.
    begin = (cast(before, BigInteger) - length).label("begin")
    placed = select(segment_commit.c.sequence, begin).where(of_batch).subquery()
    connection.execute(
        update(segment_commit)
        .where(segment_commit.c.sequence == placed.c.sequence)
        .values(begin=placed.c.begin)
    )
    total = cast(func.coalesce(func.sum(length), 0), BigInteger)
    sums = {
        f"{kind}_bytes": select(total)
        .where(of_batch, segment_commit.c.kind == kind)
        .scalar_subquery()
        for kind in (OUTPUT, ERROR)
    }
    connection.execute(update(batch).where(batch.c.sequence == batch_sequence).values(sums))


def _take_back(connection: Connection, batch_sequence: int, damaged: Sequence[int]) -> None:
    these = (
        segment_commit.c.batch_sequence == batch_sequence,
        segment_commit.c.sequence.in_(damaged),
        segment_commit.c.lines.is_not(None),
    )
    total = dict.fromkeys(_OF_BATCH, 0)
    query = select(segment_commit).where(*these).order_by(segment_commit.c.sequence)
    for row in connection.execute(query).mappings().all():
        lost = _take_back_one(connection, row)
        for name in _OF_BATCH:
            total[name] += lost[name]
    connection.execute(
        update(batch)
        .where(batch.c.sequence == batch_sequence)
        .values({name: batch.c[name] - total[name] for name in _OF_BATCH})
    )
    connection.execute(delete(segment_commit).where(*these))


def _take_back_one(connection: Connection, row: RowMapping) -> dict[str, int]:
    """Clear the bits of one range in its shard; what the shard's counters lose by it."""
    this_shard = (
        shard.c.batch_sequence == row["batch_sequence"],
        shard.c.number == row["shard_number"],
    )
    settled = bytes(connection.execute(select(shard.c.settled).where(*this_shard)).scalar_one())
    lines = bitmap.unpacked(bytes(row["lines"]), len(settled))
    count = bitmap.count(lines)
    lost = {
        "completed": count if row["kind"] == OUTPUT else 0,
        "failed": 0 if row["kind"] == OUTPUT else count,
        **{name: int(row[name]) for name in (*USAGE_COLUMNS, "calls_saved")},
    }
    values: dict[str, Any] = {name: shard.c[name] - lost[name] for name in _COUNTERS}
    values["settled"] = bitmap.without(settled, lines)
    values["epoch"] = shard.c.epoch + 1  # whoever held it takes more lines for settled than are
    connection.execute(update(shard).where(*this_shard).values(values))
    return lost
