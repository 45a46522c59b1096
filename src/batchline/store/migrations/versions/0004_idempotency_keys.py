"""Idempotency keys of batches.

Everything is spelled out here and nothing imported from `store.tables`: this file is frozen.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "idempotency_key",
        sa.Column("project_id", sa.Text, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.Column("batch_id", sa.Text, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("project_id", "key", name="pk_idempotency_key"),
        sa.ForeignKeyConstraint(
            ["project_id"], ["project.id"], name="fk_idempotency_key_project_id_project"
        ),
    )
    op.create_index("ix_idempotency_key_expires_at", "idempotency_key", ["expires_at"])


def downgrade() -> None:
    raise NotImplementedError("restore the copy that was made before the upgrade")
