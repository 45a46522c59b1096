"""The PostgreSQL of the tests, tested with itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from sqlalchemy import create_engine, inspect, text

from batchline.store.schema import HEAD
from tests.support import postgres
from tests.support.migrated import MigratedPostgres
from tests.support.postgres import Cluster

pytestmark = pytest.mark.postgres


@pytest.mark.parametrize("turn", ["first", "second"])
def test_each_test_gets_a_database_without_any_table(turn: str, postgres_url: str) -> None:
    engine = create_engine(postgres_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE mine (n integer)"))  # fails where one is left over
    engine.dispose()


def test_a_database_is_emptied_although_someone_is_connected(postgres_cluster: Cluster) -> None:
    name = postgres_cluster.create()
    engine = create_engine(postgres_cluster.url(name))
    with engine.connect() as connection:
        connection.execute(text("CREATE TABLE held (n integer)"))  # in a transaction, so locked
        postgres_cluster.empty(name)
        connection.invalidate()
    with postgres_cluster.connect(name) as again:
        left = again.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        assert left.fetchall() == []
    again.close()
    engine.dispose()


def test_the_server_listens_on_no_port(postgres_cluster: Cluster) -> None:
    with postgres_cluster.connect() as connection:
        shown = connection.execute("SHOW listen_addresses").fetchone()
    connection.close()
    assert shown == ("",)


def test_a_cluster_is_gone_with_its_directory_after_the_block() -> None:
    with postgres.running(postgres.require_programs()) as cluster:
        lock = cluster.directory / "data" / "postmaster.pid"
        pid = int(lock.read_text().splitlines()[0])
        os.kill(pid, 0)
    assert not cluster.directory.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize(
    ("ci", "outcome"), [("", pytest.skip.Exception), ("true", pytest.fail.Exception)]
)
def test_a_missing_postgresql_skips_on_a_laptop_and_fails_in_ci(
    ci: str, outcome: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", ci)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(postgres, "DEBIAN", Path("/nowhere"))
    with pytest.raises(outcome, match="no PostgreSQL here"):
        postgres.require_programs()


def test_a_migrated_database_is_as_new_again(postgres_cluster: Cluster) -> None:
    migrated = MigratedPostgres(postgres_cluster)
    engine = create_engine(migrated.url)

    def seen() -> tuple[list[str], int | None, list[str]]:
        with engine.connect() as connection:
            projects = connection.scalars(text("SELECT id FROM project")).all()
            uploads = connection.scalar(text("SELECT count(*) FROM blob"))
            found = inspect(connection)
            columns = [
                c["name"] for t in sorted(found.get_table_names()) for c in found.get_columns(t)
            ]
        engine.dispose()
        return list(projects), uploads, columns

    before = seen()
    for change in (
        "INSERT INTO project VALUES ('proj_other', 'other', 0)",
        "DELETE FROM project",
        "ALTER TABLE project ADD COLUMN mine integer",
        "ALTER TABLE batch DROP COLUMN metadata",
        "CREATE TABLE mine (n integer)",
        "CREATE FUNCTION mine() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
    ):
        with engine.begin() as connection:
            connection.execute(text(change))
        engine.dispose()
        migrated.rewind()
        assert seen() == before, change
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM pg_proc WHERE proname = 'mine'")) == 0
        assert connection.scalar(text("SELECT version_num FROM alembic_version")) == HEAD
    engine.dispose()
