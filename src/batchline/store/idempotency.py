"""Idempotency keys: which create made which batch."""

from __future__ import annotations

from sqlalchemy import Connection, delete, select

from batchline.domain.ids import BatchId
from batchline.domain.model import Batch
from batchline.store import batches, references
from batchline.store.contract import IdempotencyKey, NewBatch
from batchline.store.tables import idempotency_key


def create_once(connection: Connection, new: NewBatch, key: IdempotencyKey) -> Batch | None:
    """Create the batch unless the key is taken; see `Store.create_batch_once`."""
    while not _take(connection, new, key):
        query = select(idempotency_key.c.fingerprint, idempotency_key.c.batch_id).where(
            idempotency_key.c.project_id == new.project_id, idempotency_key.c.key == key.key
        )
        holder = connection.execute(query).first()
        if holder is not None:
            same = holder.fingerprint == key.fingerprint
            return batches.load(connection, BatchId(holder.batch_id)) if same else None
        # It ran out and was swept between the two statements, so it can be taken now.
    return batches.create(connection, new)


def _take(connection: Connection, new: NewBatch, key: IdempotencyKey) -> bool:
    """Make the key stand for the new batch, which is created under it next; False if it is taken.

    On PostgreSQL a second caller waits here until the first one has committed or failed.
    """
    connection.execute(
        delete(idempotency_key).where(
            idempotency_key.c.project_id == new.project_id,
            idempotency_key.c.key == key.key,
            idempotency_key.c.expires_at <= new.created_at,
        )
    )
    statement = references.insert_into(connection, idempotency_key).values(
        project_id=new.project_id,
        key=key.key,
        fingerprint=key.fingerprint,
        batch_id=new.id,
        expires_at=key.expires_at,
    )
    # SQLAlchemy counts the rows of an INSERT only when it is asked to.
    options = {"preserve_rowcount": True}
    taken = connection.execute(statement.on_conflict_do_nothing(), execution_options=options)
    return taken.rowcount == 1


def drop_expired(connection: Connection, *, now: int) -> None:
    connection.execute(delete(idempotency_key).where(idempotency_key.c.expires_at <= now))
