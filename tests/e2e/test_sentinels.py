"""What callers say in confidence is in the results and nowhere else."""

from __future__ import annotations

import contextlib
import http.client
import json
import sqlite3
from pathlib import Path
from urllib.parse import urlsplit

import openai
import pytest

from tests.support.inputs import MODEL
from tests.support.scripted_backend import Answer, Fault, Script, backend_process
from tests.support.server import ServerProcess, content_of, server, submit, wait_for

PROMPT = "sentinel-in-a-prompt"
ANSWER = "sentinel-in-an-answer"
HEADER = "sentinel-in-a-header"
FILENAME = "sentinel-in-a-file-name"
WRONG_KEY = "sk-bl-sentinel-in-a-wrong-key"
SAID = (PROMPT, ANSWER, HEADER, WRONG_KEY)

QUICK = {"retry": {"base_s": 0.01, "max_attempts": 2}, "cancel": {"grace_s": 0.0}}


def line(name: str, *, text: str = PROMPT, **changes: object) -> bytes:
    body = {"model": MODEL, "messages": [{"role": "user", "content": f"[[id={name}]] {text}"}]}
    whole = {
        "custom_id": name,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": body,
        **changes,
    }
    return json.dumps(whole).encode() + b"\n"


def answers() -> Script:
    """Good and bad answers, each of which says something."""
    said = json.dumps({"choices": [{"message": {"content": ANSWER}}], "usage": {}})
    refused = json.dumps({"error": {"message": ANSWER, "type": ANSWER, "code": ANSWER}})
    return Script(
        by_id={
            "good": (Answer(body=said),),
            "refused": (Answer(status=400, body=refused),),
            "busy": (Answer(status=500, body=refused), Answer(status=500, body=refused)),
            "page": (Answer(body=f"<p>{ANSWER}</p>", content_type="text/html"),),
            "gateway": (Answer(status=404, body=f"<p>{ANSWER}</p>", content_type="text/html"),),
            "reset": (Answer(fault=Fault.RESET),),
            "held": (Answer(hold=True),),
        }
    )


def bad_lines() -> bytes:
    body = {"model": MODEL, "messages": PROMPT}
    return b"".join(
        [
            line("a"),  # the upload looks at the first line
            f'{{"custom_id": {PROMPT}\n'.encode(),
            f'"{PROMPT}"\n'.encode(),
            line("a", url=f"/v1/{PROMPT}"),
            line("a", body=PROMPT),
            line("a", body={**body, "stream": True}),
            line("a", body={"model": MODEL, "prompt": PROMPT}),
            line("a"),
        ]
    )


def refusals(running: ServerProcess, key: str) -> list[tuple[int, bytes]]:
    """Requests that are refused, each with something of its own in confidence."""
    good = {"Authorization": f"Bearer {key}", "X-Team": HEADER, "OpenAI-Project": HEADER}
    wrong = {**good, "Authorization": f"Bearer {WRONG_KEY}"}
    form = {**good, "Content-Type": "multipart/form-data; boundary=b"}
    no_jsonl = (
        b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--b\r\n'
        b'Content-Disposition: form-data; name="file"; filename="' + FILENAME.encode() + b'.txt"'
        b"\r\n\r\n" + PROMPT.encode() + b"\r\n--b--\r\n"
    )
    return [
        exchange(running, "GET", "/v1/files", headers=wrong),
        exchange(running, "GET", "/v1/files", headers={**good, "Authorization": HEADER}),
        exchange(running, "GET", "/v1/files/file-none", headers=good),
        exchange(running, "GET", "/v1/none", headers=good),
        exchange(running, "PUT", "/v1/files", PROMPT.encode(), headers=good),
        exchange(running, "POST", "/v1/batches", f'{{"a": {PROMPT}'.encode(), headers=good),
        exchange(running, "POST", "/v1/batches", json.dumps([PROMPT]).encode(), headers=good),
        exchange(running, "POST", "/v1/batches", PROMPT.encode() * 100_000, headers=good),
        exchange(running, "POST", "/v1/files", no_jsonl, headers=form),
        exchange(running, "POST", "/v1/files", no_jsonl[:-9], headers=form),
        exchange(running, "POST", "/v1/files", PROMPT.encode(), headers=form),
        exchange(running, "GET", "/v1/files", headers={**good, "X-Long": HEADER * 5_000}),
        exchange(running, "GET", f"/{'x' * 70_000}", headers=good),
        exchange(running, "GET", "/v1/files", headers={**good, "Content-Length": HEADER}),
    ]


