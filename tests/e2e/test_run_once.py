"""`identical_requests: "run_once"`: one call for lines with one body, through kills and cancels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types import Batch

from batchline.domain.model import Endpoint
from tests.support.command import command
from tests.support.inputs import MODEL
from tests.support.scripted_backend import Answer, Script, backend_process
from tests.support.server import content_of, server, wait_for

GROUPS = 30  # of three lines with one body each, far apart in the file
ALONE = 10  # lines that are the same but may be answered in another way each time
LINES = 3 * GROUPS + ALONE


def line(number: int, marker: str, **body: object) -> str:
    # The order of the keys differs from line to line, and so does the white space.
    members: dict[str, object] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": f"[[id={marker}]]"}],
        **body,
    }
    if number % 2:
        members = dict(reversed(members.items()))
    request = {
        "custom_id": f"line-{number}",
        "method": "POST",
        "url": Endpoint.CHAT_COMPLETIONS,
        "body": members,
    }
    return json.dumps(request, separators=(",", ":") if number % 3 else None)


CONTENT = "\n".join(
    [
        *(line(number, f"same-{number % GROUPS}", temperature=0) for number in range(3 * GROUPS)),
        *(line(3 * GROUPS + number, "other", temperature=1) for number in range(ALONE)),
    ]
).encode()


async def test_a_run_without_a_server_can_do_it_too(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(CONTENT)
    async with backend_process(Script()) as backend:
        for word, calls in (("--run-once", GROUPS + ALONE), ("--no-run-once", LINES)):
            before = (await backend.stats()).arrivals
            output = tmp_path / f"out{word}.jsonl"
            ran = await command(
                *("run", source, "--output", output, "--upstream", backend.base_url, word)
            )
            assert ran.returncode == 0, ran.stderr
            assert len(output.read_bytes().splitlines()) == LINES
            assert (await backend.stats()).arrivals - before == calls


def created(
    client: openai.OpenAI, content: bytes = CONTENT, value: str | None = "run_once"
) -> Batch:
    file = client.files.create(file=("in.jsonl", content), purpose="batch")
    return client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        extra_body={"identical_requests": value},
    )


def lines_of(client: openai.OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (content_of(client, file_id) or b"").splitlines()]


def receipt(client: openai.OpenAI, batch_id: str) -> dict[str, Any]:
    answer = client.get(f"/batches/{batch_id}/receipt", cast_to=object)
    assert isinstance(answer, dict)
    return answer


def counts_of(batch: Batch) -> tuple[int, int, int]:
    counts = batch.request_counts
    assert counts is not None
    return counts.total, counts.completed, counts.failed


def assert_each_line_has_its_own(client: openai.OpenAI, batch: Batch) -> list[dict[str, Any]]:
    results = lines_of(client, batch.output_file_id)
    assert sorted(one["custom_id"] for one in results) == sorted(
        f"line-{number}" for number in range(LINES)
    )
    assert len({one["id"] for one in results}) == LINES
    by_group: dict[int, set[str]] = {}
    for one in results:
        number = int(one["custom_id"].removeprefix("line-"))
        if number < 3 * GROUPS:
            by_group.setdefault(number % GROUPS, set()).add(json.dumps(one["response"]))
    assert all(len(responses) == 1 for responses in by_group.values())
    return results


@pytest.mark.rule("X11")
async def test_one_call_answers_every_line_with_its_body(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(CONTENT)
    async with backend_process() as backend:
        with server(tmp_path, backend.base_url) as running:
            client = running.client()
            env = {"OPENAI_BASE_URL": f"{running.origin}/v1"}
            submitted = await command("submit", source, "--run-once", env=env)
            assert submitted.returncode == 0, submitted.stderr
            batch = wait_for(client, submitted.stdout.split()[-1])
            assert batch.status == "completed"
            assert counts_of(batch) == (LINES, LINES, 0)
            assert (await backend.stats()).arrivals == GROUPS + ALONE
            results = assert_each_line_has_its_own(client, batch)
            told = receipt(client, batch.id)
            assert told["calls_saved"] == 2 * GROUPS
            assert told["requested_at"] is None
            # What was spent: each call once.
            assert batch.usage is not None
            each = results[0]["response"]["body"]["usage"]["total_tokens"]
            assert batch.usage.total_tokens == (GROUPS + ALONE) * each
            audited = await command("audit", batch.id, env=env)
            assert audited.returncode == 0, audited.stdout + audited.stderr


@pytest.mark.rule("X11")
async def test_unless_it_is_asked_for_every_line_is_sent(tmp_path: Path) -> None:
    async with backend_process() as backend:
        with server(tmp_path, backend.base_url) as running:
            client = running.client()
            with pytest.raises(openai.BadRequestError) as caught:
                created(client, value="once")
            assert caught.value.param == "identical_requests"
            assert caught.value.code == "invalid_value"
            batch = wait_for(client, created(client, value="run_each").id)
            assert counts_of(batch) == (LINES, LINES, 0)
            assert (await backend.stats()).arrivals == LINES
            with pytest.raises(openai.NotFoundError):
                receipt(client, batch.id)


@pytest.mark.rule("X11")
async def test_an_error_is_shared_and_nothing_is_asked_again_for_it(tmp_path: Path) -> None:
    script = Script(by_id={"same-3": (Answer(status=400),), "other": (Answer(status=422),)})
    async with backend_process(script) as backend:
        with server(tmp_path, backend.base_url) as running:
            client = running.client()
            batch = wait_for(client, created(client).id)
            assert counts_of(batch) == (LINES, LINES - 3 - ALONE, 3 + ALONE)
            failed = lines_of(client, batch.error_file_id)
            shared = [one for one in failed if one["response"]["status_code"] == 400]
            assert sorted(one["custom_id"] for one in shared) == ["line-3", "line-33", "line-63"]
            assert (await backend.stats()).arrivals == GROUPS + ALONE


@pytest.mark.rule("X11")
@pytest.mark.parametrize(
    "probe",
    [
        "worker.answered=kill_both@5",
        "commit.sent=kill_both",
        "commit.inside=kill",
    ],
)
async def test_a_death_at_any_step_settles_a_group_whole_or_not_at_all(
    tmp_path: Path, probe: str
) -> None:
    settings = {"worker": {"commit_interval_s": 0.01}}
    async with backend_process(Script(answer=Answer(latency_s=0.02))) as backend:
        with server(tmp_path, backend.base_url, settings=settings, probes=probe) as running:
            client = running.client()
            batch_id = created(client).id
            running.wait_ended()
            running.start()
            client = running.client()
            batch = wait_for(client, batch_id)
            assert batch.status == "completed"
            assert counts_of(batch) == (LINES, LINES, 0)
            assert_each_line_has_its_own(client, batch)
            # Whatever was sent again, nothing was sent for a line that got another one's result.
            assert receipt(client, batch.id)["calls_saved"] == 2 * GROUPS
            assert (await backend.log()).attempts().keys() <= {
                "other",
                *(f"same-{number}" for number in range(GROUPS)),
            }


@pytest.mark.rule("X11")
async def test_a_cancel_finishes_groups_whole_or_not_at_all(tmp_path: Path) -> None:
    """Half of the groups are answered within the grace; of the others no line has a result."""
    script = Script(
        answer=Answer(hold=True),
        by_id={f"same-{number}": (Answer(latency_s=0.05),) for number in range(0, GROUPS, 2)},
    )
    settings = {"cancel": {"grace_s": 0.3}}
    async with backend_process(script) as backend:
        with server(tmp_path, backend.base_url, settings=settings) as running:
            client = running.client()
            batch_id = created(client).id
            await backend.wait_until(min_arrivals=GROUPS + ALONE)
            client.batches.cancel(batch_id)
            batch = wait_for(client, batch_id, "cancelled")
            done = 3 * GROUPS // 2
            assert counts_of(batch) == (LINES, done, 0)
            results = lines_of(client, batch.output_file_id)
            numbers = {int(one["custom_id"].removeprefix("line-")) for one in results}
            assert numbers == {number for number in range(3 * GROUPS) if number % GROUPS % 2 == 0}
            never = lines_of(client, batch.error_file_id)
            assert len(never) == LINES - done
            assert {one["error"]["code"] for one in never} == {"batch_cancelled"}
            told = receipt(client, batch.id)
            assert told["calls_saved"] == GROUPS
            assert told["lines_finished"] == done
            assert (await backend.stats()).arrivals == GROUPS + ALONE


@pytest.mark.rule("X11")
@pytest.mark.timeout(60)
async def test_a_projects_default_holds_for_what_is_created_under_it_and_nothing_else(
    tmp_path: Path,
) -> None:
    """The server dies between create and start, and comes back with other settings."""
    source = tmp_path / "in.jsonl"
    source.write_bytes(CONTENT)
    settings = {"projects": {"research": {"identical_requests": "run_once"}}}
    async with backend_process() as backend:
        with server(tmp_path, backend.base_url, settings=settings) as running:
            research = running.new_key("research")
            env = {"OPENAI_BASE_URL": f"{running.origin}/v1", "OPENAI_API_KEY": research}
            submitted = await command("submit", source, "--no-run-once", env=env)
            assert submitted.returncode == 0, submitted.stderr
            wait_for(running.client(key=research), submitted.stdout.split()[-1], "completed")
            assert (await backend.stats()).arrivals == LINES
            running.terminate()
            running.start(probes="validation.done=kill")
            batch_id = created(running.client(key=research), value=None).id
            running.wait_ended()
        with server(tmp_path, backend.base_url) as running:
            client = running.client(key=research)
            wait_for(client, batch_id, "completed")
            assert receipt(client, batch_id)["calls_saved"] == 2 * GROUPS
            assert (await backend.stats()).arrivals == LINES + GROUPS + ALONE
            later = wait_for(client, created(client, value=None).id, "completed")
            with pytest.raises(openai.NotFoundError):
                receipt(client, later.id)
            assert (await backend.stats()).arrivals == 2 * LINES + GROUPS + ALONE
