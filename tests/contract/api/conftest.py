"""The application on a real SQLite store. The store's own suite is run on both databases."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from openai import AsyncOpenAI

from batchline.store.database import Database
from batchline.store.engine import sqlite_url
from tests.contract.api.serving import ApiServer, serving


@pytest.fixture
def store_url(tmp_path: Path, migrated_sqlite: Path) -> str:
    path = tmp_path / "batchline.db"
    shutil.copyfile(migrated_sqlite, path)
    return sqlite_url(path)


@pytest.fixture
async def api(store: Database, tmp_path: Path) -> AsyncIterator[ApiServer]:
    async with serving(store, tmp_path / "blobs") as server:
        yield server


@pytest.fixture
async def client(api: ApiServer) -> AsyncIterator[AsyncOpenAI]:
    """The official client, as a user makes it."""
    async with AsyncOpenAI(base_url=api.base_url, api_key="sk-anything", max_retries=0) as client:
        yield client