def exchange(
    running: ServerProcess, method: str, path: str, body: bytes = b"", *, headers: dict[str, str]
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(urlsplit(running.origin).netloc, timeout=30)
    with contextlib.closing(connection):
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, str(answer.getheaders()).encode() + answer.read()


def columns_with(database: Path, text: str) -> set[str]:
    """`table.column` of every value that holds `text`."""
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as rows:
        tables = [
            name for (name,) in rows.execute("SELECT name FROM sqlite_master WHERE type='table'")
        ]
        found = set()
        for table in tables:
            cursor = rows.execute(f'SELECT * FROM "{table}"')  # noqa: S608  # from the schema
            names = [column[0] for column in cursor.description]
            for row in cursor:
                found |= {
                    f"{table}.{name}"
                    for name, value in zip(names, row, strict=True)
                    if text.encode() in (value if isinstance(value, bytes) else str(value).encode())
                }
        return found


@pytest.mark.rule("K8")
async def test_nothing_that_was_said_in_confidence_is_anywhere_but_in_the_results(
    tmp_path: Path,
) -> None:
    async with backend_process(answers()) as backend:
        with server(tmp_path, backend.base_url, settings=QUICK) as running:
            secret = running.new_key("alpha")
            client = running.client(key=secret).with_options(default_headers={"X-Team": HEADER})
            names = ("good", "refused", "busy", "page", "gateway", "reset")
            ran = wait_for(client, submit(client, b"".join(map(line, names))).id, "completed")
            named = client.files.create(file=(f"{FILENAME}.jsonl", bad_lines()), purpose="batch")
            failed = wait_for(client, submitted(client, named.id), "failed")
            assert failed.errors is not None
            assert len(failed.errors.data or []) >= 6
            cut = submit(client, line("held"))
            await backend.wait_until(min_held=1)
            client.batches.cancel(cut.id)
            stopped = wait_for(client, cut.id, "cancelled")
            refused = refusals(running, secret)
            assert all(400 <= status < 500 for status, _ in refused), refused
            told = b"".join([*(body for _, body in refused), failed.to_json().encode()])

            results = content_of(client, ran.output_file_id)
            errors = content_of(client, ran.error_file_id)
            assert results is not None
            assert errors is not None
            # It was there to be found: the search would have found it.
            assert ANSWER.encode() in results
            assert ANSWER.encode() in errors
            assert PROMPT.encode() in client.files.content(ran.input_file_id).content
            unsent = content_of(client, stopped.error_file_id)
            assert unsent is not None
            assert PROMPT.encode() not in unsent

            assert running.terminate() == 0
            log = running.log.read_bytes()
            assert b"request_refused" in log
            kept = {
                path: path.read_bytes()
                for path in running.data.rglob("*")
                if path.is_file() and "blobs" not in path.relative_to(running.data).parts
            }
            assert any(path.suffix == ".sqlite3" for path in kept)
            for text in (*SAID, secret, secret[14:]):
                assert text.encode() not in told, text
                assert text.encode() not in log, text
                assert [path for path, found in kept.items() if text.encode() in found] == [], text
            # A file's name is part of the file: its row has it, and nothing else.
            assert FILENAME.encode() not in told + log
            assert columns_with(running.data / "batchline.sqlite3", FILENAME) == {"file.filename"}


def submitted(client: openai.OpenAI, file_id: str) -> str:
    return client.batches.create(
        input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h"
    ).id
