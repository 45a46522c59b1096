"""Blobs in the database: which exist, and who still needs their bytes.

A blob's row and its first reference are written in one transaction, and later references are taken
only under the lock of a row whose own reference is there. So a blob that is seen without a
reference stays without one, and its bytes may go.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    Table,
    bindparam,
    case,
    delete,
    exists,
    literal,
    select,
    update,
)
from sqlalchemy.dialects import sqlite

from batchline.domain.ids import BlobName, FileId
from batchline.domain.model import Blob, BlobKind
from batchline.store import rows
from batchline.store.tables import blob, blob_reference

if TYPE_CHECKING:
    from sqlalchemy.dialects import postgresql

WORKER_HOLDER: Final = "worker:"
HIDDEN_HOLDER: Final = "hidden:"
_BEHIND_HIDDEN: Final = "hidden;"  # the first text that does not begin with it

# Values bound in one statement: SQLite takes 32,766 and PostgreSQL 65,535; below that it is a
# matter of how long the other callers wait.
_NAMES_AT_ONCE: Final = 1_000


def worker_holder(worker: str) -> str:
    return f"{WORKER_HOLDER}{worker}"


def hidden_holder(file_id: FileId) -> str:
    """Who holds the bytes of a file that is deleted or expired, until they are let go."""
    return f"{HIDDEN_HOLDER}{file_id}"


def insert_into(connection: Connection, table: Table) -> postgresql.Insert | sqlite.Insert:
    """An INSERT that can have an ON CONFLICT clause."""
    return _insert_of(connection.dialect.name, table)


def _insert_of(dialect: str, table: Table) -> postgresql.Insert | sqlite.Insert:
    # Both databases know ON CONFLICT and spell it alike; SQLAlchemy has one class for each.
    if dialect == "postgresql":
        # Only here: the start of every command that opens a SQLite database is shorter by it.
        from sqlalchemy.dialects import postgresql

        return postgresql.insert(table)
    return sqlite.insert(table)


@cache
def _unless_there(dialect: str, table: Table) -> postgresql.Insert | sqlite.Insert:
    """An INSERT that leaves a row that is there as it is. Made once, as `_growing`."""
    return _insert_of(dialect, table).on_conflict_do_nothing()


def register(connection: Connection, new: Blob, *, holder: str, now: int) -> None:
    """Give a durable blob its row and its first reference."""
    connection.execute(
        _unless_there(connection.dialect.name, blob),
        {"name": new.name, "kind": new.kind.value, "bytes": new.bytes, "created_at": now},
    )
    take(connection, [(new.name, holder)])


def register_segments(connection: Connection, ends: Mapping[BlobName, int], *, now: int) -> None:
    """Give segments their rows, or raise their `bytes` to `ends`: they grow while open."""
    values = [
        {"name": name, "kind": BlobKind.SEGMENT.value, "bytes": end, "created_at": now}
        for name, end in sorted(ends.items())
    ]
    connection.execute(_growing(connection.dialect.name), values)


@cache
def _growing(dialect: str) -> postgresql.Insert | sqlite.Insert:
    """Made once: `excluded` is a copy of the table, 150 objects in cycles, and each group of
    commits would leave one to the garbage collector."""
    insert = _insert_of(dialect, blob)
    grown = case((insert.excluded.bytes > blob.c.bytes, insert.excluded.bytes), else_=blob.c.bytes)
    return insert.on_conflict_do_update(index_elements=["name"], set_={"bytes": grown})


def take(connection: Connection, references: Sequence[tuple[BlobName, str]]) -> None:
    """Let each (blob, holder) be; those that are there already stay as they are."""
    connection.execute(
        _unless_there(connection.dialect.name, blob_reference),
        [{"blob_name": name, "holder": holder} for name, holder in sorted(references)],
    )


def take_selected(
    connection: Connection,
    names_and_holders: Select[tuple[str, str]],
    values: Mapping[str, object],
) -> None:
    """As `take`, of what a query gives that is made once and executed with `values`."""
    connection.execute(_taking(connection.dialect.name, names_and_holders), values)


@cache
def _taking(
    dialect: str, names_and_holders: Select[tuple[str, str]]
) -> postgresql.Insert | sqlite.Insert:
    insert = _insert_of(dialect, blob_reference)
    return insert.from_select(["blob_name", "holder"], names_and_holders).on_conflict_do_nothing()


def drop_held_by(
    connection: Connection, holders: Sequence[str], *, but: Sequence[BlobName] = ()
) -> None:
    """Drop every reference of `holders`, except on the blobs in `but`."""
    if but:
        connection.execute(_DROP_BUT, {"holders": holders, "but": but})
    else:
        connection.execute(_DROP, {"holders": holders})


_DROP: Final = delete(blob_reference).where(
    blob_reference.c.holder.in_(bindparam("holders", expanding=True))
)
_DROP_BUT: Final = _DROP.where(blob_reference.c.blob_name.not_in(bindparam("but", expanding=True)))


def drop_held_by_workers(connection: Connection) -> None:
    connection.execute(
        delete(blob_reference).where(blob_reference.c.holder.startswith(WORKER_HOLDER))
    )


def pass_to_hidden(connection: Connection, file_ids: Sequence[FileId]) -> None:
    """What files hold is held by `hidden_holder` of each from now on."""
    holder = blob_reference.c.holder
    connection.execute(
        update(blob_reference)
        .where(holder.in_(file_ids))
        .values(holder=literal(HIDDEN_HOLDER) + holder)
    )


def hidden(connection: Connection, *, after: FileId | None, limit: int) -> list[FileId]:
    """The files behind hidden holders, by their ids."""
    holder: ColumnElement[str] = blob_reference.c.holder
    if connection.dialect.name == "postgresql":
        holder = holder.collate("C")  # else punctuation counts little or nothing, by its locale
    query = (
        select(holder)
        .where(holder > hidden_holder(after or FileId("")), holder < _BEHIND_HIDDEN)
        .distinct()
        .order_by(holder)
        .limit(limit)
    )
    return [FileId(found.removeprefix(HIDDEN_HOLDER)) for found in connection.scalars(query)]


def unreferenced(connection: Connection, *, limit: int) -> list[Blob]:
    query = select(blob).where(~_is_referenced()).order_by(blob.c.name).limit(limit)
    return [rows.blob_of(row) for row in connection.execute(query).mappings()]


def forget(connection: Connection, names: Sequence[BlobName]) -> None:
    """Drop the rows of those `names` that have no reference."""
    for some in _in_groups(names):
        connection.execute(delete(blob).where(blob.c.name.in_(some), ~_is_referenced()))


def known(connection: Connection, names: Sequence[BlobName]) -> set[BlobName]:
    found: set[BlobName] = set()
    for some in _in_groups(names):
        query = select(blob.c.name).where(blob.c.name.in_(some))
        found.update(BlobName(name) for name in connection.scalars(query))
    return found


def _is_referenced() -> ColumnElement[bool]:
    return exists().where(blob_reference.c.blob_name == blob.c.name)


def _in_groups(names: Sequence[BlobName]) -> Iterator[Sequence[BlobName]]:
    for start in range(0, len(names), _NAMES_AT_ONCE):
        yield names[start : start + _NAMES_AT_ONCE]
