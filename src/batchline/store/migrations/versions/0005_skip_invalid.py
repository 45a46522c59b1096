"""Batches that leave invalid lines out.

Everything is spelled out here and nothing imported from `store.tables`: this file is frozen.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "batch", sa.Column("skip_invalid", sa.Boolean, nullable=False, server_default=sa.false())
    )


def downgrade() -> None:
    raise NotImplementedError("restore the copy that was made before the upgrade")
