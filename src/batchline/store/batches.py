"""Batches: created, read, and moved through the lifecycle by compare-and-set.

Every move is one UPDATE whose WHERE names the status that it leaves: whoever comes second changes
no row and hears so. Which status follows is asked of `domain.lifecycle`, never decided here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import islice
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Connection,
    Row,
    Update,
    bindparam,
    case,
    func,
    insert,
    select,
    update,
)

from batchline.domain import bitmap, lifecycle
from batchline.domain.errors import NotFound
from batchline.domain.ids import BatchId, FileId, ProjectId
from batchline.domain.lifecycle import BatchEvent, BatchStatus, Stopping
from batchline.domain.model import (
    Batch,
    Blob,
    BlobRange,
    LineProblem,
    Page,
    PlannedShard,
    Usage,
)
from batchline.store import files, references, rows
from batchline.store.contract import NewBatch, Skipped
from batchline.store.tables import ERROR, batch, file, file_range, segment_commit, shard

# These write more than the status, so each has its own method.
_NOT_ADVANCED: Final = frozenset(
    {BatchEvent.VALIDATED, BatchEvent.REFUSED, BatchEvent.FILES_WRITTEN}
)

# Rows of one INSERT: as one statement they would take 2 KiB each of memory until it is done.
_SHARDS_AT_ONCE: Final = 100

_UNFINISHED: Final = sorted(set(BatchStatus) - lifecycle.TERMINAL)


def create(connection: Connection, new: NewBatch) -> Batch:
    source = _input_of(connection, new.project_id, new.input_file_id, now=new.created_at)
    values = rows.new_batch_values(new)
    if source is None:
        connection.execute(_INSERT, {**values, "input_bytes": 0})
    else:
        of_input = {
            "input_blob": source.blob_name,
            "input_bytes": source.bytes,
            "input_crc": source.crc,
        }
        connection.execute(_INSERT, {**values, **of_input})
        references.take(connection, [(source.blob_name, new.id)])
    return load(connection, new.id)


def _input_of(
    connection: Connection, project_id: ProjectId, file_id: FileId, *, now: int
) -> Row[Any, Any, Any, Any] | None:
    """(blob_name, bytes, crc, 0) of a visible file that is one whole blob, as every upload is.

    A batch's own output is not: it has a manifest of many ranges and a purpose that validation
    refuses, so it needs no reference. The file's row is locked against a deletion beside us, which
    would drop the last reference of a blob that we are about to use.
    """
    values = {"of_file": file_id, "of_project": project_id, "now": now}
    found = connection.execute(_LOCK_INPUT, values).first()
    if found is None:
        return None
    some = connection.execute(_INPUT_RANGES, {"in_file": found.sequence}).all()
    is_whole = len(some) == 1 and (some[0].start, some[0].bytes) == (0, found.bytes)
    return some[0] if is_whole else None


def get(connection: Connection, project_id: ProjectId, batch_id: BatchId) -> Batch | None:
    values = {"of_batch": batch_id, "of_project": project_id}
    row = connection.execute(_GET, values).mappings().first()
    return None if row is None else rows.batch_of(row)


def load(connection: Connection, batch_id: BatchId) -> Batch:
    row = connection.execute(_LOAD, {"of_batch": batch_id}).mappings().one()
    return rows.batch_of(row)


def list_page(
    connection: Connection, project_id: ProjectId, *, after: BatchId | None, limit: int
) -> Page[Batch]:
    query = select(batch).where(batch.c.project_id == project_id)
    if after is not None:
        query = query.where(batch.c.sequence < _cursor(connection, project_id, after))
    # One row more than asked for tells whether there is another page.
    query = query.order_by(batch.c.sequence.desc()).limit(limit + 1)
    found = connection.execute(query).mappings().all()
    return Page(items=[rows.batch_of(row) for row in found[:limit]], has_more=len(found) > limit)


def _cursor(connection: Connection, project_id: ProjectId, after: BatchId) -> int:
    query = select(batch.c.sequence).where(batch.c.id == after, batch.c.project_id == project_id)
    sequence = connection.execute(query).scalar_one_or_none()
    if sequence is None:
        raise NotFound(f"No batch found with id '{after}'.", param="after")
    return int(sequence)


def unfinished(connection: Connection) -> list[Batch]:
    query = select(batch).where(batch.c.status.in_(_UNFINISHED)).order_by(batch.c.sequence)
    return [rows.batch_of(row) for row in connection.execute(query).mappings()]


def advance(
    connection: Connection,
    batch_id: BatchId,
    *,
    from_status: BatchStatus,
    event: BatchEvent,
    now: int,
) -> Batch | None:
    """Move by an event that brings nothing but the move; see `Store.advance_batch`."""
    if event in _NOT_ADVANCED:
        raise ValueError(f"{event} has a method of its own")
    target = lifecycle.advance(from_status, event)
    if target is None:
        return None
    stops = lifecycle.STOPS.get(event)
    also = {} if stops is None else {"stopping": stops.value}
    if not _move(connection, batch_id, from_status, target, also, now=now):
        return None
    if target in lifecycle.TERMINAL:
        # It ended without files, so nothing will ever read its input again.
        references.drop_held_by(connection, [batch_id])
    return load(connection, batch_id)


def advance_stopped(
    connection: Connection,
    batch_id: BatchId,
    event: BatchEvent,
    *,
    from_status: BatchStatus,
    stopping: Stopping | None,
    also: Mapping[str, object] | None = None,
    now: int,
) -> BatchStatus | None:
    """Move by an event that leads where `stopping` says: there; None when it is not allowed, or the
    batch is no longer in `from_status` or is stopped otherwise.

    The row is locked from here on: nobody can cancel, commit or end the batch.
    """
    target = lifecycle.advance(from_status, event, stopping)
    if target is None:
        return None
    statement = _moving_stopped(target)
    if also:
        statement = statement.values(dict(also))
    values = _of_move(batch_id, from_status, now=now)
    values["if_stopping"] = None if stopping is None else stopping.value
    return target if connection.execute(statement, values).rowcount == 1 else None


def _move(
    connection: Connection,
    batch_id: BatchId,
    from_status: BatchStatus,
    target: BatchStatus,
    also: Mapping[str, object],
    *,
    now: int,
) -> bool:
    """The compare-and-set; False when the batch is no longer in `from_status`."""
    values = _of_move(batch_id, from_status, now=now)
    values |= {f"also_{name}": value for name, value in also.items()}
    return connection.execute(_moving(target, *also), values).rowcount == 1


def _of_move(batch_id: BatchId, from_status: BatchStatus, *, now: int) -> dict[str, Any]:
    return {"of_batch": batch_id, "from_status": from_status.value, "now": now}


@cache
def _moving(target: BatchStatus, *also: str) -> Update:
    """The compare-and-set, which sets the columns `also` too. Made once for each of the few there
    are: to put it together takes many times as long as to execute it."""
    others: dict[str, Any] = {name: bindparam(f"also_{name}") for name in also}
    return (
        update(batch)
        .where(batch.c.id == bindparam("of_batch"), batch.c.status == bindparam("from_status"))
        .values({**_arrival(target), **others})
    )


@cache
def _moving_stopped(target: BatchStatus) -> Update:
    """The same of a batch that is stopped as was thought."""
    return _moving(target).where(batch.c.stopping.is_not_distinct_from(bindparam("if_stopping")))


def _arrival(target: BatchStatus) -> dict[str, Any]:
    """The columns that say that a batch is in `target`, since `now` unless it was there before.

    Not since before the status that it comes from, whatever became of the clock meanwhile.
    """
    now = bindparam("now", type_=BigInteger)
    reached = batch.c[f"{target.value}_at"]
    # In the reverse order of a batch's life: the first that is set is the latest.
    before = func.coalesce(
        batch.c.cancelling_at, batch.c.finalizing_at, batch.c.in_progress_at, batch.c.created_at
    )
    since = case((before > now, before), else_=now)
    return {"status": target.value, reached.name: func.coalesce(reached, since)}


def refuse(
    connection: Connection, batch_id: BatchId, *, problems: Sequence[LineProblem], now: int
) -> bool:
    also = {"errors": rows.problems_json(problems)}
    if not _move(connection, batch_id, BatchStatus.VALIDATING, BatchStatus.FAILED, also, now=now):
        return False
    references.drop_held_by(connection, [batch_id])
    return True


def start(
    connection: Connection,
    batch_id: BatchId,
    *,
    plan: Blob,
    shards: Iterable[PlannedShard],
    lines: int,
    model: str | None,
    skipped: Skipped | None,
    now: int,
) -> bool:
    left_out = 0 if skipped is None else skipped.lines
    left_out_bytes = 0 if skipped is None else skipped.blob.bytes
    also = {
        "plan_blob": plan.name,
        "total": lines + left_out,
        "failed": left_out,
        "error_bytes": left_out_bytes,
        "model": model,
    }
    if not _move(
        connection, batch_id, BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS, also, now=now
    ):
        return False
    references.register(connection, plan, holder=batch_id, now=now)
    sequence = connection.execute(_SEQUENCE, {"of_batch": batch_id}).scalar_one()
    numbered = enumerate(shards)
    while some := [_shard_row(sequence, *one) for one in islice(numbered, _SHARDS_AT_ONCE)]:
        connection.execute(_INSERT_SHARDS, some)
    if skipped is not None:
        references.register(connection, skipped.blob, holder=batch_id, now=now)
        whole = BlobRange(
            blob=skipped.blob.name, start=0, stop=skipped.blob.bytes, crc=skipped.blob.crc
        )
        connection.execute(
            insert(segment_commit),
            {"batch_sequence": sequence, "kind": ERROR, "begin": 0, **rows.range_values(whole)},
        )
    return True


def _shard_row(sequence: int, number: int, planned: PlannedShard) -> dict[str, object]:
    return {
        "batch_sequence": sequence,
        "number": number,
        "first_entry": planned.first_entry,
        "entries": planned.entries,
        "model": planned.model,
        "epoch": 0,
        "settled": bytes(bitmap.empty(planned.entries)),
        "completed": 0,
        "failed": 0,
        "deaths": 0,
        **rows.usage_values(Usage()),
    }


def merge_receipt(connection: Connection, batch_id: BatchId, receipt: Mapping[str, object]) -> None:
    query = select(batch.c.receipt).where(batch.c.id == batch_id).with_for_update()
    stored = connection.execute(query).scalar_one()
    merged = {**(rows.receipt_of(stored) if stored is not None else {}), **receipt}
    connection.execute(
        update(batch).where(batch.c.id == batch_id).values(receipt=rows.as_json(merged))
    )


# Made once, as `_moving`: those of every batch and of every look at one.
_INSERT: Final = insert(batch)
_INSERT_SHARDS: Final = insert(shard)
_LOAD: Final = select(batch).where(batch.c.id == bindparam("of_batch"))
_GET: Final = _LOAD.where(batch.c.project_id == bindparam("of_project"))
_SEQUENCE: Final = select(batch.c.sequence).where(batch.c.id == bindparam("of_batch"))
_LOCK_INPUT: Final = (
    select(file.c.sequence, file.c.bytes)
    .where(
        file.c.id == bindparam("of_file"),
        file.c.project_id == bindparam("of_project"),
        files.is_visible(bindparam("now")),
    )
    .with_for_update(read=True)
)
_INPUT_RANGES: Final = (
    select(
        file_range.c.blob_name,
        file_range.c.stop.label("bytes"),
        file_range.c.crc,
        file_range.c.start,
    )
    .where(file_range.c.file_sequence == bindparam("in_file"))
    .limit(2)
)
