"""The shapes of the wire, field by field."""

from __future__ import annotations

import json

import pytest

from batchline.api import wire
from batchline.domain.ids import DEFAULT_PROJECT, BatchId, FileId
from batchline.domain.lifecycle import BatchStatus
from batchline.domain.model import Batch, Counts, File, Page, Purpose, Usage

FILE = File(
    id=FileId("file-1"),
    project_id=DEFAULT_PROJECT,
    purpose=Purpose.BATCH_OUTPUT,
    filename="batch_1_output.jsonl",
    bytes=7,
    created_at=1,
    expires_at=None,
)


def file(number: int) -> File:
    return File(
        id=FileId(f"file-{number}"),
        project_id=DEFAULT_PROJECT,
        purpose=Purpose.BATCH,
        filename="a.jsonl",
        bytes=1,
        created_at=number,
        expires_at=None,
    )


@pytest.mark.rule("F13")
def test_a_file_has_exactly_the_services_fields() -> None:
    assert json.dumps(wire.file(FILE)) == json.dumps(
        {
            "id": "file-1",
            "object": "file",
            "bytes": 7,
            "created_at": 1,
            "expires_at": None,
            "filename": "batch_1_output.jsonl",
            "purpose": "batch_output",
            "status": "processed",
            "status_details": None,
        }
    )


@pytest.mark.rule("B1")
def test_a_finished_batch_shows_everything_and_nothing_internal() -> None:
    batch = Batch(
        sequence=99,
        id=BatchId("batch_1"),
        project_id=DEFAULT_PROJECT,
        endpoint="/v1/responses",
        completion_window="24h",
        input_file_id=FileId("file-in"),
        status=BatchStatus.CANCELLED,
        stopping=None,
        created_at=1,
        expires_at=2,
        model="m",
        output_file_id=FileId("file-out"),
        error_file_id=FileId("file-err"),
        in_progress_at=3,
        finalizing_at=4,
        completed_at=5,
        failed_at=6,
        expired_at=7,
        cancelling_at=8,
        cancelled_at=9,
        counts=Counts(total=10, completed=4, failed=1),
        usage=Usage(
            input_tokens=1, cached_tokens=2, output_tokens=3, reasoning_tokens=4, total_tokens=5
        ),
        metadata={},
        output_expires_after_s=3600,
        receipt={"requested_by": "proj"},
    )
    assert json.dumps(wire.batch(batch)) == json.dumps(
        {
            "id": "batch_1",
            "object": "batch",
            "endpoint": "/v1/responses",
            "model": "m",
            "errors": None,
            "input_file_id": "file-in",
            "completion_window": "24h",
            "status": "cancelled",
            "output_file_id": "file-out",
            "error_file_id": "file-err",
            "created_at": 1,
            "in_progress_at": 3,
            "expires_at": 2,
            "finalizing_at": 4,
            "completed_at": 5,
            "failed_at": 6,
            "expired_at": 7,
            "cancelling_at": 8,
            "cancelled_at": 9,
            "request_counts": {"total": 10, "completed": 4, "failed": 1},
            "usage": {
                "input_tokens": 1,
                "input_tokens_details": {"cached_tokens": 2},
                "output_tokens": 3,
                "output_tokens_details": {"reasoning_tokens": 4},
                "total_tokens": 5,
            },
            "metadata": {},
        }
    )


@pytest.mark.rule("F18")
def test_a_page_names_its_first_and_last() -> None:
    page = wire.page(Page(items=[file(3), file(2), file(1)], has_more=True), wire.file)
    assert (page["first_id"], page["last_id"], page["has_more"]) == ("file-3", "file-1", True)
    nothing: list[File] = []
    empty = wire.page(Page(items=nothing, has_more=False), wire.file)
    assert (empty["first_id"], empty["last_id"], empty["data"]) == (None, None, [])


@pytest.mark.rule("H4")
def test_an_error_has_all_four_keys() -> None:
    body = json.loads(wire.encode(wire.error("no", kind="invalid_request_error")))
    assert body == {
        "error": {"message": "no", "type": "invalid_request_error", "param": None, "code": None}
    }
