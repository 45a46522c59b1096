"""The schema: what migrations give is what the code expects, on both databases."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, func, inspect, select, text

import batchline
from batchline.domain.errors import ConfigError
from batchline.domain.ids import DEFAULT_PROJECT
from batchline.domain.lifecycle import BatchStatus, Stopping
from batchline.domain.model import BlobKind, Purpose, UploadStatus
from batchline.store import tables
from batchline.store.database import Database
from batchline.store.engine import open_engine, sqlite_url
from batchline.store.schema import HEAD


async def test_a_migrated_database_has_exactly_the_tables_of_the_code(engine: Engine) -> None:
    """If this fails, write a migration; never edit one that was released."""
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, tables.metadata) == []


async def test_a_migrated_database_has_exactly_the_checks_of_the_code(engine: Engine) -> None:
    found = {
        (table, check["name"])
        for table in tables.metadata.tables
        for check in inspect(engine).get_check_constraints(table)
    }
    assert found == {
        (table.name, str(check.name))
        for table in tables.metadata.tables.values()
        for check in table.constraints
        if check.__visit_name__ == "table_or_column_check_constraint"
    }


@pytest.mark.parametrize(
    ("table", "column", "values"),
    [
        ("batch", "status", set(BatchStatus)),
        ("batch", "stopping", set(Stopping)),
        ("file", "purpose", set(Purpose)),
        ("upload", "purpose", set(Purpose)),
        ("upload", "status", set(UploadStatus)),
        ("blob", "kind", set(BlobKind)),
        ("segment_commit", "kind", {tables.OUTPUT, tables.ERROR}),
    ],
)
async def test_the_schema_allows_the_values_of_the_enum_and_no_others(
    engine: Engine, table: str, column: str, values: set[str]
) -> None:
    """If this fails, add the value in a migration as well; do not loosen the test."""
    (rule,) = [
        check["sqltext"]
        for check in inspect(engine).get_check_constraints(table)
        if check["name"] == f"ck_{table}_{column}"
    ]
    assert set(re.findall(r"'([^']+)'", rule)) == values


async def test_the_default_project_is_there_from_the_start(engine: Engine) -> None:
    with engine.connect() as connection:
        assert connection.scalars(select(tables.project.c.id)).all() == [DEFAULT_PROJECT]


@pytest.mark.parametrize("version", ["0001", "0002", "0003", "0004", "0005", "0006"])
async def test_a_database_of_an_older_version_is_brought_up_to_date(
    empty_url: str, version: str
) -> None:
    engine = open_engine(empty_url)
    config = Config()
    config.set_main_option("script_location", "batchline.store:migrations")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, version)
    await (await Database.open(empty_url)).close()
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT version_num FROM alembic_version")) == HEAD
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, tables.metadata) == []
    engine.dispose()


async def test_opening_again_changes_nothing(store: Database, store_url: str) -> None:
    again = await Database.open(store_url)
    await again.close()


async def test_a_database_of_a_newer_version_is_refused_and_left_alone(
    store: Database, store_url: str, engine: Engine
) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ConfigError, match="newer version"):
        await Database.open(store_url)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT version_num FROM alembic_version")) == "9999"
        assert connection.scalar(select(func.count()).select_from(tables.project)) == 1


async def test_sqlite_keeps_what_was_committed_through_power_loss(tmp_path: Path) -> None:
    store = await Database.open(sqlite_url(tmp_path / "a b%c?.db"))
    pragmas = await store._read(
        lambda c: [
            c.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        ]
    )
    await store.close()
    assert pragmas == ["wal", 2, 1]
    assert (tmp_path / "a b%c?.db").exists()


def test_migrations_run_from_an_installed_wheel(tmp_path: Path) -> None:
    """The package as a wheel holds it, and no source tree anywhere near."""
    root = Path(batchline.__file__).parents[2]
    if not (root / "pyproject.toml").exists():
        pytest.skip("this is an installed wheel already, and other tests migrated from it")
    build = "import sys, hatchling.build as b; print(b.build_wheel(sys.argv[1]))"
    made = subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)],
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
    )
    with ZipFile(tmp_path / made.stdout.split()[-1]) as wheel:
        wheel.extractall(tmp_path / "site")
    program = """
import asyncio, sys, batchline
from pathlib import Path
from batchline.store.database import Database
from batchline.store.engine import sqlite_url
from batchline.store.schema import HEAD
assert batchline.__file__.startswith(sys.argv[1]), batchline.__file__
async def main():
    store = await Database.open(sqlite_url(Path(sys.argv[1]) / "x.db"))
    assert await store.unfinished_batches() == []
    await store.close()
asyncio.run(main())
"""
    subprocess.run(
        [sys.executable, "-W", "error", "-c", program, str(tmp_path)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site")},
        check=True,
    )


def test_the_newest_migration_is_the_one_that_the_code_knows() -> None:
    """If this fails, set `schema.HEAD` to the new migration: else it is never applied."""
    config = Config()
    config.set_main_option("script_location", "batchline.store:migrations")
    assert ScriptDirectory.from_config(config).get_current_head() == HEAD


def test_a_start_on_a_current_database_needs_no_alembic(tmp_path: Path) -> None:
    program = """
import asyncio, sys
from batchline.store.database import Database
async def main():
    await (await Database.open(sys.argv[1])).close()
asyncio.run(main())
print("alembic" in sys.modules)
"""
    said = [
        subprocess.run(
            [sys.executable, "-c", program, sqlite_url(tmp_path / "x.db")],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        for _ in range(2)
    ]
    assert said == ["True", "False"]
