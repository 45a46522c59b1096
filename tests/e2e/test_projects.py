"""Two projects on one server: what one has is, for the other, like what never existed."""

from __future__ import annotations

import re
from http.client import HTTPConnection
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import pytest

from tests.support.inputs import make_lines
from tests.support.scripted_backend import backend_process
from tests.support.server import ServerProcess, conserved, server, submit, wait_for

# What differs between any two answers.
_OWN_HEADERS: Final = frozenset({"x-request-id", "openai-processing-ms", "date"})


class Caller:
    """One project's key, and raw requests with it."""

    def __init__(self, running: ServerProcess, secret: str) -> None:
        self._address = urlsplit(running.origin)
        self._secret = secret

    def ask(self, method: str, path: str) -> tuple[int, dict[str, str], bytes]:
        connection = HTTPConnection(
            self._address.hostname or "", self._address.port or 0, timeout=10
        )
        connection.request(method, path, headers={"Authorization": f"Bearer {self._secret}"})
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        headers = {k.lower(): v for k, v in answer.getheaders() if k.lower() not in _OWN_HEADERS}
        return answer.status, headers, body


@pytest.mark.rule("K7")
async def test_no_route_tells_another_projects_things_from_missing_ones(tmp_path: Path) -> None:
    content = make_lines(5)
    async with backend_process() as backend:
        with server(tmp_path, backend.base_url) as running:
            ours, theirs = running.new_key("alpha"), running.new_key("beta")
            client = running.client(key=ours)
            ended = wait_for(client, submit(client, content).id)
            assert conserved(client, ended, content).finished == 5
            assert ended.output_file_id is not None

            upload = client.uploads.create(
                filename="in.jsonl", purpose="batch", bytes=10, mime_type="text/jsonl"
            )

            other = Caller(running, theirs)
            batch_id, file_id = ended.id, ended.input_file_id
            routes = [
                ("GET", "/v1/files/{}", file_id),
                ("GET", "/v1/files/{}/content", file_id),
                ("DELETE", "/v1/files/{}", file_id),
                ("GET", "/v1/files/{}", ended.output_file_id),
                ("GET", "/v1/files/{}/content", ended.output_file_id),
                ("DELETE", "/v1/files/{}", ended.output_file_id),
                ("GET", "/v1/files?after={}", file_id),
                ("GET", "/v1/batches/{}", batch_id),
                ("POST", "/v1/batches/{}/cancel", batch_id),
                ("GET", "/v1/batches/{}/receipt", batch_id),
                ("GET", "/v1/batches/{}/results", batch_id),
                ("GET", "/v1/batches?after={}", batch_id),
                ("POST", "/v1/uploads/{}/parts", upload.id),
                ("POST", "/v1/uploads/{}/cancel", upload.id),
            ]
            for method, path, there in routes:
                missing = re.sub(r"[0-9a-f]{24}$", "0" * 24, there)
                found = other.ask(method, path.format(there))
                wanted = other.ask(method, path.format(missing))
                assert found[0] == 404, (method, path)
                assert found[1] == wanted[1], (method, path)
                assert found[2].replace(there.encode(), missing.encode()) == wanted[2]
            for path in ("/v1/files", "/v1/batches"):
                assert b'"data":[]' in other.ask("GET", path)[2]
            # Nothing of it was touched.
            assert client.batches.retrieve(batch_id) == ended
            assert client.uploads.cancel(upload.id).status == "cancelled"
            assert client.files.content(ended.output_file_id).content


@pytest.mark.rule("K7")
async def test_another_projects_input_file_is_a_missing_one(tmp_path: Path) -> None:
    with server(tmp_path, "http://127.0.0.1:9") as running:
        ours, theirs = running.new_key("alpha"), running.new_key("beta")
        owner, other = running.client(key=ours), running.client(key=theirs)
        file = owner.files.create(file=("in.jsonl", make_lines(1)), purpose="batch")
        missing = re.sub(r"[0-9a-f]{24}$", "0" * 24, file.id)
        told = []
        for file_id in (file.id, missing):
            batch = other.batches.create(
                input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h"
            )
            ended = wait_for(other, batch.id)
            assert ended.errors is not None
            assert ended.errors.data is not None
            (problem,) = ended.errors.data
            told.append((problem.code, (problem.message or "").replace(file_id, "X")))
        assert told[0] == told[1]
