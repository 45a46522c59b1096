"""The steps of SQLite's own machine: what a query costs, on any computer."""

from __future__ import annotations

import sqlite3

import pytest
from sqlalchemy import Engine, event


class Steps:
    """Of all statements on `engine` from now on, in tens. Skips a test on another database."""

    def __init__(self, engine: Engine) -> None:
        if engine.dialect.name != "sqlite":
            pytest.skip("its planner reads an index in order, but counts nothing")
        self.count = 0
        event.listen(engine, "connect", self._watch)
        engine.dispose()  # so that it connects anew

    def _watch(self, connection: sqlite3.Connection, _: object) -> None:
        connection.set_progress_handler(self._step, 10)

    def _step(self) -> None:
        self.count += 1
