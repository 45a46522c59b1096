"""The identifiers of the wire, made from a clock and random bytes that the caller brings.

Shapes from the recorded traffic (`docs/compatibility.md`): `batch_` + 32 hex of which the first
eight are `created_at`; `file-` + 24; `batch_req_` + 32 hex. The line id is *built* from the batch
id so that it is the same after every retry and crash. Nothing parses an id, but for `batchline
run`, which finds the lines that its own cancelled batch left.
"""

from __future__ import annotations

from typing import Final, NewType

ProjectId = NewType("ProjectId", str)
FileId = NewType("FileId", str)
BatchId = NewType("BatchId", str)
UploadId = NewType("UploadId", str)
PartId = NewType("PartId", str)
WorkerId = NewType("WorkerId", str)
KeyId = NewType("KeyId", str)
BlobName = NewType("BlobName", str)

DEFAULT_PROJECT: Final = ProjectId("proj_default")

MAX_CHARS: Final = 128  # no id of ours is longer; a longer one need not be looked up
BATCH_PREFIX: Final = "batch"
RANDOM_BYTES: Final = 12  # 24 hex digits: 96 bits, so that two ids of one second never meet


def project_id(random: bytes) -> ProjectId:
    """`proj_` + 24 hex of 12 random bytes."""
    return ProjectId(f"proj_{random.hex()}")


def key_id(random: bytes) -> KeyId:
    """`key_` + 24 hex of 12 random bytes: what a key is called where the key must not be shown."""
    return KeyId(f"key_{random.hex()}")


def batch_id(created_at: int, random: bytes) -> BatchId:
    """`batch_` + 8 hex of `created_at` (Unix seconds) + 24 hex of 12 random bytes."""
    return BatchId(f"batch_{created_at & 0xFFFFFFFF:08x}{random.hex()}")


def file_id(random: bytes) -> FileId:
    """`file-` (a hyphen) + 24 hex of 12 random bytes."""
    return FileId(f"file-{random.hex()}")


def upload_id(random: bytes) -> UploadId:
    """`upload_` + 24 hex of 12 random bytes."""
    return UploadId(f"upload_{random.hex()}")


def part_id(random: bytes) -> PartId:
    """`part_` + 24 hex of 12 random bytes."""
    return PartId(f"part_{random.hex()}")


def line_id_prefix(batch: BatchId) -> str:
    """What every line id of `batch` begins with; `line_number` in 8 hex digits follows."""
    return f"batch_req_{batch[-24:]}"


def line_id(batch: BatchId, line_number: int) -> str:
    """`batch_req_` + the batch's 24 random hex + 8 hex of the line number (from 1)."""
    return f"{line_id_prefix(batch)}{line_number:08x}"


def line_number(line: str) -> int:
    """The line number (from 1) that `line_id` put into a line id."""
    return int(line[-8:], 16)


def is_plausible(text: str) -> bool:
    """Whether `text` could be an id at all: PostgreSQL, for one, refuses a NUL in a value."""
    return 0 < len(text) <= MAX_CHARS and text.isascii() and text.isprintable()
