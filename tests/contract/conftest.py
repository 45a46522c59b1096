"""The stores and blob stores that `tests/contract/` holds to their promises."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, insert

from batchline.domain.ids import ProjectId
from batchline.store.blobs import LocalBlobs
from batchline.store.database import Database
from batchline.store.engine import open_engine, sqlite_url
from batchline.store.tables import project
from tests.contract.store_rows import OTHER_PROJECT
from tests.support.forked_workers import executed_workers, forked_workers
from tests.support.small_disk import mounted_disk

__all__ = ["executed_workers", "forked_workers"]  # fixtures


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database of each kind as a first start makes it."""
    if request.param == "sqlite":
        path = tmp_path / "batchline.db"
        shutil.copyfile(request.getfixturevalue("migrated_sqlite"), path)
        return sqlite_url(path)
    return str(request.getfixturevalue("migrated_postgres_url"))


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database of each kind without a table."""
    if request.param == "sqlite":
        return sqlite_url(tmp_path / "batchline.db")
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[Database]:
    database = await Database.open(store_url)
    yield database
    await database.close()


@pytest.fixture
def engine(store: Database, store_url: str) -> Iterator[Engine]:
    """A second way into the store's database, for what the contract does not show."""
    engine = open_engine(store_url)
    yield engine
    engine.dispose()


@pytest.fixture
def other_project(engine: Engine) -> ProjectId:
    with engine.begin() as connection:
        connection.execute(insert(project), {"id": OTHER_PROJECT, "name": "other", "created_at": 0})
    return OTHER_PROJECT


@pytest.fixture
def blobs(tmp_path: Path) -> LocalBlobs:
    return LocalBlobs(tmp_path / "blobs")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 2 MiB, for filling up."""
    with mounted_disk(tmp_path / "small", mib=2) as mount_point:
        yield mount_point
