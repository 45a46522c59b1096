"""The end of a batch: its commits become the manifests of two files, in one transaction.

The work is done by a handful of statements inside the database, whatever the number of commits:
20,000 of them take well under a second (`tests/contract/test_store_finalize.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from sqlalchemy import (
    BigInteger,
    Connection,
    Text,
    bindparam,
    cast,
    delete,
    func,
    insert,
    select,
    update,
)

from batchline.domain.ids import BatchId, FileId, ProjectId
from batchline.domain.lifecycle import BatchEvent, BatchStatus, Stopping
from batchline.domain.model import Batch, Blob, File, Purpose
from batchline.store import batches, files, references, rows
from batchline.store.contract import FinalFiles
from batchline.store.tables import ERROR, OUTPUT, batch, file_range, partial_commit, segment_commit

_DELETED_AT_ONCE: Final = 4_096  # rows


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ended:
    """The batch whose files are being written; its row is locked."""

    id: BatchId
    sequence: int
    project_id: ProjectId
    now: int


def finalize(
    connection: Connection,
    batch_id: BatchId,
    *,
    from_status: BatchStatus,
    stopping: Stopping | None,
    finals: FinalFiles,
    now: int,
) -> Batch | None:
    """Write the files and end the batch; see `Store.finalize`."""
    # The guard comes first: from here on nobody can cancel or commit.
    target = batches.advance_stopped(
        connection,
        batch_id,
        BatchEvent.FILES_WRITTEN,
        from_status=from_status,
        stopping=stopping,
        now=now,
    )
    if target is None:
        return None
    loaded = batches.load(connection, batch_id)
    this = _Ended(id=batch_id, sequence=loaded.sequence, project_id=loaded.project_id, now=now)
    output = _write_file(
        connection, this, OUTPUT, finals.output_id, finals.output_filename, finals.expires_at, None
    )
    errors = _write_file(
        connection,
        this,
        ERROR,
        finals.error_id,
        finals.error_filename,
        finals.expires_at,
        finals.never_run,
    )
    name_files, names = _NAME_FILES, {"output_id": output, "error_id": errors}
    if finals.problems:
        name_files = name_files.values(errors=rows.problems_json(finals.problems))
    connection.execute(name_files, {"of_batch": this.sequence, **names})
    for kind in (OUTPUT, ERROR):
        _delete_commits(connection, this.sequence, kind)
    connection.execute(_DELETE_PARTIALS, {"of_batch": this.sequence})
    references.drop_held_by(connection, [batch_id])
    return batches.load(connection, batch_id)


def _write_file(
    connection: Connection,
    this: _Ended,
    kind: str,
    file_id: FileId,
    filename: str,
    expires_at: int | None,
    never_run: Blob | None,
) -> FileId | None:
    """Create one file from the committed ranges of `kind`; None when it would be empty."""
    committed = {"of_batch": this.sequence, "of_kind": kind}
    ranges, settled = connection.execute(_TOTAL, committed).one()
    size = settled + (0 if never_run is None else never_run.bytes)
    if size == 0:
        return None
    sequence = files.insert_file(
        connection,
        File(
            id=file_id,
            project_id=this.project_id,
            purpose=Purpose.BATCH_OUTPUT,
            filename=filename,
            bytes=size,
            created_at=this.now,
            expires_at=expires_at,
        ),
    )
    connection.execute(_COPY_RANGES, {"in_file": sequence, **committed})
    references.take_selected(connection, _SEGMENTS, {"holder": file_id, **committed})
    if never_run is not None and never_run.bytes:
        last = {"file_sequence": sequence, "position": ranges, "begin": settled}
        _append_never_run(connection, last, file_id, never_run, now=this.now)
    return file_id


def _delete_commits(connection: Connection, batch_sequence: int, kind: str) -> None:
    """Some thousands at a time: SQLite lists what it is to delete in memory, 24 bytes a row, and a
    batch of ten million lines at a slow backend has half a million."""
    these = {"of_batch": batch_sequence, "of_kind": kind}
    some = {"at_once": _DELETED_AT_ONCE, **these}
    while (stop := connection.execute(_FOLLOWING, some).scalar_one_or_none()) is not None:
        connection.execute(_DELETE_BEFORE, {"before": stop, **these})
    connection.execute(_DELETE, these)


def _append_never_run(
    connection: Connection,
    place: Mapping[str, int],
    file_id: FileId,
    never_run: Blob,
    *,
    now: int,
) -> None:
    references.register(connection, never_run, holder=file_id, now=now)
    connection.execute(
        _INSERT_RANGE,
        {
            **place,
            "blob_name": never_run.name,
            "start": 0,
            "stop": never_run.bytes,
            "crc": never_run.crc,
        },
    )


# Made once: to put these together takes SQLAlchemy many times as long as to execute them on a batch
# of a few lines.
_COMMITTED: Final = (
    segment_commit.c.batch_sequence == bindparam("of_batch"),
    segment_commit.c.kind == bindparam("of_kind"),
)
# PostgreSQL sums BIGINT as NUMERIC, which would come back as a Decimal.
_TOTAL: Final = select(
    func.count(),
    cast(func.coalesce(func.sum(segment_commit.c.stop - segment_commit.c.start), 0), BigInteger),
).where(*_COMMITTED)
_COPY_RANGES: Final = insert(file_range).from_select(
    ["file_sequence", "position", "blob_name", "start", "stop", "crc", "begin"],
    select(
        bindparam("in_file", type_=BigInteger),
        func.row_number().over(order_by=segment_commit.c.sequence) - 1,
        segment_commit.c.blob_name,
        segment_commit.c.start,
        segment_commit.c.stop,
        segment_commit.c.crc,
        segment_commit.c.begin,
    ).where(*_COMMITTED),
)
_SEGMENTS: Final = (
    select(segment_commit.c.blob_name, bindparam("holder", type_=Text))
    .where(*_COMMITTED)
    .distinct()
)
_NAME_FILES: Final = (
    update(batch)
    .where(batch.c.sequence == bindparam("of_batch"))
    .values(output_file_id=bindparam("output_id"), error_file_id=bindparam("error_id"))
)
_FOLLOWING: Final = (
    select(segment_commit.c.sequence)
    .where(*_COMMITTED)
    .order_by(segment_commit.c.sequence)
    .offset(bindparam("at_once"))
    .limit(1)
)
_DELETE: Final = delete(segment_commit).where(*_COMMITTED)
_DELETE_BEFORE: Final = _DELETE.where(segment_commit.c.sequence < bindparam("before"))
_DELETE_PARTIALS: Final = delete(partial_commit).where(
    partial_commit.c.batch_sequence == bindparam("of_batch")
)
_INSERT_RANGE: Final = insert(file_range)
