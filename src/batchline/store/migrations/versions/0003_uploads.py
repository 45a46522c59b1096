"""Uploads in parts.

Everything is spelled out here and nothing imported from `store.tables`: this file is frozen.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "upload",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("project_id", sa.Text, nullable=False),
        sa.Column("purpose", sa.Text, nullable=False),
        sa.Column("filename", sa.Text, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.Column("file_expires_after_s", sa.BigInteger),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("file_id", sa.Text),
        sa.Column("recipe", sa.Text),
        sa.PrimaryKeyConstraint("id", name="pk_upload"),
        sa.ForeignKeyConstraint(
            ["project_id"], ["project.id"], name="fk_upload_project_id_project"
        ),
        sa.CheckConstraint(
            "purpose IN ('assistants', 'batch', 'batch_output', 'evals', 'fine-tune', 'user_data',"
            " 'vision')",
            op.f("ck_upload_purpose"),
        ),
        sa.CheckConstraint(
            "status IN ('pending', 'completed', 'cancelled', 'expired')", op.f("ck_upload_status")
        ),
        sa.CheckConstraint("bytes > 0", op.f("ck_upload_bytes")),
        sa.CheckConstraint(
            "(status = 'completed' AND file_id IS NOT NULL AND recipe IS NOT NULL)"
            " OR (status <> 'completed' AND file_id IS NULL AND recipe IS NULL)",
            op.f("ck_upload_file_fits_status"),
        ),
    )
    op.create_index("ix_upload_status_expires_at", "upload", ["status", "expires_at"])
    op.create_table(
        "upload_part",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("upload_id", sa.Text, nullable=False),
        sa.Column("blob_name", sa.Text, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_upload_part"),
        sa.ForeignKeyConstraint(
            ["upload_id"], ["upload.id"], name="fk_upload_part_upload_id_upload"
        ),
        sa.CheckConstraint("bytes >= 0", op.f("ck_upload_part_bytes")),
    )
    op.create_index("ix_upload_part_upload_id", "upload_part", ["upload_id"])


def downgrade() -> None:
    raise NotImplementedError("restore the copy that was made before the upgrade")
