"""Rows to domain values and back. The only place where a column of unknown type becomes ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import RowMapping

from batchline.domain.ids import BatchId, BlobName, FileId, PartId, ProjectId, UploadId
from batchline.domain.lifecycle import BatchStatus, Stopping
from batchline.domain.model import (
    Batch,
    Blob,
    BlobKind,
    BlobRange,
    Counts,
    File,
    LineProblem,
    Purpose,
    Shard,
    ShardKey,
    Upload,
    UploadPart,
    UploadStatus,
    Usage,
)
from batchline.store.contract import NewBatch
from batchline.store.tables import USAGE_COLUMNS

_PROBLEMS = msgspec.json.Decoder(list[LineProblem])
_METADATA = msgspec.json.Decoder(dict[str, str])
_RECEIPT = msgspec.json.Decoder(dict[str, Any])


def as_json(value: object) -> str:
    """The text that a JSON column holds."""
    return msgspec.json.encode(value).decode()


def usage_values(usage: Usage) -> dict[str, int]:
    """The five usage columns with their values."""
    return {name: getattr(usage, name) for name in USAGE_COLUMNS}


def usage_of(row: RowMapping) -> Usage:
    return Usage(**{name: row[name] for name in USAGE_COLUMNS})


def blob_of(row: RowMapping) -> Blob:
    return Blob(name=BlobName(row["name"]), kind=BlobKind(row["kind"]), bytes=row["bytes"])


def range_of(row: RowMapping) -> BlobRange:
    return BlobRange(
        blob=BlobName(row["blob_name"]), start=row["start"], stop=row["stop"], crc=row["crc"]
    )


def range_values(part: BlobRange) -> dict[str, Any]:
    return {"blob_name": part.blob, "start": part.start, "stop": part.stop, "crc": part.crc}


def file_of(row: RowMapping) -> File:
    return File(
        id=FileId(row["id"]),
        project_id=ProjectId(row["project_id"]),
        purpose=Purpose(row["purpose"]),
        filename=row["filename"],
        bytes=row["bytes"],
        created_at=row["created_at"],
        expires_at=row["expires_at"],
    )


def file_values(file: File) -> dict[str, Any]:
    return {
        "id": file.id,
        "project_id": file.project_id,
        "purpose": file.purpose.value,
        "filename": file.filename,
        "bytes": file.bytes,
        "created_at": file.created_at,
        "expires_at": file.expires_at,
    }


def upload_of(row: RowMapping) -> Upload:
    return Upload(
        id=UploadId(row["id"]),
        project_id=ProjectId(row["project_id"]),
        purpose=Purpose(row["purpose"]),
        filename=row["filename"],
        bytes=row["bytes"],
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        file_expires_after_s=row["file_expires_after_s"],
        status=UploadStatus(row["status"]),
        file_id=row["file_id"],
        recipe=row["recipe"],
    )


def upload_values(upload: Upload) -> dict[str, Any]:
    return {
        "id": upload.id,
        "project_id": upload.project_id,
        "purpose": upload.purpose.value,
        "filename": upload.filename,
        "bytes": upload.bytes,
        "created_at": upload.created_at,
        "expires_at": upload.expires_at,
        "file_expires_after_s": upload.file_expires_after_s,
        "status": upload.status.value,
        "file_id": upload.file_id,
        "recipe": upload.recipe,
    }


def part_of(row: RowMapping) -> UploadPart:
    return UploadPart(
        id=PartId(row["id"]),
        upload_id=UploadId(row["upload_id"]),
        blob_name=BlobName(row["blob_name"]),
        bytes=row["bytes"],
        created_at=row["created_at"],
    )


def part_values(part: UploadPart) -> dict[str, Any]:
    return {
        "id": part.id,
        "upload_id": part.upload_id,
        "blob_name": part.blob_name,
        "bytes": part.bytes,
        "created_at": part.created_at,
    }


def new_batch_values(batch: NewBatch) -> dict[str, Any]:
    """The columns of a batch that has just been asked for; its input is the caller's to add."""
    return {
        "id": batch.id,
        "project_id": batch.project_id,
        "endpoint": batch.endpoint,
        "completion_window": batch.completion_window,
        "input_file_id": batch.input_file_id,
        "status": BatchStatus.VALIDATING.value,
        "created_at": batch.created_at,
        "expires_at": batch.expires_at,
        "metadata": None if batch.metadata is None else as_json(batch.metadata),
        "output_expires_after_s": batch.output_expires_after_s,
        "skip_invalid": batch.skip_invalid,
        "run_once": batch.run_once,
        "total": 0,
        "completed": 0,
        "failed": 0,
        **usage_values(Usage()),
    }


def batch_of(row: RowMapping) -> Batch:
    return Batch(
        sequence=row["sequence"],
        id=BatchId(row["id"]),
        project_id=ProjectId(row["project_id"]),
        endpoint=row["endpoint"],
        completion_window=row["completion_window"],
        input_file_id=FileId(row["input_file_id"]),
        status=BatchStatus(row["status"]),
        stopping=None if row["stopping"] is None else Stopping(row["stopping"]),
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        model=row["model"],
        errors=None if row["errors"] is None else _PROBLEMS.decode(row["errors"]),
        output_file_id=row["output_file_id"],
        error_file_id=row["error_file_id"],
        in_progress_at=row["in_progress_at"],
        finalizing_at=row["finalizing_at"],
        completed_at=row["completed_at"],
        failed_at=row["failed_at"],
        expired_at=row["expired_at"],
        cancelling_at=row["cancelling_at"],
        cancelled_at=row["cancelled_at"],
        counts=Counts(total=row["total"], completed=row["completed"], failed=row["failed"]),
        usage=usage_of(row),
        metadata=None if row["metadata"] is None else _METADATA.decode(row["metadata"]),
        output_expires_after_s=row["output_expires_after_s"],
        skip_invalid=row["skip_invalid"],
        input_blob=row["input_blob"],
        input_bytes=row["input_bytes"],
        plan_blob=row["plan_blob"],
        receipt=None if row["receipt"] is None else receipt_of(row["receipt"]),
        input_crc=row["input_crc"],
        repairs=row["repairs"],
        run_once=row["run_once"],
        calls_saved=row["calls_saved"],
    )


def receipt_of(text: str) -> Mapping[str, object]:
    return _RECEIPT.decode(text)


def problems_json(problems: Sequence[LineProblem]) -> str:
    return as_json(list(problems))


def shard_of(batch_id: BatchId, row: RowMapping) -> Shard:
    return Shard(
        key=ShardKey(batch_id=batch_id, number=row["number"]),
        first_entry=row["first_entry"],
        entries=row["entries"],
        model=row["model"],
        epoch=row["epoch"],
        settled=bytes(row["settled"]),
        completed=row["completed"],
        failed=row["failed"],
        usage=usage_of(row),
        deaths=row["deaths"],
    )
