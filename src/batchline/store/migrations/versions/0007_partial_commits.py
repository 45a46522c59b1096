"""What had been generated of lines that a stop cut off.

Everything is spelled out here and nothing imported from `store.tables`: this file is frozen.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_SEQUENCE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "partial_commit",
        sa.Column("sequence", _SEQUENCE, autoincrement=True),
        sa.Column("batch_sequence", _SEQUENCE, nullable=False),
        sa.Column("blob_name", sa.Text, nullable=False),
        sa.Column("start", sa.BigInteger, nullable=False),
        sa.Column("stop", sa.BigInteger, nullable=False),
        sa.Column("crc", sa.BigInteger),
        sa.PrimaryKeyConstraint("sequence", name="pk_partial_commit"),
        sa.ForeignKeyConstraint(
            ["batch_sequence"], ["batch.sequence"], name="fk_partial_commit_batch_sequence_batch"
        ),
        sa.CheckConstraint("0 <= start AND start < stop", op.f("ck_partial_commit_range")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_partial_commit_batch_sequence_sequence",
        "partial_commit",
        ["batch_sequence", "sequence"],
    )


def downgrade() -> None:
    raise NotImplementedError("restore the copy that was made before the upgrade")
