"""Runs migrations on the connection that `store.schema.migrate` brings; never opens its own."""

from __future__ import annotations

from alembic import context

from batchline.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # True on SQLite as well: `store.engine` begins transactions by itself there, so a migration
    # that fails half way leaves nothing behind on either database.
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
