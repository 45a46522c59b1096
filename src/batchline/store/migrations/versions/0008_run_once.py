"""Batches whose identical requests run once, and how many calls that saved.

Everything is spelled out here and nothing imported from `store.tables`: this file is frozen.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "batch", sa.Column("run_once", sa.Boolean, nullable=False, server_default=sa.false())
    )
    for table in ("batch", "segment_commit"):
        op.add_column(
            table, sa.Column("calls_saved", sa.BigInteger, nullable=False, server_default="0")
        )


def downgrade() -> None:
    raise NotImplementedError("restore the copy that was made before the upgrade")
