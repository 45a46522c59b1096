"""Keys and the projects that they open."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, Select, select, update
from sqlalchemy.engine import RowMapping

from batchline.domain.ids import KeyId, ProjectId
from batchline.domain.keys import ApiKey
from batchline.store import references
from batchline.store.tables import api_key, project


def create(connection: Connection, new: ApiKey) -> ApiKey:
    """Insert the key, and its project if no project has that name; see `Store.create_key`."""
    connection.execute(
        # Two keys of one new project at once: the second waits here and finds the first's.
        references.insert_into(connection, project).on_conflict_do_nothing(),
        {"id": new.project_id, "name": new.project_name, "created_at": new.created_at},
    )
    query = select(project.c.id).where(project.c.name == new.project_name)
    connection.execute(
        api_key.insert(),
        {
            "id": new.id,
            "project_id": connection.execute(query).scalar_one(),
            "prefix": new.prefix,
            "digest": new.digest,
            "created_at": new.created_at,
            "revoked_at": new.revoked_at,
        },
    )
    return _key_of(connection.execute(_keys().where(api_key.c.id == new.id)).mappings().one())


def every(connection: Connection) -> Sequence[ApiKey]:
    query = _keys().order_by(api_key.c.created_at, api_key.c.id)
    return [_key_of(row) for row in connection.execute(query).mappings()]


def revoke(connection: Connection, key_id: KeyId, *, now: int) -> ApiKey | None:
    connection.execute(
        update(api_key)
        .where(api_key.c.id == key_id, api_key.c.revoked_at.is_(None))
        .values(revoked_at=now)
    )
    row = connection.execute(_keys().where(api_key.c.id == key_id)).mappings().first()
    return None if row is None else _key_of(row)


def project_name(connection: Connection, project_id: ProjectId) -> str:
    query = select(project.c.name).where(project.c.id == project_id)
    return str(connection.execute(query).scalar_one())


def _keys() -> Select[tuple[object, ...]]:
    return select(api_key, project.c.name.label("project_name")).join(
        project, project.c.id == api_key.c.project_id
    )


def _key_of(row: RowMapping) -> ApiKey:
    return ApiKey(
        id=KeyId(row["id"]),
        project_id=ProjectId(row["project_id"]),
        project_name=row["project_name"],
        prefix=row["prefix"],
        digest=bytes(row["digest"]),
        created_at=row["created_at"],
        revoked_at=row["revoked_at"],
    )
