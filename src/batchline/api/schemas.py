"""The objects of the wire as JSON Schema (2020-12), each with exactly the fields that it has.

What `wire.py` answers and what bodies may say, for the OpenAPI document. Names, values and bounds
are those of the code; nulls are types, since no field of an answer is ever left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from batchline.api.errors import INVALID_REQUEST, SERVER_ERROR
from batchline.api.json_schema import (
    BINARY,
    COUNT,
    EXTENSION,
    MILLISECONDS,
    TEXT,
    TIME,
    Schema,
    const,
    nullable,
    one_of,
    record,
    ref,
)
from batchline.domain import ids
from batchline.domain.lifecycle import BatchStatus
from batchline.domain.model import Endpoint, Purpose, UploadStatus
from batchline.domain.waiting import WaitCode
from batchline.executor.contract import CancelBy
from batchline.service import idempotency
from batchline.service.batches import (
    IDENTICAL_REQUESTS,
    INVALID_LINES,
    MAX_METADATA_KEY_CHARS,
    MAX_METADATA_PAIRS,
    MAX_METADATA_VALUE_CHARS,
)
from batchline.service.file_rules import MAX_EXPIRY_S, MIN_EXPIRY_S, UPLOAD_PURPOSES
from batchline.service.receipts import Proof
from batchline.service.upload_orders import MAX_FILENAME_CHARS

_PRINTABLE_ASCII: Final = "^[ -~]+$"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the settings of a server say about bodies."""

    windows: Sequence[str]
    max_upload_bytes: int


def page_of(name: str) -> Schema:
    """The list envelope. The ids are null when it is empty."""
    return record(
        {
            "object": const("list"),
            "data": {"type": "array", "items": ref(name)},
            "first_id": nullable(TEXT),
            "last_id": nullable(TEXT),
            "has_more": {"type": "boolean"},
        }
    )


IDEMPOTENCY_KEY: Final[Schema] = {
    "type": "string",
    "minLength": 1,
    "maxLength": idempotency.MAX_KEY_CHARS,
    "pattern": _PRINTABLE_ASCII,
    "description": "The same key with the same parameters gives the same batch, for a day.",
    **EXTENSION,
}


def upload_purpose() -> Schema:
    """What a file may be uploaded for."""
    return one_of(UPLOAD_PURPOSES)


def expiry_anchor() -> Schema:
    return one_of(["created_at"])


def expiry_seconds() -> Schema:
    return {"type": "integer", "minimum": MIN_EXPIRY_S, "maximum": MAX_EXPIRY_S}


def schemas(limits: Limits) -> Mapping[str, Schema]:
    """Every object that has a name, in alphabetical order."""
    named = {**_answers(), **_bodies(limits)}
    return {name: named[name] for name in sorted(named)}


# -- answers -----------------------------------------------------------------------------------


def _answers() -> Mapping[str, Schema]:
    return {
        "Batch": _batch(),
        "BatchError": record(
            {"code": TEXT, "message": TEXT, "param": nullable(TEXT), "line": nullable(_from_one())}
        ),
        "BatchErrors": record(
            {"object": const("list"), "data": {"type": "array", "items": ref("BatchError")}}
        ),
        "BatchProgress": _progress(),
        "BatchReceipt": _receipt(),
        "BatchUsage": record(
            {
                "input_tokens": COUNT,
                "input_tokens_details": record({"cached_tokens": COUNT}),
                "output_tokens": COUNT,
                "output_tokens_details": record({"reasoning_tokens": COUNT}),
                "total_tokens": COUNT,
            }
        ),
        "BatchValidation": {
            **record(
                {
                    "object": const("batch.validation"),
                    "valid": {"type": "boolean"},
                    "model": nullable(TEXT),
                    "lines": COUNT,
                    "skipped": COUNT,
                    "errors": nullable(ref("BatchErrors")),
                }
            ),
            **EXTENSION,
        },
        "DeletedFile": record({"id": TEXT, "object": const("file"), "deleted": {"const": True}}),
        "Endpoint": one_of(list(Endpoint)),
        "Error": record({"error": ref("ErrorObject")}),
        "ErrorObject": record(
            {
                "message": {"type": "string", "minLength": 1},
                "type": one_of([INVALID_REQUEST, SERVER_ERROR]),
                "param": nullable(TEXT),
                "code": nullable(TEXT),
            }
        ),
        "File": record(
            {
                "id": TEXT,
                "object": const("file"),
                "bytes": COUNT,
                "created_at": TIME,
                "expires_at": nullable(TIME),
                "filename": TEXT,
                "purpose": one_of(list(Purpose)),
                "status": const("processed"),
                "status_details": {"type": "null"},
            }
        ),
        "Liveness": {**record({"status": const("alive")}), **EXTENSION},
        "Model": record({"id": TEXT, "object": const("model"), "created": TIME, "owned_by": TEXT}),
        "Readiness": {**record({"status": const("ready"), **_readiness()}), **EXTENSION},
        "Unreadiness": {
            **record({"status": const("unready"), **_readiness(), "error": ref("ErrorObject")}),
            **EXTENSION,
        },
        "Upload": record(
            {
                "id": TEXT,
                "object": const("upload"),
                "bytes": COUNT,
                "created_at": TIME,
                "filename": TEXT,
                "purpose": one_of(list(Purpose)),
                "status": one_of(list(UploadStatus)),
                "expires_at": TIME,
                "file": nullable(ref("File")),
            }
        ),
        "UploadPart": record(
            {"id": TEXT, "object": const("upload.part"), "created_at": TIME, "upload_id": TEXT}
        ),
    }


