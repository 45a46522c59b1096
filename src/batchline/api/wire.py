"""The shapes of the wire: every field of every object in the service's order, nulls included.

The field tables are in `docs/compatibility.md`; SDK types read a missing field as null, but what
clients log and compare is the text, so nothing is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import ceil
from typing import Final, TypeVar

import msgspec

from batchline.domain.ids import FileId
from batchline.domain.model import Batch, Counts, File, LineProblem, Page, Upload, UploadPart, Usage
from batchline.service.progress import Progress
from batchline.service.validation import ValidationResult

T = TypeVar("T")
Shape = Mapping[str, object]

JSON_TYPE: Final = "application/json"

encode: Final = msgspec.json.Encoder().encode


def file(value: File) -> Shape:
    """The File object. `status` is deprecated and required: a stored file is `processed`."""
    return {
        "id": value.id,
        "object": "file",
        "bytes": value.bytes,
        "created_at": value.created_at,
        "expires_at": value.expires_at,
        "filename": value.filename,
        "purpose": value.purpose.value,
        "status": "processed",  # anything else has `wait_for_processing` poll for half an hour
        "status_details": None,
    }


def file_deleted(file_id: FileId) -> Shape:
    return {"id": file_id, "object": "file", "deleted": True}


def upload(value: Upload, becomes: File | None = None) -> Shape:
    """The Upload object; `becomes` is the file of one that is completed."""
    return {
        "id": value.id,
        "object": "upload",
        "bytes": value.bytes,
        "created_at": value.created_at,
        "filename": value.filename,
        "purpose": value.purpose.value,
        "status": value.status.value,
        "expires_at": value.expires_at,
        "file": None if becomes is None else file(becomes),
    }


def upload_part(value: UploadPart) -> Shape:
    return {
        "id": value.id,
        "object": "upload.part",
        "created_at": value.created_at,
        "upload_id": value.upload_id,
    }


def batch(value: Batch) -> Shape:
    """The Batch object; `errors` is null unless the batch failed validation."""
    return {
        "id": value.id,
        "object": "batch",
        "endpoint": value.endpoint,
        "model": value.model,
        "errors": None if value.errors is None else _problems(value.errors),
        "input_file_id": value.input_file_id,
        "completion_window": value.completion_window,
        "status": value.status.value,
        "output_file_id": value.output_file_id,
        "error_file_id": value.error_file_id,
        "created_at": value.created_at,
        "in_progress_at": value.in_progress_at,
        "expires_at": value.expires_at,
        "finalizing_at": value.finalizing_at,
        "completed_at": value.completed_at,
        "failed_at": value.failed_at,
        "expired_at": value.expired_at,
        "cancelling_at": value.cancelling_at,
        "cancelled_at": value.cancelled_at,
        "request_counts": _counts(value.counts),
        "usage": _usage(value.usage),
        "metadata": value.metadata,
    }


def receipt(value: Batch) -> Shape:
    """The receipt of a batch: an extension. Null is what is not known, or not known yet."""
    told = value.receipt or {}
    return {
        "object": "batch.receipt",
        "batch_id": value.id,
        "status": value.status.value,
        "requested_at": value.cancelling_at,
        **{name: told.get(name) for name in _RECEIPT},
        "calls_saved": value.calls_saved,
    }


def progress(value: Progress) -> Shape:
    """How far a batch is: an extension. Null is what cannot be told (yet, or of such a batch)."""
    found, left, rates = value.batch, value.left, value.rates
    return {
        "object": "batch.progress",
        "batch_id": found.id,
        "status": found.status.value,
        "at": int(value.at),
        "request_counts": _counts(value.counts),
        "rate_per_s": None if rates is None else round(rates.lines_per_s, 3),
        "tokens_per_s": None if rates is None else round(rates.tokens_per_s, 3),
        "expected_end_at": None if left is None else round(value.at + left.likely),
        "expected_end_low": None if left is None else int(value.at + left.least),
        "expected_end_high": None if left is None else ceil(value.at + left.most),
        "ended_at": _ended_at(found),
        "expires_at": found.expires_at,
        "waiting": [
            {"code": wait.code.value, "message": wait.message, "backend": wait.backend}
            for wait in value.waits
        ],
    }


def validation(value: ValidationResult) -> Shape:
    """What a dry run found: an extension. `lines` is 0 where the batch would not start.

    `errors` are why it would not, or the first of the `skipped` lines of one that would.
    """
    problems = value.problems or value.skipped_problems
    return {
        "object": "batch.validation",
        "valid": not value.problems,
        "model": value.model,
        "lines": value.lines,
        "skipped": value.skipped,
        "errors": _problems(problems) if problems else None,
    }


_RECEIPT: Final = (
    *("requested_by", "acknowledged_ms", "in_flight_at_acknowledgement", "workers_killed"),
    *("quiet", "quiet_ms", "lines_finished", "lines_aborted", "lines_never_sent", "backends"),
)


def _problems(problems: Sequence[LineProblem]) -> Shape:
    return {
        "object": "list",
        "data": [
            {
                "code": problem.code,
                "message": problem.message,
                "param": problem.param,
                "line": problem.line_number,
            }
            for problem in problems
        ],
    }


def _ended_at(value: Batch) -> int | None:
    ends = (value.completed_at, value.failed_at, value.expired_at, value.cancelled_at)
    return next((at for at in ends if at is not None), None)


def _counts(value: Counts) -> Shape:
    return {"total": value.total, "completed": value.completed, "failed": value.failed}


def _usage(value: Usage) -> Shape:
    return {
        "input_tokens": value.input_tokens,
        "input_tokens_details": {"cached_tokens": value.cached_tokens},
        "output_tokens": value.output_tokens,
        "output_tokens_details": {"reasoning_tokens": value.reasoning_tokens},
        "total_tokens": value.total_tokens,
    }


def page(value: Page[T], shape: Callable[[T], Shape]) -> Shape:
    """The list envelope of one page; the ids are null when it is empty."""
    return envelope([shape(item) for item in value.items], has_more=value.has_more)


def envelope(data: Sequence[Shape], *, has_more: bool) -> Shape:
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": has_more,
    }


def error(message: str, *, kind: str, param: str | None = None, code: str | None = None) -> Shape:
    """The error envelope: all four keys, always. `kind` is the wire's `type`."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
