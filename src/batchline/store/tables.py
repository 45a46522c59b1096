"""The schema, as SQLAlchemy Core tables; `migrations/` brings a database to it.

The constraints restate what the code promises, so that a wrong statement fails in the database and
not in somebody's output file. Migrations spell everything out again: what ran on a user's machine
must never change because a constant here did. A test compares the two on both databases.

The row of a batch is the lock of everything beneath it (shards, commits, references): whoever
writes below a batch locks its row first, several in ascending order, so nobody waits in a circle.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    false,
)

from batchline.domain.lifecycle import BatchStatus, Stopping
from batchline.domain.model import BlobKind, Purpose, UploadStatus

OUTPUT: Final = "output"
ERROR: Final = "error"

# SQLite numbers rows by itself only in a column of exactly the type INTEGER.
_SEQUENCE: Final = BigInteger().with_variant(Integer, "sqlite")

USAGE_COLUMNS: Final = (
    "input_tokens",
    "cached_tokens",
    "output_tokens",
    "reasoning_tokens",
    "total_tokens",
)

# What `stopping` can be in each status. Spelled with IS NOT NULL because a CHECK that comes out as
# NULL passes.
_STOPPING_FITS: Final = (
    "(status IN ('validating', 'in_progress', 'completed') AND stopping IS NULL)"
    " OR (status IN ('cancelling', 'cancelled')"
    " AND stopping IS NOT NULL AND stopping IN ('cancel', 'input_lost'))"
    " OR (status = 'expired' AND stopping IS NOT NULL AND stopping = 'window')"
    " OR (status = 'finalizing' AND (stopping IS NULL OR stopping IN ('window', 'input_lost')))"
    " OR (status = 'failed' AND (stopping IS NULL OR stopping = 'input_lost'))"
)


def _one_of(column: str, values: Iterable[str]) -> str:
    listed = ", ".join(f"'{value}'" for value in values)
    return f"{column} IN ({listed})"


def _usage_columns(*, since_later: bool = False) -> list[Column[int]]:
    """The five sums; `since_later`: in a table that had rows before it had them."""
    default = "0" if since_later else None
    return [
        Column(name, BigInteger, nullable=False, server_default=default) for name in USAGE_COLUMNS
    ]


metadata: Final = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

project: Final = Table(
    "project",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Index(None, "name", unique=True),
)

# Of a key itself only what cannot be turned back into it is kept.
api_key: Final = Table(
    "api_key",
    metadata,
    Column("id", Text, primary_key=True),
    Column("project_id", Text, ForeignKey("project.id"), nullable=False),
    Column("prefix", Text, nullable=False),
    Column("digest", LargeBinary, nullable=False),  # SHA-256
    Column("created_at", BigInteger, nullable=False),
    Column("revoked_at", BigInteger),
    UniqueConstraint("digest"),
    CheckConstraint("length(digest) = 32", "digest"),
)

blob: Final = Table(
    "blob",
    metadata,
    Column("name", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),  # of a segment: up to its last committed byte
    Column("created_at", BigInteger, nullable=False),
    CheckConstraint(_one_of("kind", BlobKind), "kind"),
    CheckConstraint("bytes >= 0", "bytes"),
)

# References are rows and not a count, so that taking and dropping one twice does no harm.
# A holder is the id of a file, a batch or an upload, `worker:<id>`, or `hidden:<id of a file>` that
# is deleted or expired and whose bytes are not let go yet; they cannot be mistaken for each other.
blob_reference: Final = Table(
    "blob_reference",
    metadata,
    Column("blob_name", Text, ForeignKey("blob.name"), primary_key=True),
    Column("holder", Text, primary_key=True),
    Index(None, "holder"),
    sqlite_with_rowid=False,
)

file: Final = Table(
    "file",
    metadata,
    Column("sequence", _SEQUENCE, primary_key=True, autoincrement=True),
    Column("id", Text, nullable=False),
    Column("project_id", Text, ForeignKey("project.id"), nullable=False),
    Column("purpose", Text, nullable=False),
    Column("filename", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    # Deleted by the caller, or expired and swept. The row stays, hidden: it may be a cursor.
    Column("deleted_at", BigInteger),
    UniqueConstraint("id"),
    CheckConstraint(_one_of("purpose", Purpose), "purpose"),
    CheckConstraint("bytes >= 0", "bytes"),
    Index(None, "project_id", "sequence"),
    Index(None, "expires_at"),
    sqlite_autoincrement=True,  # a sequence is never used twice
)

file_range: Final = Table(
    "file_range",
    metadata,
    Column(
        "file_sequence",
        _SEQUENCE,
        ForeignKey("file.sequence"),
        primary_key=True,
        autoincrement=False,
    ),
    Column("position", BigInteger, primary_key=True, autoincrement=False),  # from 0
    Column("blob_name", Text, nullable=False),
    Column("start", BigInteger, nullable=False),
    Column("stop", BigInteger, nullable=False),
    Column("crc", BigInteger),
    Column("begin", BigInteger, nullable=False, server_default="0"),  # in the file
    CheckConstraint("0 <= start AND start <= stop", "range"),
    Index(None, "file_sequence", "begin"),
    sqlite_with_rowid=False,
)

upload: Final = Table(
    "upload",
    metadata,
    Column("id", Text, primary_key=True),
    Column("project_id", Text, ForeignKey("project.id"), nullable=False),
    Column("purpose", Text, nullable=False),
    Column("filename", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),  # as announced
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("file_expires_after_s", BigInteger),
    Column("status", Text, nullable=False),
    Column("file_id", Text),
    Column("recipe", Text),
    CheckConstraint(_one_of("purpose", Purpose), "purpose"),
    CheckConstraint(_one_of("status", UploadStatus), "status"),
    CheckConstraint("bytes > 0", "bytes"),
    CheckConstraint(
        "(status = 'completed' AND file_id IS NOT NULL AND recipe IS NOT NULL)"
        " OR (status <> 'completed' AND file_id IS NULL AND recipe IS NULL)",
        "file_fits_status",
    ),
    Index(None, "status", "expires_at"),  # the few pending ones, for the sweep
)

# The rows of an upload's parts, and its references on their blobs, go when it is no longer pending.
upload_part: Final = Table(
    "upload_part",
    metadata,
    Column("id", Text, primary_key=True),
    Column("upload_id", Text, ForeignKey("upload.id"), nullable=False),
    Column("blob_name", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    CheckConstraint("bytes >= 0", "bytes"),
    Index(None, "upload_id"),
)

batch: Final = Table(
    "batch",
    metadata,
    Column("sequence", _SEQUENCE, primary_key=True, autoincrement=True),
    Column("id", Text, nullable=False),
    Column("project_id", Text, ForeignKey("project.id"), nullable=False),
    Column("endpoint", Text, nullable=False),
    Column("completion_window", Text, nullable=False),
    Column("input_file_id", Text, nullable=False),  # as asked for; it need not exist
    Column("status", Text, nullable=False),
    Column("stopping", Text),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("model", Text),
    Column("errors", Text),  # JSON: a list of LineProblem
    Column("output_file_id", Text),
    Column("error_file_id", Text),
    Column("in_progress_at", BigInteger),
    Column("finalizing_at", BigInteger),
    Column("completed_at", BigInteger),
    Column("failed_at", BigInteger),
    Column("expired_at", BigInteger),
    Column("cancelling_at", BigInteger),
    Column("cancelled_at", BigInteger),
    Column("total", BigInteger, nullable=False),
    Column("completed", BigInteger, nullable=False),
    Column("failed", BigInteger, nullable=False),
    *_usage_columns(),
    Column("metadata", Text),  # JSON: strings to strings
    Column("output_expires_after_s", BigInteger),
    Column("input_blob", Text),
    Column("input_bytes", BigInteger, nullable=False),
    Column("plan_blob", Text),
    Column("receipt", Text),  # JSON: the cancel receipt
    Column("skip_invalid", Boolean, nullable=False, server_default=false()),
    Column("input_crc", BigInteger),  # CRC-32C
    Column("repairs", Integer, nullable=False, server_default="0"),
    Column("run_once", Boolean, nullable=False, server_default=false()),
    Column("calls_saved", BigInteger, nullable=False, server_default="0"),
    # Of what is committed; the files that come of it have the same ranges at the same places.
    Column("output_bytes", BigInteger, nullable=False, server_default="0"),
    Column("error_bytes", BigInteger, nullable=False, server_default="0"),
    UniqueConstraint("id"),
    CheckConstraint(_one_of("status", BatchStatus), "status"),
    CheckConstraint(_one_of("stopping", Stopping), "stopping"),
    CheckConstraint(_STOPPING_FITS, "stopping_fits_status"),
    CheckConstraint(
        "completed >= 0 AND failed >= 0 AND completed + failed <= total", "counts_add_up"
    ),
    Index(None, "project_id", "sequence"),
    Index(None, "status"),  # the few unfinished ones, at start
    sqlite_autoincrement=True,
)

idempotency_key: Final = Table(
    "idempotency_key",
    metadata,
    Column("project_id", Text, ForeignKey("project.id"), primary_key=True),
    Column("key", Text, primary_key=True),
    Column("fingerprint", Text, nullable=False),
    Column("batch_id", Text, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Index(None, "expires_at"),
)

shard: Final = Table(
    "shard",
    metadata,
    Column(
        "batch_sequence",
        _SEQUENCE,
        ForeignKey("batch.sequence"),
        primary_key=True,
        autoincrement=False,
    ),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("first_entry", BigInteger, nullable=False),
    Column("entries", BigInteger, nullable=False),
    Column("model", Text, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("settled", LargeBinary, nullable=False),
    Column("completed", BigInteger, nullable=False),
    Column("failed", BigInteger, nullable=False),
    *_usage_columns(),
    Column("deaths", Integer, nullable=False),
    CheckConstraint("number >= 0 AND first_entry >= 0 AND entries > 0", "span"),
    CheckConstraint(
        "completed >= 0 AND failed >= 0 AND completed + failed <= entries", "counts_add_up"
    ),
    CheckConstraint("epoch >= 0 AND deaths >= 0", "epoch"),
)

# Records of lines that a stop cut off, until the batch's error file is written with them.
partial_commit: Final = Table(
    "partial_commit",
    metadata,
    Column("sequence", _SEQUENCE, primary_key=True, autoincrement=True),
    Column("batch_sequence", _SEQUENCE, ForeignKey("batch.sequence"), nullable=False),
    Column("blob_name", Text, nullable=False),
    Column("start", BigInteger, nullable=False),
    Column("stop", BigInteger, nullable=False),
    Column("crc", BigInteger),
    CheckConstraint("0 <= start AND start < stop", "range"),
    Index(None, "batch_sequence", "sequence"),
    sqlite_autoincrement=True,
)

segment_commit: Final = Table(
    "segment_commit",
    metadata,
    Column("sequence", _SEQUENCE, primary_key=True, autoincrement=True),
    Column("batch_sequence", _SEQUENCE, ForeignKey("batch.sequence"), nullable=False),
    Column("kind", Text, nullable=False),
    Column("blob_name", Text, nullable=False),
    Column("start", BigInteger, nullable=False),
    Column("stop", BigInteger, nullable=False),
    Column("crc", BigInteger),
    # What has to be taken back when the range is damaged. NULL where nothing could be: lines that
    # were left out of the batch, and what was committed before these columns were there.
    Column("shard_number", Integer),
    Column("lines", LargeBinary),  # `bitmap.packed`: the entries whose results the range holds
    *_usage_columns(since_later=True),
    Column("calls_saved", BigInteger, nullable=False, server_default="0"),  # of these lines
    Column("begin", BigInteger, nullable=False, server_default="0"),  # in the file that it will be
    CheckConstraint(_one_of("kind", (OUTPUT, ERROR)), "kind"),
    CheckConstraint("0 <= start AND start < stop", "range"),
    Index(None, "batch_sequence", "kind", "sequence"),
    Index(None, "batch_sequence", "kind", "begin"),
    sqlite_autoincrement=True,
)
