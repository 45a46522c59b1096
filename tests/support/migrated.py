"""Databases with the schema in place, migrated once a session and as new in each test.

The eight migrations are 50 to 120 ms of CPU on either database, more than most tests do with it;
going back to what they left is 10 to 20 ms. A test that changes the schema costs the next one a new
migration. What migrations do is the subject of `tests/contract/test_store_schema.py`.
"""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final, LiteralString

import psycopg
import pytest
from psycopg import sql

from batchline.store.engine import open_engine, sqlite_url
from batchline.store.schema import migrate
from tests.support.postgres import Cluster

# Everything that a test may have altered, dropped or left behind, but rows.
_SCHEMA: Final[LiteralString] = """
SELECT md5(string_agg(part, ' ' ORDER BY part)) FROM (
    SELECT concat_ws(',', 'r', oid, relname, relkind) AS part FROM pg_class
        WHERE relnamespace = 'public'::regnamespace
    UNION ALL SELECT concat_ws(',', 'a', attrelid, attname, atttypid, attnotnull, attisdropped,
        atthasdef) FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
        WHERE relnamespace = 'public'::regnamespace AND attnum > 0
    UNION ALL SELECT concat_ws(',', 'c', oid, conname, convalidated) FROM pg_constraint
        WHERE connamespace = 'public'::regnamespace
    UNION ALL SELECT concat_ws(',', 't', oid, tgname, tgenabled) FROM pg_trigger
        WHERE NOT tgisinternal
    UNION ALL SELECT concat_ws(',', 'f', oid, proname) FROM pg_proc
        WHERE pronamespace = 'public'::regnamespace
) AS parts
"""


class MigratedPostgres:
    """One database of a cluster, that its tests use in turn."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._name = cluster.create()
        self.url = cluster.url(self._name)
        self._migrate()

    def rewind(self) -> None:
        """Bring it back to what the migrations left, whoever is still connected."""
        with self._connected() as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            if self._schema(connection) == self._migrated:
                tables = sql.SQL(", ").join(map(sql.Identifier, self._rows))
                connection.execute(sql.SQL("TRUNCATE {} RESTART IDENTITY").format(tables))
                self._put_back(connection)
                return
        self._cluster.empty(self._name)
        self._migrate()

    def _migrate(self) -> None:
        engine = open_engine(self.url)
        migrate(engine)
        engine.dispose()
        with self._connected() as connection:
            self._migrated = self._schema(connection)
            names = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname='public'")
            self._rows = {
                str(name): connection.execute(
                    sql.SQL("SELECT * FROM {}").format(sql.Identifier(name))
                ).fetchall()
                for (name,) in names.fetchall()
            }

    def _put_back(self, connection: psycopg.Connection) -> None:
        for name, rows in self._rows.items():
            for row in rows:
                values = sql.SQL(", ").join(sql.Placeholder() * len(row))
                table = sql.Identifier(name)
                connection.execute(sql.SQL("INSERT INTO {} VALUES ({})").format(table, values), row)

    def _connected(self) -> contextlib.closing[psycopg.Connection]:
        return contextlib.closing(self._cluster.connect(self._name))

    def _schema(self, connection: psycopg.Connection) -> object:
        return connection.execute(_SCHEMA).fetchone()


@pytest.fixture(scope="session")
def migrated_postgres(postgres_cluster: Cluster) -> MigratedPostgres:
    return MigratedPostgres(postgres_cluster)


@pytest.fixture
def migrated_postgres_url(migrated_postgres: MigratedPostgres) -> Iterator[str]:
    """The URL of a migrated database that only this test uses."""
    yield migrated_postgres.url
    migrated_postgres.rewind()


@functools.cache
def sqlite_as_new() -> bytes:
    """The file of a migrated database."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "batchline.db"
        engine = open_engine(sqlite_url(path))
        migrate(engine)
        engine.dispose()  # its log goes into it then
        return path.read_bytes()


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database, to be copied."""
    path = tmp_path_factory.mktemp("migrated") / "batchline.db"
    path.write_bytes(sqlite_as_new())
    return path
