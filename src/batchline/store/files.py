"""Files: their rows, their manifests, and when their bytes are let go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Connection,
    and_,
    bindparam,
    delete,
    insert,
    or_,
    select,
    update,
)

from batchline.domain.errors import NotFound
from batchline.domain.ids import FileId, ProjectId
from batchline.domain.model import Blob, BlobRange, File, Page
from batchline.store import places, references, rows
from batchline.store.tables import file, file_range


def is_visible(now: int | BindParameter[int]) -> ColumnElement[bool]:
    """Neither deleted nor, by the clock, expired; whether a sweep has been there or not."""
    return and_(
        file.c.deleted_at.is_(None), or_(file.c.expires_at.is_(None), file.c.expires_at > now)
    )


def create(connection: Connection, new: File, blob: Blob) -> None:
    sequence = insert_file(connection, new)
    references.register(connection, blob, holder=new.id, now=new.created_at)
    connection.execute(
        _INSERT_RANGE,
        {
            "file_sequence": sequence,
            "position": 0,
            "blob_name": blob.name,
            "start": 0,
            "stop": blob.bytes,
            "crc": blob.crc,
            "begin": 0,
        },
    )


def insert_file(connection: Connection, new: File) -> int:
    """Insert the row and give back its sequence; manifest and references are the caller's."""
    connection.execute(_INSERT, rows.file_values(new))
    return int(connection.execute(_SEQUENCE, {"of_file": new.id}).scalar_one())


def get(connection: Connection, project_id: ProjectId, file_id: FileId, *, now: int) -> File | None:
    values = {"of_file": file_id, "of_project": project_id, "now": now}
    row = connection.execute(_GET, values).mappings().first()
    return None if row is None else rows.file_of(row)


def list_page(
    connection: Connection,
    project_id: ProjectId,
    *,
    purpose: str | None,
    after: FileId | None,
    limit: int,
    ascending: bool,
    now: int,
) -> Page[File]:
    query = select(file).where(file.c.project_id == project_id, is_visible(now))
    if purpose is not None:
        query = query.where(file.c.purpose == purpose)
    if after is not None:
        cursor = _cursor(connection, project_id, after)
        query = query.where(file.c.sequence > cursor if ascending else file.c.sequence < cursor)
    # One row more than asked for tells whether there is another page.
    query = query.order_by(file.c.sequence if ascending else file.c.sequence.desc())
    found = connection.execute(query.limit(limit + 1)).mappings().all()
    items = [rows.file_of(row) for row in found[:limit]]
    return Page(items=items, has_more=len(found) > limit)


def _cursor(connection: Connection, project_id: ProjectId, after: FileId) -> int:
    query = select(file.c.sequence).where(file.c.id == after, file.c.project_id == project_id)
    sequence = connection.execute(query).scalar_one_or_none()
    if sequence is None:
        raise NotFound(f"No such File object: {after}", param="after")
    return int(sequence)


def hide(connection: Connection, project_id: ProjectId, file_id: FileId, *, now: int) -> bool:
    """Hide one visible file; False when there was none."""
    hidden = connection.execute(
        update(file)
        .where(file.c.id == file_id, file.c.project_id == project_id, is_visible(now))
        .values(deleted_at=now)
    )
    if hidden.rowcount == 0:
        return False
    references.pass_to_hidden(connection, [file_id])
    return True


def hide_expired(connection: Connection, *, now: int, limit: int) -> int:
    query = (
        select(file.c.id)
        .where(file.c.deleted_at.is_(None), file.c.expires_at <= now)
        .order_by(file.c.expires_at, file.c.sequence)
        .limit(limit)
        .with_for_update()
    )
    expired = [FileId(file_id) for file_id in connection.scalars(query)]
    if expired:
        connection.execute(update(file).where(file.c.id.in_(expired)).values(deleted_at=now))
        references.pass_to_hidden(connection, expired)
    return len(expired)


def let_go(connection: Connection, file_ids: Sequence[FileId]) -> None:
    """See `Store.let_go_files`."""
    sequences = select(file.c.sequence).where(
        file.c.id.in_(file_ids), file.c.deleted_at.is_not(None)
    )
    connection.execute(delete(file_range).where(file_range.c.file_sequence.in_(sequences)))
    references.drop_held_by(connection, [references.hidden_holder(one) for one in file_ids])


def ranges(
    connection: Connection, file_id: FileId, *, start: int, stop: int | None, most: int | None
) -> list[BlobRange]:
    """See `Store.file_ranges`."""
    values = {"of_file": file_id, **places.values(start=start, stop=stop, most=most)}
    found = connection.execute(_RANGES, values).mappings()
    return places.cut(found, start=start, stop=stop)


# Made once: of every upload, of every batch's end, and of every look at a file.
_INSERT: Final = insert(file)
_INSERT_RANGE: Final = insert(file_range)
_SEQUENCE: Final = select(file.c.sequence).where(file.c.id == bindparam("of_file"))
_GET: Final = select(file).where(
    file.c.id == bindparam("of_file"),
    file.c.project_id == bindparam("of_project"),
    is_visible(bindparam("now")),
)
_RANGES: Final = places.within(
    select(*places.columns_of(file_range)).where(
        file_range.c.file_sequence == _SEQUENCE.scalar_subquery()
    )
)
