"""API keys, and one project of a name.

Everything is spelled out here and nothing imported from `store.tables`: this file is frozen.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_project_name", "project", ["name"], unique=True)
    op.create_table(
        "api_key",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("project_id", sa.Text, nullable=False),
        sa.Column("prefix", sa.Text, nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("revoked_at", sa.BigInteger),
        sa.PrimaryKeyConstraint("id", name="pk_api_key"),
        sa.ForeignKeyConstraint(
            ["project_id"], ["project.id"], name="fk_api_key_project_id_project"
        ),
        sa.UniqueConstraint("digest", name="uq_api_key_digest"),
        sa.CheckConstraint("length(digest) = 32", op.f("ck_api_key_digest")),
    )


def downgrade() -> None:
    raise NotImplementedError("restore the copy that was made before the upgrade")
