"""The main job with the official client against a real server process and a scripted backend."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TypeAlias

import openai
import pytest

from tests.support.inputs import MODEL, make_lines
from tests.support.pauses import pause
from tests.support.scripted_backend import (
    Answer,
    BackendControl,
    Fault,
    Script,
    backend_process,
)
from tests.support.server import (
    WAIT_S,
    ServerProcess,
    conserved,
    content_of,
    server,
    submit,
    wait_for,
)

Plain: TypeAlias = tuple[BackendControl, ServerProcess]

QUICK = {"retry": {"base_s": 0.01}, "cancel": {"grace_s": 0.2}}


@pytest.fixture(scope="module")
async def plain(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Plain]:
    """A backend and a server without a setting, for tests that leave both as they were."""
    async with backend_process() as backend:
        with server(tmp_path_factory.mktemp("plain"), backend.base_url) as running:
            yield backend, running


@pytest.mark.rule("L5")
@pytest.mark.rule("O1")
@pytest.mark.rule("O2")
@pytest.mark.rule("O5")
async def test_a_batch_runs_from_upload_to_download(tmp_path: Path) -> None:
    content = make_lines(2_500, awkward=True, crlf=True, blank_every=100, final_newline=False)
    async with backend_process() as backend:
        with server(tmp_path, backend.base_url, options=["--workers", "2"], fork=False) as running:
            client = running.client()
            batch = submit(client, content)
            assert batch.status == "validating"
            ended = wait_for(client, batch.id)
            assert ended.status == "completed"
            assert ended.model == MODEL
            assert ended.error_file_id is None
            summary = conserved(client, ended, content, await backend.log())
            assert summary.finished == summary.total == 2_500
            assert summary.resent == 0


@pytest.mark.rule("L2")
async def test_bad_lines_are_all_named_and_nothing_is_executed(plain: Plain) -> None:
    backend, running = plain
    lines = make_lines(10).splitlines(keepends=True)
    lines[3] = b"{not json\n"
    lines[7] = b'{"custom_id": "x", "method": "POST", "body": {}}\n'
    earlier = (await backend.stats()).arrivals
    client = running.client()
    ended = wait_for(client, submit(client, b"".join(lines)).id)
    assert ended.status == "failed"
    assert ended.errors is not None
    assert [problem.line for problem in ended.errors.data or []] == [4, 8]
    assert ended.output_file_id is None
    assert ended.error_file_id is None
    assert ended.in_progress_at is None
    counts = ended.request_counts
    assert counts is not None
    assert (counts.total, counts.completed, counts.failed) == (0, 0, 0)
    assert (await backend.stats()).arrivals == earlier


@pytest.mark.rule("L5")
@pytest.mark.rule("L6")
async def test_counts_and_usage_grow_while_a_batch_runs(tmp_path: Path) -> None:
    held = [f"line-{n:07d}" for n in range(10, 15)]
    script = Script(
        by_id={"line-0000003": (Answer(status=400),)}
        | {name: (Answer(hold=True),) for name in held}
    )
    content = make_lines(15)
    async with backend_process(script) as backend:
        with server(tmp_path, backend.base_url) as running:
            client = running.client()
            batch = submit(client, content)
            assert batch.request_counts is not None
            assert batch.request_counts.total == 0
            await backend.wait_until(min_held=len(held))
            began = time.monotonic()
            while True:
                now = client.batches.retrieve(batch.id)
                counts, usage = now.request_counts, now.usage
                assert counts is not None
                assert usage is not None
                assert counts.total in (0, 15)
                if (counts.completed, counts.failed) == (9, 1):
                    break
                assert time.monotonic() < began + WAIT_S, counts
                pause(began)
            assert now.status == "in_progress"
            assert (now.output_file_id, now.error_file_id) == (None, None)
            await backend.stop_holding()
            ended = wait_for(client, batch.id)
            conserved(client, ended, content)
            assert ended.usage is not None
            assert 0 < usage.total_tokens < ended.usage.total_tokens


async def test_a_missing_input_file_fails_the_batch_later_not_the_create(plain: Plain) -> None:
    client = plain[1].client()
    batch = client.batches.create(
        input_file_id="file-nobody",
        endpoint="/v1/chat/completions",
        completion_window="24h",
    )
    ended = wait_for(client, batch.id)
    assert ended.status == "failed"
    assert ended.errors is not None
    assert ended.errors.data is not None
    assert ended.errors.data[0].code == "invalid_request"
    assert ended.errors.data[0].param == "file_id"


@pytest.mark.rule("O1")
@pytest.mark.rule("O3")
@pytest.mark.rule("O4")
@pytest.mark.rule("O7")
@pytest.mark.rule("O9")
async def test_answers_land_in_the_file_that_the_contract_names(tmp_path: Path) -> None:
    script = Script(
        by_id={
            "line-0000001": (Answer(status=400),),
            "line-0000002": (Answer(status=422, body="<html>", content_type="text/html"),),
            "line-0000003": (Answer(status=500), Answer(status=500), Answer()),
            "line-0000004": (Answer(fault=Fault.RESET), Answer()),
            "line-0000005": (Answer(fault=Fault.NOT_JSON),),
            "line-0000006": (Answer(fault=Fault.PRETTY),),
            "line-0000007": (Answer(fault=Fault.WRONG_USAGE),),
            "line-0000008": (Answer(fault=Fault.INVALID_UTF8),),
            "line-0000009": (Answer(status=500),),
            "line-0000010": (Answer(fault=Fault.TRUNCATED), Answer(chunked=True)),
        }
    )
    content = make_lines(20)
    async with backend_process(script) as backend:
        with server(tmp_path, backend.base_url, settings=QUICK) as running:
            client = running.client()
            ended = wait_for(client, submit(client, content).id)
            assert ended.status == "completed"
            conserved(client, ended, content)
            errors = {
                line["custom_id"]: line
                for line in map(
                    json.loads, (content_of(client, ended.error_file_id) or b"").splitlines()
                )
            }
            assert sorted(errors) == [f"line-{n:07d}" for n in (1, 2, 5, 8, 9)]
            assert errors["line-0000001"]["response"]["status_code"] == 400
            wrapped = errors["line-0000002"]["response"]["body"]["error"]
            assert wrapped["type"] == "upstream_error"
            assert "html" not in json.dumps(wrapped)
            assert errors["line-0000005"]["error"]["code"] == "invalid_upstream_response"
            assert errors["line-0000009"]["response"]["status_code"] == 500
            attempts = (await backend.log()).attempts()
            assert attempts["line-0000001"] == 1
            assert attempts["line-0000009"] == 5


@pytest.mark.rule("L1")
@pytest.mark.rule("L5")
async def test_a_batch_whose_lines_all_fail_is_completed(plain: Plain) -> None:
    backend, running = plain
    content = make_lines(5)
    await backend.set_script(Script(answer=Answer(status=400)))
    try:
        client = running.client()
        ended = wait_for(client, submit(client, content).id)
        assert ended.status == "completed"
        assert ended.output_file_id is None
        assert conserved(client, ended, content).failed == 5
    finally:
        await backend.set_script(Script())


@pytest.mark.rule("O6")
async def test_bytes_go_out_as_they_came_in(plain: Plain) -> None:
    backend, running = plain
    body = (
        b'{ "model":"test-model" ,"messages":[{"role":"user","content":'
        b'"[[id=a]] \\u00e9\xc3\xa9"}],\t"n" : 1.0e0}'
    )
    content = (
        b'{"custom_id":"a\\u0062","method":"POST","url":"/v1/chat/completions","body":'
        + body
        + b"}"
    )
    client = running.client()
    ended = wait_for(client, submit(client, content).id)
    assert ended.status == "completed"
    output = content_of(client, ended.output_file_id) or b""
    assert b'"custom_id":"a\\u0062"' in output
    arrival = (await backend.log()).arrivals[-1]
    assert arrival.sha256 == hashlib.sha256(body).hexdigest()


@pytest.mark.rule("L3")
@pytest.mark.rule("L8")
async def test_a_batch_past_its_window_expires_with_what_was_done(tmp_path: Path) -> None:
    content = make_lines(60)
    script = Script(
        by_id={f"line-{n:07d}": (Answer(hold=True),) for n in range(20, 60)},
    )
    settings = {"windows": ["6s"], "expire": {"grace_s": 0.1}}
    async with backend_process(script) as backend:
        with server(tmp_path, backend.base_url, settings=settings) as running:
            client = running.client()
            batch = submit(client, content, window="6s")
            assert batch.expires_at == batch.created_at + 6
            ended = wait_for(client, batch.id)
            assert ended.status == "expired"
            summary = conserved(client, ended, content, await backend.log())
            assert summary.finished == 20
            assert summary.expired == 40
            assert ended.request_counts is not None
            assert (ended.request_counts.completed, ended.request_counts.failed) == (20, 0)


async def test_several_models_need_the_setting(tmp_path: Path) -> None:
    content = make_lines(10) + make_lines(10, start=10, model="other")
    script = Script(models=(MODEL, "other"))
    async with backend_process(script) as backend:
        (tmp_path / "strict").mkdir()
        with server(tmp_path / "strict", backend.base_url) as running:
            ended = wait_for(running.client(), submit(running.client(), content).id)
            assert ended.errors is not None
            assert {p.code for p in ended.errors.data or []} == {"mismatched_model"}
        (tmp_path / "mixed").mkdir()
        with server(
            tmp_path / "mixed", backend.base_url, settings={"allow_mixed_models": True}
        ) as running:
            client = running.client()
            ended = wait_for(client, submit(client, content).id)
            assert ended.status == "completed"
            assert ended.model is None
            assert conserved(client, ended, content).finished == 20


async def test_the_client_gets_its_errors_in_the_envelope(plain: Plain) -> None:
    client = plain[1].client()
    with pytest.raises(openai.NotFoundError, match="No batch found with id 'batch_x'"):
        client.batches.retrieve("batch_x")
    with pytest.raises(openai.BadRequestError, match="begins with 'batch'"):
        client.batches.cancel("nonsense")