def _batch() -> Schema:
    return record(
        {
            "id": TEXT,
            "object": const("batch"),
            "endpoint": ref("Endpoint"),
            "model": nullable(TEXT),
            "errors": nullable(ref("BatchErrors")),
            "input_file_id": TEXT,
            "completion_window": TEXT,
            "status": one_of(list(BatchStatus)),
            "output_file_id": nullable(TEXT),
            "error_file_id": nullable(TEXT),
            "created_at": TIME,
            "in_progress_at": nullable(TIME),
            "expires_at": TIME,
            "finalizing_at": nullable(TIME),
            "completed_at": nullable(TIME),
            "failed_at": nullable(TIME),
            "expired_at": nullable(TIME),
            "cancelling_at": nullable(TIME),
            "cancelled_at": nullable(TIME),
            "request_counts": _counts(),
            "usage": ref("BatchUsage"),
            "metadata": nullable(ref("Metadata")),
        }
    )


def _counts() -> Schema:
    return record({"total": COUNT, "completed": COUNT, "failed": COUNT})


def _progress() -> Schema:
    pace = nullable({"type": "number", "minimum": 0})
    wait = record({"code": one_of(list(WaitCode)), "message": TEXT, "backend": nullable(TEXT)})
    return {
        **record(
            {
                "object": const("batch.progress"),
                "batch_id": TEXT,
                "status": one_of(list(BatchStatus)),
                "at": TIME,
                "request_counts": _counts(),
                "rate_per_s": pace,
                "tokens_per_s": pace,
                "expected_end_at": nullable(TIME),
                "expected_end_low": nullable(TIME),
                "expected_end_high": nullable(TIME),
                "ended_at": nullable(TIME),
                "expires_at": TIME,
                "waiting": {"type": "array", "items": wait},
            }
        ),
        **EXTENSION,
    }


def _receipt() -> Schema:
    asker = record({"project_id": TEXT, "key_id": nullable(TEXT)})
    counts = ("in_flight", "finished_late", "answered", "closed", "called", "calls_failed")
    backend = record(
        {
            "name": TEXT,
            "cancel": one_of(list(CancelBy)),
            **{name: nullable(COUNT) for name in (*counts, "unanswered")},
            "quiet": {"type": "boolean"},
            "proof": one_of(list(Proof)),
        }
    )
    return {
        **record(
            {
                "object": const("batch.receipt"),
                "batch_id": TEXT,
                "status": one_of(list(BatchStatus)),
                "requested_at": nullable(TIME),
                "requested_by": nullable(asker),
                "acknowledged_ms": nullable(MILLISECONDS),
                "in_flight_at_acknowledgement": nullable(COUNT),
                "workers_killed": nullable({"type": "array", "items": TEXT}),
                "quiet": nullable({"type": "boolean"}),
                "quiet_ms": nullable(MILLISECONDS),
                "lines_finished": nullable(COUNT),
                "lines_aborted": nullable(COUNT),
                "lines_never_sent": nullable(COUNT),
                "backends": nullable({"type": "array", "items": backend}),
                "calls_saved": COUNT,
            }
        ),
        **EXTENSION,
    }


