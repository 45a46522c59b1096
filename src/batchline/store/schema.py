"""Brings a database to the schema that this version of Batchline works with."""

from __future__ import annotations

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, text

from batchline.domain.errors import ConfigError

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
        try:
            command.upgrade(_config(connection), "head")
        except CommandError as exc:
            raise ConfigError(
                "the database was written by a newer version of Batchline; start that version"
            ) from exc


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", "batchline.store:migrations")
    config.attributes["connection"] = connection
    return config
