"""Where in its file each range begins, so that a part of a file is found without what is before it.

Everything is spelled out here and nothing imported from `store.tables`: this file is frozen.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

# Sums of what comes before. PostgreSQL sums BIGINT as NUMERIC, hence the casts.
_FILE_RANGES = """
UPDATE file_range SET begin = placed.begin FROM (
    SELECT file_sequence, position, CAST(
        SUM(stop - start) OVER (PARTITION BY file_sequence ORDER BY position) AS BIGINT
    ) - (stop - start) AS begin FROM file_range
) AS placed
WHERE placed.file_sequence = file_range.file_sequence AND placed.position = file_range.position
"""
_COMMITS = """
UPDATE segment_commit SET begin = placed.begin FROM (
    SELECT sequence, CAST(
        SUM(stop - start) OVER (PARTITION BY batch_sequence, kind ORDER BY sequence) AS BIGINT
    ) - (stop - start) AS begin FROM segment_commit
) AS placed
WHERE placed.sequence = segment_commit.sequence
"""
_BATCHES = """
UPDATE batch SET {kind}_bytes = CAST(committed.bytes AS BIGINT) FROM (
    SELECT batch_sequence, SUM(stop - start) AS bytes FROM segment_commit
    WHERE kind = '{kind}' GROUP BY batch_sequence
) AS committed
WHERE committed.batch_sequence = batch.sequence
"""


def upgrade() -> None:
    for table, name in (
        ("batch", "output_bytes"),
        ("batch", "error_bytes"),
        ("segment_commit", "begin"),
        ("file_range", "begin"),
    ):
        op.add_column(table, sa.Column(name, sa.BigInteger, nullable=False, server_default="0"))
    op.execute(_FILE_RANGES)
    op.execute(_COMMITS)
    for kind in ("output", "error"):
        op.execute(_BATCHES.format(kind=kind))
    op.create_index(
        op.f("ix_segment_commit_batch_sequence_kind_begin"),
        "segment_commit",
        ["batch_sequence", "kind", "begin"],
    )
    op.create_index(
        op.f("ix_file_range_file_sequence_begin"), "file_range", ["file_sequence", "begin"]
    )


def downgrade() -> None:
    raise NotImplementedError("restore the copy that was made before the upgrade")
