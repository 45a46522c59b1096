"""What was said in confidence stays where it belongs: in results, and in no log and no database."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import openai
import pytest

from tests.support.inputs import MODEL
from tests.support.scripted_backend import Answer, Script, backend_process
from tests.support.server import content_of, server, submit, wait_for

PROMPT = "sentinel-prompt-7d1f"
ANSWER = "sentinel-answer-2c9a"
REFUSAL = "sentinel-refusal-55ee"
HEADER = "sentinel-header-81b0"
WRONG_KEY = "sk-bl-sentinel-wrong-key"
NEVER = (PROMPT, ANSWER, REFUSAL, HEADER, WRONG_KEY)


def line(custom_id: str, **more: object) -> bytes:
    body = {"model": MODEL, "messages": [{"role": "user", "content": PROMPT}], **more}
    request = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions"}
    return json.dumps({**request, "body": body}).encode() + b"\n"


@pytest.mark.rule("K8")
async def test_nothing_that_was_said_in_confidence_is_anywhere_but_in_the_results(
    tmp_path: Path,
) -> None:
    """If this fails, somebody logs or stores what users sent: log ids, counts and sizes instead."""
    good = Answer(body=json.dumps({"choices": [{"message": {"content": ANSWER}}]}))
    bad = Answer(status=400, body=json.dumps({"error": {"message": REFUSAL}}))
    odd = Answer(status=500, body=f"<html>{REFUSAL}</html>", content_type="text/html")
    content = b"".join(
        line(f"c-{n}", user=f"[[id={kind}]]")
        for n, kind in enumerate(["good", "bad", "odd", "good"])
    )
    script = Script(by_id={"good": (good,), "bad": (bad,), "odd": (odd,)})
    said: list[str] = []
    async with backend_process(script) as backend:
        settings = {"retry": {"base_s": 0.01}}
        with server(tmp_path, backend.base_url, settings=settings) as running:
            secret = running.new_key("alpha")
            client = running.client(key=secret).with_options(default_headers={"X-Note": HEADER})
            ended = wait_for(client, submit(client, content).id)
            assert ended.status == "completed"
            output = content_of(client, ended.output_file_id) or b""
            assert output.count(ANSWER.encode()) == 2  # here it belongs

            broken = submit(client, line("x", stream=True) + b"{" + PROMPT.encode() + b"\n")
            refused = wait_for(client, broken.id)
            assert refused.status == "failed"
            assert refused.errors is not None
            said.append(refused.errors.model_dump_json())
            calls: list[Callable[[], object]] = [
                lambda: running.client(key=WRONG_KEY).files.list(),
                lambda: client.files.retrieve("file-nobody"),
                lambda: client.batches.retrieve("batch_nobody"),
                lambda: client.post("/batches", body={PROMPT: 1}, cast_to=object),
            ]
            for call in calls:
                with pytest.raises(openai.APIStatusError) as raised:
                    call()
                # An unknown parameter is named: that is what the caller just wrote.
                said.append(raised.value.response.text.replace(f"'{PROMPT}'", ""))
            assert running.terminate() == 0
            stored = [path.read_bytes() for path in running.data.glob("batchline.sqlite3*")]
            log = running.log.read_text()
    for sentinel in (*NEVER, secret):
        assert sentinel not in log
        assert not any(sentinel.encode() in one for one in stored)
        assert not any(sentinel in one for one in said), sentinel
