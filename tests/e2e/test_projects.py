"""Two projects on one server: neither can tell that the other has anything."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import openai
import pytest

from batchline.api.app import create_app
from tests.support.inputs import make_lines
from tests.support.scripted_backend import Answer, Script, backend_process
from tests.support.server import ServerProcess, server, submit, wait_for

# Differ from answer to answer whatever is asked.
VOLATILE = {"date", "x-request-id", "openai-processing-ms"}
# What a path may name that is no project's own.
SHARED = {"model_id"}
# What a route wants in its body before it looks for the thing.
BODIES: Mapping[str, object] = {"/v1/uploads/{upload_id}/complete": {"part_ids": ["part_1"]}}


@dataclass(frozen=True, slots=True)
class Seen:
    """All that a caller can see of an answer, with the id that was asked for taken out."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


def ask(
    running: ServerProcess, key: str, method: str, path: str, body: object = None, *, without: str
) -> Seen:
    connection = http.client.HTTPConnection(urlsplit(running.origin).netloc, timeout=30)
    try:
        sent = None if body is None else json.dumps(body)
        connection.request(method, path, sent, {"Authorization": f"Bearer {key}"})
        answer = connection.getresponse()
        headers = tuple(
            (name, value.replace(without, "ID"))
            for name, value in answer.getheaders()
            if name not in VOLATILE
        )
        return Seen(answer.status, headers, answer.read().replace(without.encode(), b"ID"))
    finally:
        connection.close()


def missing_like(known: str) -> str:
    """An id of the same shape that nobody has."""
    return known[:-6] + ("0" * 6 if not known.endswith("0" * 6) else "1" * 6)


def routes() -> Iterator[tuple[str, str, str]]:
    """(method, path, parameter) of every route that names one thing in its path."""
    nothing = cast("Any", None)  # only the routes are looked at
    app = create_app(
        *(nothing, nothing, nothing, nothing),
        **dict.fromkeys(("uploads", "dry_run", "results", "progress"), nothing),
    )
    paths = app.openapi()["paths"]
    for path, methods in paths.items():
        named = set(re.findall(r"{(\w+)}", path)) - SHARED
        assert len(named) <= 1, path
        for parameter in named:
            for method in methods:
                yield method.upper(), path, parameter


@pytest.mark.rule("K7")
async def test_no_route_tells_another_projects_things_from_missing_ones(tmp_path: Path) -> None:
    """If a new route fails here by its parameter, say in `owned` whose things it names."""
    script = Script(answer=Answer(hold=True), by_id={"line-0000000": (Answer(),)})
    async with backend_process(script) as backend:
        with server(tmp_path, backend.base_url) as running:
            alpha, beta = running.new_key("alpha"), running.new_key("beta")
            owner = running.client(key=alpha)
            done = wait_for(owner, submit(owner, make_lines(1)).id, "completed")
            at_work = wait_for(owner, submit(owner, make_lines(1, start=1)).id, "in_progress")
            assert done.output_file_id is not None
            upload = owner.uploads.create(
                filename="in.jsonl", purpose="batch", bytes=10, mime_type="text/jsonl"
            )
            owned: Mapping[str, list[str]] = {
                "file_id": [done.input_file_id, done.output_file_id],
                "batch_id": [done.id, at_work.id],
                "upload_id": [upload.id],
            }
            walked = 0
            for method, path, parameter in routes():
                for known in owned[parameter]:
                    told = differences(running, beta, method, path, parameter, known)
                    assert told is None, f"{method} {path}: {told}"
                    walked += 1
            assert walked >= 10

            for path in ("/v1/files", "/v1/batches"):
                nothing_there = json.loads(ask(running, beta, "GET", path, without=done.id).body)
                assert nothing_there["data"] == []
                for known in [id_ for ids in owned.values() for id_ in ids]:
                    cursor = f"{path}?limit=5&after={{cursor}}"
                    told = differences(running, beta, "GET", cursor, "cursor", known)
                    assert told is None, f"{cursor}: {told}"

            page = [ask(running, key, "GET", "/metrics", without="?").body for key in (alpha, beta)]
            assert [at_work.id.encode() in body for body in page] == [True, False]

            assert as_input(running, beta, done.input_file_id) == as_input(
                running, beta, missing_like(done.input_file_id)
            )

            # Nothing of all this touched what is alpha's, and alpha sees all of it.
            assert owner.batches.retrieve(at_work.id).status == "in_progress"
            assert {batch.id for batch in owner.batches.list()} == {done.id, at_work.id}
            assert {file.id for file in owner.files.list()} == {
                *owned["file_id"],
                at_work.input_file_id,
            }
            for method, path, parameter in sorted(routes(), key=lambda one: one[0] == "DELETE"):
                for known in owned[parameter]:
                    asked = path.format(**{parameter: known})
                    mine = ask(running, alpha, method, asked, BODIES.get(path), without=known)
                    there = mine.status in (200, 400, 409) or b"never cancelled" in mine.body
                    assert there, (method, asked, mine)
            await backend.stop_holding()


def differences(
    running: ServerProcess, key: str, method: str, path: str, parameter: str, known: str
) -> tuple[Seen, Seen] | None:
    """What `key` sees of a thing of somebody else and of a missing one; None if it is the same."""
    missing = missing_like(known)
    body = BODIES.get(path)
    theirs = ask(running, key, method, path.format(**{parameter: known}), body, without=known)
    nobodys = ask(running, key, method, path.format(**{parameter: missing}), body, without=missing)
    return None if theirs == nobodys and theirs.status == 404 else (theirs, nobodys)


def as_input(running: ServerProcess, key: str, file_id: str) -> dict[str, object]:
    """What becomes of a batch over that file, without ids and times."""
    client: openai.OpenAI = running.client(key=key)
    batch = client.batches.create(
        input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    text = wait_for(client, batch.id, "failed").to_json().replace(file_id, "ID")
    seen: dict[str, object] = json.loads(text)
    return {
        name: value for name, value in seen.items() if name != "id" and not name.endswith("_at")
    }