def _readiness() -> Mapping[str, Schema]:
    backend = record(
        {
            "name": TEXT,
            "state": TEXT,
            "reason": nullable(TEXT),
            "code": nullable(one_of(list(WaitCode))),
            "models": {"type": "array", "items": TEXT},
        }
    )
    return {
        "reasons": {"type": "array", "items": TEXT},
        "backends": {"type": "array", "items": backend},
        "workers": record({"wanted": COUNT, "running": COUNT}),
        "disk": record({"state": TEXT, "free_bytes": nullable(COUNT)}),
        "damaged": COUNT,
    }


def _from_one() -> Schema:
    return {"type": "integer", "minimum": 1}


# -- bodies ------------------------------------------------------------------------------------


def _bodies(limits: Limits) -> Mapping[str, Schema]:
    return {
        "CreateBatch": _create_batch(limits),
        "CreateFile": _create_file(),
        "CreateUpload": record(
            {
                "filename": {
                    "type": "string",
                    "minLength": 1,
                    "maxLength": MAX_FILENAME_CHARS,
                    "description": "For a batch: without an extension, or `.jsonl`.",
                },
                "purpose": upload_purpose(),
                "bytes": {"type": "integer", "minimum": 1, "maximum": limits.max_upload_bytes},
                "mime_type": {"type": "string", "description": "Must be there; says nothing."},
                "expires_after": nullable(ref("ExpiresAfter")),
            },
            optional=["expires_after"],
        ),
        "AddUploadPart": {
            "type": "object",
            "properties": {"data": BINARY},
            "required": ["data"],
        },
        "CompleteUpload": record(
            {
                "part_ids": {
                    "type": "array",
                    "items": TEXT,
                    "minItems": 1,  # an upload has a byte at least
                    "uniqueItems": True,
                },
                "md5": nullable({"type": "string", "pattern": "^[0-9a-fA-F]{32}$"}),
            },
            optional=["md5"],
        ),
        "ExpiresAfter": record({"anchor": expiry_anchor(), "seconds": expiry_seconds()}),
        "Metadata": {
            "type": "object",
            "maxProperties": MAX_METADATA_PAIRS,
            "propertyNames": {"maxLength": MAX_METADATA_KEY_CHARS},
            "additionalProperties": {"type": "string", "maxLength": MAX_METADATA_VALUE_CHARS},
        },
    }


def _create_batch(limits: Limits) -> Schema:
    return record(
        {
            "input_file_id": {
                "type": "string",
                "minLength": 1,
                "maxLength": ids.MAX_CHARS,
                "pattern": _PRINTABLE_ASCII,
                "description": "Whether there is such a file is the batch's validation.",
            },
            "endpoint": ref("Endpoint"),
            "completion_window": one_of(limits.windows),
            "metadata": nullable(ref("Metadata")),
            "output_expires_after": nullable(ref("ExpiresAfter")),
            "invalid_lines": {
                **nullable({**one_of(INVALID_LINES), "default": INVALID_LINES[0]}),
                **EXTENSION,
            },
            "identical_requests": {
                **nullable(one_of(IDENTICAL_REQUESTS)),
                "description": "Left out: as the project's settings have it; else `run_each`.",
                **EXTENSION,
            },
            idempotency.FIELD: {**nullable(IDEMPOTENCY_KEY), **EXTENSION},
        },
        optional=[
            *("metadata", "output_expires_after", "invalid_lines", "identical_requests"),
            idempotency.FIELD,
        ],
    )


def _create_file() -> Schema:
    """A form; fields that are not known are passed over. Dots do for brackets in the names."""
    anchor, seconds = "expires_after[anchor]", "expires_after[seconds]"
    return {
        "type": "object",
        "properties": {
            "file": BINARY,
            "purpose": upload_purpose(),
            anchor: expiry_anchor(),
            seconds: expiry_seconds(),
        },
        "required": ["file", "purpose"],
        "dependentRequired": {anchor: [seconds], seconds: [anchor]},
    }
