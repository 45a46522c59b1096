"""`invalid_lines: "skip"`: the good lines run, the others are in the error file, through kills."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types import Batch

from tests.support.inputs import make_lines
from tests.support.scripted_backend import Answer, Script, backend_process
from tests.support.server import content_of, server, wait_for

GOOD = make_lines(40).splitlines(keepends=True)
BAD = [b"{\n", b'{"custom_id":"x"}\n', GOOD[3]]
# Bad lines at 11, 22 and 43; the last of them repeats line 4.
CONTENT = b"".join([*GOOD[:10], BAD[0], *GOOD[10:20], BAD[1], *GOOD[20:], BAD[2]])
SKIPPED = [
    (11, None, "invalid_json_line"),
    (22, "x", "missing_required_parameter"),
    (43, "line-0000003", "duplicate_custom_id"),
]


def create(client: openai.OpenAI, file_id: str) -> Batch:
    return client.batches.create(
        input_file_id=file_id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        extra_body={"invalid_lines": "skip"},
    )


def lines_of(client: openai.OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (content_of(client, file_id) or b"").splitlines()]


def skipped_in(errors: list[dict[str, Any]]) -> list[tuple[int, str | None, str]]:
    return [
        (one["error"]["line"], one["custom_id"], one["error"]["code"])
        for one in errors
        if "line" in one["error"]
    ]


@pytest.mark.rule("X4")
@pytest.mark.parametrize(
    "probe", ["", "batch.start.inside=kill", "batch.start.after=kill", "blob.renamed=kill@3"]
)
async def test_good_lines_run_and_each_bad_one_is_in_the_error_file_once(
    tmp_path: Path, probe: str
) -> None:
    async with backend_process() as backend:
        with server(tmp_path, backend.base_url, probes=probe) as running:
            client = running.client()
            file = client.files.create(file=("in.jsonl", CONTENT), purpose="batch")
            batch_id = create(client, file.id).id
            if probe:
                running.wait_ended()
                running.start()
                client = running.client()
            ended = wait_for(client, batch_id)
            assert ended.status == "completed"
            assert ended.errors is None
            counts = ended.request_counts
            assert counts is not None
            assert (counts.total, counts.completed, counts.failed) == (43, 40, 3)
            results = lines_of(client, ended.output_file_id)
            assert sorted(one["custom_id"] for one in results) == sorted(
                json.loads(line)["custom_id"] for line in GOOD
            )
            errors = lines_of(client, ended.error_file_id)
            assert skipped_in(errors) == SKIPPED
            assert len(errors) == len(SKIPPED)
            assert len({one["id"] for one in [*results, *errors]}) == 43


@pytest.mark.rule("X4")
async def test_a_cancelled_batch_names_what_was_left_out_and_what_never_ran(
    tmp_path: Path,
) -> None:
    settings = {"cancel": {"grace_s": 0.0}}
    async with backend_process(Script(answer=Answer(hold=True))) as backend:
        with server(tmp_path, backend.base_url, settings=settings) as running:
            client = running.client()
            file = client.files.create(file=("in.jsonl", CONTENT), purpose="batch")
            batch = create(client, file.id)
            await backend.wait_until(min_held=40)
            client.batches.cancel(batch.id)
            ended = wait_for(client, batch.id, "cancelled")
            errors = lines_of(client, ended.error_file_id)
            assert skipped_in(errors) == SKIPPED
            codes = [one["error"]["code"] for one in errors[len(SKIPPED) :]]
            assert codes == ["batch_cancelled"] * 40
            counts = ended.request_counts
            assert counts is not None
            assert (counts.total, counts.completed, counts.failed) == (43, 0, 3)
            assert ended.output_file_id is None


@pytest.mark.rule("X4")
async def test_a_dry_run_says_how_many_lines_would_be_left_out(tmp_path: Path) -> None:
    async with backend_process() as backend:
        with server(tmp_path, backend.base_url) as running:
            client = running.client()
            file = client.files.create(file=("in.jsonl", CONTENT), purpose="batch")
            order = {
                "input_file_id": file.id,
                "endpoint": "/v1/chat/completions",
                "completion_window": "24h",
            }

            def validate(**more: str) -> dict[str, Any]:
                answer = client.post("/batches/validate", body={**order, **more}, cast_to=object)
                assert isinstance(answer, dict)
                return answer

            said = validate(invalid_lines="skip")
            assert (said["valid"], said["lines"], said["skipped"]) == (True, 40, 3)
            assert [one["line"] for one in said["errors"]["data"]] == [11, 22, 43]
            said = validate(invalid_lines="fail")
            assert (said["valid"], said["lines"], said["skipped"]) == (False, 0, 0)
            assert validate() == said
            with pytest.raises(openai.BadRequestError) as refused:
                validate(invalid_lines="some")
            assert (refused.value.param, refused.value.code) == ("invalid_lines", "invalid_value")
            assert client.batches.list().data == []
