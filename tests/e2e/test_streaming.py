"""Answers that are streamed from the backend: the same files, and what a stop cut off is kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import command
from tests.support.inputs import make_lines
from tests.support.scripted_backend import Answer, Fault, Script, backend_process
from tests.support.server import conserved, content_of, server, submit, wait_for


def streaming(base_url: str, *, keep_partial: bool = False, **more: object) -> dict[str, Any]:
    """Settings with one backend whose answers are streamed."""
    backend = {"base_url": base_url, "stream": True, "keep_partial": keep_partial, **more}
    return {"cancel": {"grace_s": 0.0}, "expire": {"grace_s": 0.0}, "backend": [backend]}


def lines_of(content: bytes | None) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (content or b"").splitlines()]


ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings")


async def test_results_are_those_of_whole_answers(tmp_path: Path) -> None:
    async with backend_process() as backend:
        with server(tmp_path, settings=streaming(backend.base_url)) as running:
            client = running.client()
            for endpoint in ENDPOINTS:
                content = make_lines(20, endpoint=endpoint, awkward=True)
                bodies = []
                for streams in (True, False):
                    await backend.clear()
                    await backend.set_script(Script(answer=Answer(streams=streams, text_bytes=200)))
                    ended = wait_for(client, submit(client, content, endpoint=endpoint).id)
                    assert ended.status == "completed"
                    conserved(client, ended, content, await backend.log())
                    output = lines_of(content_of(client, ended.output_file_id))
                    bodies.append({one["custom_id"]: one["response"]["body"] for one in output})
                assert len(bodies[0]) == 20
                assert bodies[0] == bodies[1]


async def test_a_line_with_a_word_of_its_own_on_streaming_is_sent_as_it_is(tmp_path: Path) -> None:
    lines = make_lines(2).splitlines()
    lines[1] = lines[1].replace(b'"body": {', b'"body": {"stream": false, ')
    content = b"\n".join(lines)
    async with backend_process(Script(answer=Answer(streams=True))) as backend:
        with server(tmp_path, settings=streaming(backend.base_url)) as running:
            client = running.client()
            ended = wait_for(client, submit(client, content).id)
            log = await backend.log()
            assert conserved(client, ended, content, log).finished == 2
            spliced = b'"stream":true,"stream_options":{"include_usage":true},'
            sent = {e.id: e.bytes for e in log.events if e.kind == "arrived"}
            written = {
                f"line-{n:07d}": len(line[line.index(b'"body": ') + 8 : -1])
                for n, line in enumerate(lines)
            }
            assert sent["line-0000000"] == written["line-0000000"] + len(spliced)
            assert sent["line-0000001"] == written["line-0000001"]


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Fault.CLOSE, "upstream_unreachable"),
        (Fault.STREAM_ENDS, "upstream_unreachable"),
        (Fault.STREAM_BREAKS, "invalid_upstream_response"),
    ],
)
async def test_a_stream_without_its_end_is_no_result(
    tmp_path: Path, fault: Fault, code: str
) -> None:
    content = make_lines(3)
    script = Script(answer=Answer(streams=True), by_id=_first_fault(fault))
    settings = {
        **streaming("", keep_partial=True),
        "retry": {"max_attempts": 2, "base_s": 0.0},
    }
    async with backend_process(script) as backend:
        settings["backend"][0]["base_url"] = backend.base_url
        with server(tmp_path, settings=settings) as running:
            client = running.client()
            ended = wait_for(client, submit(client, content).id)
            summary = conserved(client, ended, content, await backend.log())
            assert (summary.finished, summary.failed) == (2, 1)
            (failed,) = lines_of(content_of(client, ended.error_file_id))
            assert failed["error"]["code"] == code
            assert "partial" not in failed


async def test_a_failure_in_the_stream_is_retried_like_a_500(tmp_path: Path) -> None:
    content = make_lines(2)
    fails = Answer(streams=True, fault=Fault.STREAM_FAILS)
    failing = {"line-0000000": (fails,), "line-0000001": (fails, Answer(streams=True))}
    settings = {**streaming(""), "retry": {"max_attempts": 2, "base_s": 0.0}}
    async with backend_process(Script(by_id=failing)) as backend:
        settings["backend"][0]["base_url"] = backend.base_url
        with server(tmp_path, settings=settings) as running:
            client = running.client()
            ended = wait_for(client, submit(client, content).id)
            summary = conserved(client, ended, content)
            assert (summary.finished, summary.failed) == (1, 1)
            (failed,) = lines_of(content_of(client, ended.error_file_id))
            assert failed["response"]["status_code"] == 500
            assert failed["response"]["body"]["error"]["message"] == "scripted"


async def test_a_stream_is_bounded_like_an_answer(tmp_path: Path) -> None:
    content = make_lines(2)
    long = {"line-0000000": (Answer(streams=True, text_bytes=5_000),)}
    async with backend_process(Script(answer=Answer(streams=True), by_id=long)) as backend:
        settings = {
            **streaming(backend.base_url, max_answer_bytes=4_000),
            "retry": {"max_attempts": 1},
        }
        with server(tmp_path, settings=settings) as running:
            client = running.client()
            ended = wait_for(client, submit(client, content).id)
            conserved(client, ended, content)
            (failed,) = lines_of(content_of(client, ended.error_file_id))
            assert failed["error"]["code"] == "response_too_large"


# -- what was cut off --------------------------------------------------------------------------


@pytest.mark.rule("X8")
@pytest.mark.parametrize("endpoint", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
async def test_what_a_cancel_cut_off_is_in_the_error_line(tmp_path: Path, endpoint: str) -> None:
    content = make_lines(30, endpoint=endpoint)
    script = Script(answer=Answer(streams=True, fault=Fault.SILENT, text_bytes=400))
    async with backend_process(script) as backend:
        settings = streaming(backend.base_url, keep_partial=True, max_in_flight=10)
        with server(tmp_path, settings=settings) as running:
            client = running.client()
            batch = submit(client, content, endpoint=endpoint)
            await backend.wait_until(min_in_flight=10)
            await backend.caught_up()
            client.batches.cancel(batch.id)
            ended = wait_for(client, batch.id)
            summary = conserved(client, ended, content, await backend.log())
            assert (summary.finished, summary.cancelled) == (0, 30)
            assert ended.request_counts is not None
            assert (ended.request_counts.completed, ended.request_counts.failed) == (0, 0)
            errors = lines_of(content_of(client, ended.error_file_id))
            cut_off = [one for one in errors if "partial" in one]
            assert 1 <= len(cut_off) <= 10  # what had come to us when the cancel did
            for one in cut_off:
                assert list(one) == ["id", "custom_id", "response", "error", "partial"]
                assert one["response"] is None
                assert one["error"]["code"] == "batch_cancelled"
                said = _text_of(endpoint, one["partial"])
                assert said.startswith(f"[[id={one['custom_id']}]]yyy")
                assert len(said) < 400


async def test_what_the_window_cut_off_is_in_the_error_line_too(tmp_path: Path) -> None:
    content = make_lines(4)
    script = Script(answer=Answer(streams=True, fault=Fault.SILENT))
    async with backend_process(script) as backend:
        settings = {**streaming(backend.base_url, keep_partial=True), "windows": ["6s"]}
        with server(tmp_path, settings=settings) as running:
            client = running.client()
            ended = wait_for(client, submit(client, content, window="6s").id)
            assert ended.status == "expired"
            assert conserved(client, ended, content).expired == 4
            errors = lines_of(content_of(client, ended.error_file_id))
            assert [one["partial"]["choices"][0]["finish_reason"] for one in errors] == [None] * 4


async def test_nothing_is_kept_where_nobody_asked_for_it(tmp_path: Path) -> None:
    content = make_lines(4)
    script = Script(answer=Answer(streams=True, fault=Fault.SILENT))
    async with backend_process(script) as backend:
        with server(tmp_path, settings=streaming(backend.base_url)) as running:
            client = running.client()
            batch = submit(client, content)
            await backend.wait_until(min_in_flight=4)
            await backend.caught_up()
            client.batches.cancel(batch.id)
            ended = wait_for(client, batch.id)
            assert conserved(client, ended, content).cancelled == 4
            assert b"partial" not in (content_of(client, ended.error_file_id) or b"")


async def test_a_run_that_was_cut_off_and_taken_up_again_runs_those_lines(tmp_path: Path) -> None:
    """`batchline run` tells its cancelled lines by their ends, which a partial moves."""
    from batchline.cli.run_results import never_ran
    from batchline.domain.partials import with_partial
    from batchline.domain.results import Failure, failure_line

    for failure in Failure:
        line = failure_line("batch_req_" + "0" * 32, rb'"\",\"response\":"', failure)
        told = with_partial(line, b'{"response":null,"error":{"code":"batch_cancelled"}}')
        assert never_ran(line) == never_ran(told) == (failure is Failure.BATCH_CANCELLED)
    source = tmp_path / "in.jsonl"
    source.write_bytes(make_lines(3))
    async with backend_process(Script(answer=Answer(streams=True))) as backend:
        config = tmp_path / "batchline.toml"
        config.write_text(f'[[backend]]\nbase_url = "{backend.base_url}"\nstream = true\n')
        output = tmp_path / "out.jsonl"
        ran = await command("run", source, "-o", output, "--config", config)
        assert ran.returncode == 0, ran.stderr
        assert len(output.read_bytes().splitlines()) == 3


def _first_fault(fault: Fault) -> Mapping[str, tuple[Answer, ...]]:
    return {"line-0000000": (Answer(streams=True, fault=fault),)}


def _text_of(endpoint: str, body: Any) -> str:
    if endpoint == "/v1/responses":
        return str(body["output"][0]["content"][0]["text"])
    choice = body["choices"][0]
    text = choice["message"]["content"] if "chat" in endpoint else choice["text"]
    return str(text)
