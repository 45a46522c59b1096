"""Files, batches, shards and commits.

Everything is spelled out here and nothing imported from `store.tables`: this file is frozen.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_SEQUENCE = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    _create_projects()
    _create_blobs()
    _create_files()
    _create_batches()
    _create_shards()
    _create_commits()


def downgrade() -> None:
    raise NotImplementedError("restore the copy that was made before the upgrade")


def _usage() -> list[sa.Column[int]]:
    return [
        sa.Column("input_tokens", sa.BigInteger, nullable=False),
        sa.Column("cached_tokens", sa.BigInteger, nullable=False),
        sa.Column("output_tokens", sa.BigInteger, nullable=False),
        sa.Column("reasoning_tokens", sa.BigInteger, nullable=False),
        sa.Column("total_tokens", sa.BigInteger, nullable=False),
    ]


def _create_projects() -> None:
    project = op.create_table(
        "project",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_project"),
    )
    # The one project of a server without keys. It has been there for ever: created_at is 0.
    op.bulk_insert(project, [{"id": "proj_default", "name": "default", "created_at": 0}])


def _create_blobs() -> None:
    op.create_table(
        "blob",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_blob"),
        sa.CheckConstraint(
            "kind IN ('input', 'plan', 'never_run', 'segment')", op.f("ck_blob_kind")
        ),
        sa.CheckConstraint("bytes >= 0", op.f("ck_blob_bytes")),
    )
    op.create_table(
        "blob_reference",
        sa.Column("blob_name", sa.Text, nullable=False),
        sa.Column("holder", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("blob_name", "holder", name="pk_blob_reference"),
        sa.ForeignKeyConstraint(
            ["blob_name"], ["blob.name"], name="fk_blob_reference_blob_name_blob"
        ),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_blob_reference_holder", "blob_reference", ["holder"])


def _create_files() -> None:
    op.create_table(
        "file",
        sa.Column("sequence", _SEQUENCE, autoincrement=True, nullable=False),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("project_id", sa.Text, nullable=False),
        sa.Column("purpose", sa.Text, nullable=False),
        sa.Column("filename", sa.Text, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger),
        sa.Column("deleted_at", sa.BigInteger),
        sa.PrimaryKeyConstraint("sequence", name="pk_file"),
        sa.UniqueConstraint("id", name="uq_file_id"),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name="fk_file_project_id_project"),
        sa.CheckConstraint(
            "purpose IN ('assistants', 'batch', 'batch_output', 'evals', 'fine-tune', 'user_data',"
            " 'vision')",
            op.f("ck_file_purpose"),
        ),
        sa.CheckConstraint("bytes >= 0", op.f("ck_file_bytes")),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_file_project_id_sequence", "file", ["project_id", "sequence"])
    op.create_index("ix_file_expires_at", "file", ["expires_at"])
    op.create_table(
        "file_range",
        sa.Column("file_sequence", _SEQUENCE, autoincrement=False, nullable=False),
        sa.Column("position", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("blob_name", sa.Text, nullable=False),
        sa.Column("start", sa.BigInteger, nullable=False),
        sa.Column("stop", sa.BigInteger, nullable=False),
        sa.Column("crc", sa.BigInteger),
        sa.PrimaryKeyConstraint("file_sequence", "position", name="pk_file_range"),
        sa.ForeignKeyConstraint(
            ["file_sequence"], ["file.sequence"], name="fk_file_range_file_sequence_file"
        ),
        sa.CheckConstraint("0 <= start AND start <= stop", op.f("ck_file_range_range")),
        sqlite_with_rowid=False,
    )


def _create_batches() -> None:
    op.create_table(
        "batch",
        sa.Column("sequence", _SEQUENCE, autoincrement=True, nullable=False),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("project_id", sa.Text, nullable=False),
        sa.Column("endpoint", sa.Text, nullable=False),
        sa.Column("completion_window", sa.Text, nullable=False),
        sa.Column("input_file_id", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("stopping", sa.Text),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.Column("model", sa.Text),
        sa.Column("errors", sa.Text),
        sa.Column("output_file_id", sa.Text),
        sa.Column("error_file_id", sa.Text),
        sa.Column("in_progress_at", sa.BigInteger),
        sa.Column("finalizing_at", sa.BigInteger),
        sa.Column("completed_at", sa.BigInteger),
        sa.Column("failed_at", sa.BigInteger),
        sa.Column("expired_at", sa.BigInteger),
        sa.Column("cancelling_at", sa.BigInteger),
        sa.Column("cancelled_at", sa.BigInteger),
        sa.Column("total", sa.BigInteger, nullable=False),
        sa.Column("completed", sa.BigInteger, nullable=False),
        sa.Column("failed", sa.BigInteger, nullable=False),
        *_usage(),
        sa.Column("metadata", sa.Text),
        sa.Column("output_expires_after_s", sa.BigInteger),
        sa.Column("input_blob", sa.Text),
        sa.Column("input_bytes", sa.BigInteger, nullable=False),
        sa.Column("plan_blob", sa.Text),
        sa.Column("receipt", sa.Text),
        sa.PrimaryKeyConstraint("sequence", name="pk_batch"),
        sa.UniqueConstraint("id", name="uq_batch_id"),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name="fk_batch_project_id_project"),
        *_batch_checks(),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_batch_project_id_sequence", "batch", ["project_id", "sequence"])
    op.create_index("ix_batch_status", "batch", ["status"])


def _batch_checks() -> list[sa.CheckConstraint]:
    return [
        sa.CheckConstraint(
            "status IN ('validating', 'failed', 'in_progress', 'finalizing', 'completed',"
            " 'expired', 'cancelling', 'cancelled')",
            op.f("ck_batch_status"),
        ),
        sa.CheckConstraint(
            "stopping IN ('cancel', 'window', 'input_lost')", op.f("ck_batch_stopping")
        ),
        sa.CheckConstraint(
            "(status IN ('validating', 'in_progress', 'completed') AND stopping IS NULL)"
            " OR (status IN ('cancelling', 'cancelled')"
            " AND stopping IS NOT NULL AND stopping IN ('cancel', 'input_lost'))"
            " OR (status = 'expired' AND stopping IS NOT NULL AND stopping = 'window')"
            " OR (status = 'finalizing'"
            " AND (stopping IS NULL OR stopping IN ('window', 'input_lost')))"
            " OR (status = 'failed' AND (stopping IS NULL OR stopping = 'input_lost'))",
            op.f("ck_batch_stopping_fits_status"),
        ),
        sa.CheckConstraint(
            "completed >= 0 AND failed >= 0 AND completed + failed <= total",
            op.f("ck_batch_counts_add_up"),
        ),
    ]


def _create_shards() -> None:
    op.create_table(
        "shard",
        sa.Column("batch_sequence", _SEQUENCE, autoincrement=False, nullable=False),
        sa.Column("number", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("first_entry", sa.BigInteger, nullable=False),
        sa.Column("entries", sa.BigInteger, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("settled", sa.LargeBinary, nullable=False),
        sa.Column("completed", sa.BigInteger, nullable=False),
        sa.Column("failed", sa.BigInteger, nullable=False),
        *_usage(),
        sa.Column("deaths", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("batch_sequence", "number", name="pk_shard"),
        sa.ForeignKeyConstraint(
            ["batch_sequence"], ["batch.sequence"], name="fk_shard_batch_sequence_batch"
        ),
        sa.CheckConstraint(
            "number >= 0 AND first_entry >= 0 AND entries > 0", op.f("ck_shard_span")
        ),
        sa.CheckConstraint(
            "completed >= 0 AND failed >= 0 AND completed + failed <= entries",
            op.f("ck_shard_counts_add_up"),
        ),
        sa.CheckConstraint("epoch >= 0 AND deaths >= 0", op.f("ck_shard_epoch")),
    )


def _create_commits() -> None:
    op.create_table(
        "segment_commit",
        sa.Column("sequence", _SEQUENCE, autoincrement=True, nullable=False),
        sa.Column("batch_sequence", _SEQUENCE, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("blob_name", sa.Text, nullable=False),
        sa.Column("start", sa.BigInteger, nullable=False),
        sa.Column("stop", sa.BigInteger, nullable=False),
        sa.Column("crc", sa.BigInteger),
        sa.PrimaryKeyConstraint("sequence", name="pk_segment_commit"),
        sa.ForeignKeyConstraint(
            ["batch_sequence"], ["batch.sequence"], name="fk_segment_commit_batch_sequence_batch"
        ),
        sa.CheckConstraint("kind IN ('output', 'error')", op.f("ck_segment_commit_kind")),
        sa.CheckConstraint("0 <= start AND start < stop", op.f("ck_segment_commit_range")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_segment_commit_batch_sequence_kind_sequence",
        "segment_commit",
        ["batch_sequence", "kind", "sequence"],
    )
