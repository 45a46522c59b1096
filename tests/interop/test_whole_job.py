"""Official clients, unmodified, by base URL alone: each does the whole job and sees the same."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, Final

import pytest

from tests.interop.conftest import Service
from tests.interop.programs import NODE, WHOLE_JOBS, Program
from tests.interop.recorder import Recorder, recorder
from tests.support.inputs import MODEL, make_lines
from tests.support.server import conserved

pytestmark = pytest.mark.interop

LINES: Final = 3_000
CANCEL_AT: Final = 300


@pytest.mark.rule("S1")
@pytest.mark.rule("S2")
@pytest.mark.rule("S3")
@pytest.mark.rule("S4")
@pytest.mark.parametrize("program", WHOLE_JOBS, ids=str)
async def test_a_client_does_the_whole_job(
    program: Program, service: Service, tmp_path: Path
) -> None:
    """Upload, create, list 250 batches, poll, cancel in the middle, download, be refused.

    What each client saw is compared with one account, so that all saw the same.
    """
    content = make_lines(LINES, awkward=True)
    (tmp_path / "requests.jsonl").write_bytes(content)
    failed_id = service.failed_ids[0]
    await service.backend.clear()
    async with recorder(service.port) as recording:
        said = await program.run(
            tmp_path, recording.base_url, "requests.jsonl", str(CANCEL_AT), failed_id
        )
    saw = [json.loads(line) for line in said.splitlines()]
    file_id, batch_id = saw[1]["id"], saw[2]["id"]
    assert saw == expected_steps(service, len(content), file_id, batch_id)

    batch = service.client.batches.retrieve(batch_id)
    summary = conserved(service.client, batch, content, await service.backend.log())
    assert CANCEL_AT <= summary.finished < LINES
    assert summary.cancelled == LINES - summary.finished
    for name, kept_as in (
        (batch.output_file_id, "output.jsonl"),
        (batch.error_file_id, "error.jsonl"),
    ):
        assert name is not None
        assert (tmp_path / kept_as).read_bytes() == service.client.files.content(name).content

    check_calls(recording, file_id, batch_id, failed_id)
    check_upload(program, recording.request("POST /v1/files"), content)


def expected_steps(
    service: Service, size: int, file_id: str, batch_id: str
) -> list[dict[str, Any]]:
    """What every client is to see. Batches are newest first, and jobs of other clients may lie
    between this one and the 250."""
    ids = [batch.id for batch in service.client.batches.list(limit=7)]
    assert ids[0] == batch_id
    assert ids[-len(service.failed_ids) :] == list(service.failed_ids)
    return [
        {"step": "uploaded", "filename": "requests.jsonl", "bytes": size, "purpose": "batch"},
        {"step": "processed", "id": file_id, "status": "processed"},
        {
            "step": "created",
            "id": batch_id,
            "status": "validating",
            "endpoint": "/v1/chat/completions",
        },
        {"step": "listed", "ids": ids},
        {"step": "running", "status": "in_progress", "model": MODEL, "total": LINES},
        {"step": "cancelling", "id": batch_id, "status": "cancelling"},
        {"step": "ended", "status": "cancelled"},
        {
            "step": "refused",
            "status": 409,
            "code": None,
            "type": "invalid_request_error",
            "message": "Cannot cancel a batch with status 'failed'.",
        },
    ]


def check_calls(recording: Recorder, file_id: str, batch_id: str, failed_id: str) -> None:
    """No call was repeated, and paging stopped when there was no more."""
    calls = Counter(recording.calls)
    assert calls["POST /v1/files"] == 1
    assert calls["POST /v1/batches"] == 1
    assert calls[f"POST /v1/batches/{batch_id}/cancel"] == 1
    assert calls[f"POST /v1/batches/{failed_id}/cancel"] == 1, "a 409 was retried"
    assert calls[f"GET /v1/files/{file_id}"] == 1, "waiting for a file took more than one look"
    pages = [call for call in recording.calls if call.startswith("GET /v1/batches?")]
    assert len(pages) == len(set(pages)) == 3, "250 batches and some, 100 a page"


def check_upload(program: Program, request: bytes, content: bytes) -> None:
    """Node streams a file in chunks, without a length, and with the purpose behind it."""
    assert content[:200] in request
    chunked = b"transfer-encoding: chunked" in request.lower()
    file_first = request.index(b'name="file"') < request.index(b'name="purpose"')
    assert chunked == (program is NODE)
    assert file_first == (program.name in {"node", "go"})
