"""Uploads in parts: their rows, and who holds the parts' blobs.

An upload holds its parts' blobs for as long as it is pending; every way out of that drops the rows
of the parts and the references in the same transaction. Each move is one UPDATE that names the
status that it leaves, and locks the row against a part that arrives at the same moment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import ColumnElement, Connection, delete, func, insert, select, update

from batchline.domain.ids import ProjectId, UploadId
from batchline.domain.model import Blob, File, Upload, UploadPart, UploadStatus
from batchline.store import files, references, rows
from batchline.store.tables import upload, upload_part


def create(connection: Connection, new: Upload) -> None:
    connection.execute(insert(upload).values(rows.upload_values(new)))


def get(connection: Connection, project_id: ProjectId, upload_id: UploadId) -> Upload | None:
    query = select(upload).where(upload.c.id == upload_id, upload.c.project_id == project_id)
    row = connection.execute(query).mappings().first()
    return None if row is None else rows.upload_of(row)


def add_part(
    connection: Connection, part: UploadPart, blob: Blob, *, max_parts: int, max_bytes: int
) -> bool:
    """Register the part and its blob if the upload is open and has room; see `Store.add_part`."""
    lock = select(upload.c.id).where(upload.c.id == part.upload_id, _is_open(part.created_at))
    if connection.execute(lock.with_for_update()).first() is None:
        return False
    query = select(func.count(), func.coalesce(func.sum(upload_part.c.bytes), 0)).where(
        upload_part.c.upload_id == part.upload_id
    )
    count, size = connection.execute(query).one()
    if count >= max_parts or size + part.bytes > max_bytes:
        return False
    references.register(connection, blob, holder=part.upload_id, now=part.created_at)
    connection.execute(insert(upload_part).values(rows.part_values(part)))
    return True


def parts(connection: Connection, upload_id: UploadId) -> list[UploadPart]:
    query = select(upload_part).where(upload_part.c.upload_id == upload_id)
    return [rows.part_of(row) for row in connection.execute(query).mappings()]


def complete(
    connection: Connection, upload_id: UploadId, *, recipe: str, file: File, blob: Blob
) -> bool:
    values = {"file_id": file.id, "recipe": recipe}
    # Not by the clock: a long copy may end after the hour in which it was asked for.
    is_pending = upload.c.status == UploadStatus.PENDING.value
    if not _leave_pending(connection, upload_id, UploadStatus.COMPLETED, is_pending, values):
        return False
    files.create(connection, file, blob)
    return True


def cancel(connection: Connection, upload_id: UploadId, *, now: int) -> bool:
    return _leave_pending(connection, upload_id, UploadStatus.CANCELLED, _is_open(now), {})


def expire(connection: Connection, *, now: int, limit: int) -> int:
    query = (
        select(upload.c.id)
        .where(upload.c.status == UploadStatus.PENDING.value, upload.c.expires_at <= now)
        .order_by(upload.c.expires_at, upload.c.id)
        .limit(limit)
        .with_for_update()
    )
    expired = [UploadId(upload_id) for upload_id in connection.scalars(query)]
    if expired:
        status = UploadStatus.EXPIRED.value
        connection.execute(update(upload).where(upload.c.id.in_(expired)).values(status=status))
        _let_go(connection, expired)
    return len(expired)


def _is_open(now: int) -> ColumnElement[bool]:
    return (upload.c.status == UploadStatus.PENDING.value) & (upload.c.expires_at > now)


def _leave_pending(
    connection: Connection,
    upload_id: UploadId,
    status: UploadStatus,
    guard: ColumnElement[bool],
    values: Mapping[str, str],
) -> bool:
    moved = connection.execute(
        update(upload)
        .where(upload.c.id == upload_id, guard)
        .values({"status": status.value, **values})
    )
    if moved.rowcount == 0:
        return False
    _let_go(connection, [upload_id])
    return True


def _let_go(connection: Connection, upload_ids: Sequence[UploadId]) -> None:
    """Drop the parts and their references; the caller holds the rows of the uploads."""
    connection.execute(delete(upload_part).where(upload_part.c.upload_id.in_(upload_ids)))
    references.drop_held_by(connection, upload_ids)
