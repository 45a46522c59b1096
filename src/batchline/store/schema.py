"""Brings a database to the schema that this version of Batchline works with."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy import Connection, Engine, inspect, text

from batchline.domain.errors import ConfigError
from batchline.telemetry import probe

if TYPE_CHECKING:
    from alembic.config import Config

# The newest migration. Alembic is asked only when the database is not there yet: its imports (a
# template language, a highlighter) are a tenth of a restart.
HEAD: Final = "0009"

# Any constant will do; it only has to be the same in every process ("batchline" on a keypad).
_MIGRATION_LOCK = 228_245_463


def migrate(engine: Engine) -> None:
    """Apply the missing migrations, all in one transaction; nothing happens when there are none.

    Raises:
        ConfigError: the database was written by a newer Batchline.
    """
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            # Two servers that start at once; SQLite's BEGIN IMMEDIATE is that lock already.
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
        if _version(connection) != HEAD:
            probe("schema.before")
            _upgrade(connection)
            probe("schema.inside")
    probe("schema.after")


def refuse_newer(path: Path) -> None:
    """Look at the version of the SQLite database `path`, if it is there, and change nothing.

    For before anything else is done with what lies around the database. One that cannot be read
    is passed: whoever opens it says what is wrong.

    Raises:
        ConfigError: the database was written by a newer Batchline.
    """
    log = path.with_name(f"{path.name}-wal")
    # Without a log, SQLite would leave an empty one behind; as immutable, it is not looked for.
    only_reading = "mode=ro" if log.exists() else "mode=ro&immutable=1"
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?{only_reading}", uri=True)) as db:
            found = db.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.Error:
        return
    if found is not None and str(found[0]) > HEAD:
        raise ConfigError(
            f"{path} was written by a newer Batchline (schema {found[0]}, this one knows up to"
            f" {HEAD}): upgrade, or restore a backup of before; nothing was changed"
        )


def _version(connection: Connection) -> str | None:
    """The migration that the database was brought to last; None for an empty one."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def _upgrade(connection: Connection) -> None:
    from alembic import command
    from alembic.util import CommandError

    try:
        command.upgrade(_config(connection), "head")
    except CommandError as exc:
        raise ConfigError(
            "the database was written by a newer version of Batchline; start that version"
        ) from exc


def _config(connection: Connection) -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "batchline.store:migrations")
    config.attributes["connection"] = connection
    return config
