"""What a committed range holds, so that a damaged one can be taken back; CRCs of inputs.

Everything is spelled out here and nothing imported from `store.tables`: this file is frozen.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("batch", sa.Column("input_crc", sa.BigInteger))
    op.add_column("batch", sa.Column("repairs", sa.Integer, nullable=False, server_default="0"))
    op.add_column("segment_commit", sa.Column("shard_number", sa.Integer))
    op.add_column("segment_commit", sa.Column("lines", sa.LargeBinary))
    for name in (
        "input_tokens",
        "cached_tokens",
        "output_tokens",
        "reasoning_tokens",
        "total_tokens",
    ):
        op.add_column(
            "segment_commit", sa.Column(name, sa.BigInteger, nullable=False, server_default="0")
        )


def downgrade() -> None:
    raise NotImplementedError("restore the copy that was made before the upgrade")
