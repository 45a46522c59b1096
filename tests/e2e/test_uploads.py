"""Uploads in parts to a real server: batches run on them, memory stays small, time passes."""

from __future__ import annotations

import time
from pathlib import Path

import openai
import pytest

from tests.support.inputs import make_lines
from tests.support.scripted_backend import backend_process
from tests.support.server import conserved, server, wait_for

PART_BYTES = 64 * 1024 * 1024


def peak_bytes(pid: int) -> int:
    (line,) = [
        line
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.startswith("VmHWM:")
    ]
    return int(line.split()[1]) * 1024


@pytest.mark.rule("U5")
async def test_a_batch_runs_on_a_file_that_came_in_parts(tmp_path: Path) -> None:
    content = make_lines(500, awkward=True)
    path = tmp_path / "requests.jsonl"
    path.write_bytes(content)
    async with backend_process() as backend:
        with server(tmp_path, backend.base_url) as running:
            client = running.client()
            upload = client.uploads.upload_file_chunked(
                file=path, mime_type="application/jsonl", purpose="batch", part_size=10_007
            )
            assert upload.file is not None
            batch = client.batches.create(
                input_file_id=upload.file.id,
                endpoint="/v1/chat/completions",
                completion_window="24h",
            )
            ended = wait_for(client, batch.id)
            assert ended.status == "completed"
            assert conserved(client, ended, content, await backend.log()).finished == 500


@pytest.mark.rule("U4")
def test_a_part_and_a_completion_are_not_held_in_memory(tmp_path: Path) -> None:
    with server(tmp_path, "http://127.0.0.1:1") as running:
        client = running.client()
        client.uploads.upload_file_chunked(
            file=b"{}\n", filename="a", bytes=3, mime_type="", purpose="batch"
        )
        before = peak_bytes(running.pid)
        upload = client.uploads.create(
            bytes=2 * PART_BYTES, filename="big", mime_type="", purpose="user_data"
        )
        parts = [client.uploads.parts.create(upload.id, data=bytes(PART_BYTES)).id for _ in "12"]
        client.uploads.complete(upload.id, part_ids=parts)
        assert peak_bytes(running.pid) - before < PART_BYTES // 4


@pytest.mark.rule("U10")
def test_an_expired_upload_is_gone_from_disk_by_itself(tmp_path: Path) -> None:
    settings = {"retention": {"upload_s": 1, "sweep_s": 0.05}}
    with server(tmp_path, "http://127.0.0.1:1", settings=settings) as running:
        client = running.client()
        upload = client.uploads.create(bytes=9, filename="a", mime_type="", purpose="user_data")
        try:
            client.uploads.parts.create(upload.id, data=b"some")
        except openai.BadRequestError:
            assert time.time() >= upload.expires_at  # a second may be short
        running.wait_blobs([])
        with pytest.raises(openai.BadRequestError, match="has status 'expired'"):
            client.uploads.complete(upload.id, part_ids=[])
