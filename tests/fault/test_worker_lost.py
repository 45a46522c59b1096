"""A request that kills whatever runs it is found among thousands, settled, and nobody else pays."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.support.inputs import line_id, make_lines
from tests.support.scripted_backend import Answer, BackendControl, Script, backend_process
from tests.support.server import ServerProcess, conserved, content_of, server, submit, wait_for

LINES = 1_500
POISON = line_id(700)
HELD = line_id(20)
DEATHS = 5  # three until the shard is suspect, two with the line alone


async def kill_on_arrival(
    running: ServerProcess, backend: BackendControl, deaths: int, *, held: int = 1
) -> None:
    """Kill every worker when the poison is in flight, `deaths` times, as if it had done it."""
    for _ in range(deaths):
        now = await backend.wait_until(min_held=held)
        assert running.signal_workers(signal.SIGKILL) >= 1
        await backend.wait_until(min_aborted=now.aborted + held)


async def test_a_line_that_kills_its_workers_is_settled_as_worker_lost(tmp_path: Path) -> None:
    content = make_lines(LINES)
    script = Script(by_id={POISON: (Answer(hold=True),)})
    async with backend_process(script) as backend:
        with server(tmp_path, backend.base_url) as running:
            client = running.client()
            batch = submit(client, content)
            await kill_on_arrival(running, backend, DEATHS)
            ended = wait_for(client, batch.id)
            assert ended.status == "completed"
            log = await backend.log()
            summary = conserved(client, ended, content, log)
            assert (summary.finished, summary.failed) == (LINES - 1, 1)
            (error,) = map(
                json.loads, (content_of(client, ended.error_file_id) or b"").splitlines()
            )
            assert error["custom_id"] == POISON
            assert error["response"] is None
            assert error["error"]["code"] == "worker_lost"
            assert log.attempts()[POISON] == DEATHS
            # The worker that was there for the suspect shard alone is gone again.
            await backend.wait_until(in_flight=0)


@pytest.mark.rule("X11")
async def test_identical_requests_that_kill_are_lost_together(tmp_path: Path) -> None:
    """Each of them by itself would end as many workers."""
    same = json.loads(make_lines(1, start=700))
    same["body"]["temperature"] = 0
    twins = [json.dumps({**same, "custom_id": f"twin-{number}"}).encode() for number in range(3)]
    content = make_lines(100) + b"\n".join(twins)
    script = Script(by_id={POISON: (Answer(hold=True),)})
    async with backend_process(script) as backend:
        with server(tmp_path, backend.base_url) as running:
            client = running.client()
            file = client.files.create(file=("in.jsonl", content), purpose="batch")
            batch = client.batches.create(
                input_file_id=file.id,
                endpoint="/v1/chat/completions",
                completion_window="24h",
                extra_body={"identical_requests": "run_once"},
            )
            await kill_on_arrival(running, backend, DEATHS)
            ended = wait_for(client, batch.id)
            errors = [
                json.loads(line)
                for line in (content_of(client, ended.error_file_id) or b"").splitlines()
            ]
            assert sorted(error["custom_id"] for error in errors) == ["twin-0", "twin-1", "twin-2"]
            assert {error["error"]["code"] for error in errors} == {"worker_lost"}
            assert (await backend.log()).attempts()[POISON] == DEATHS
            receipt = client.get(f"/batches/{batch.id}/receipt", cast_to=object)
            assert isinstance(receipt, dict)
            assert receipt["calls_saved"] == 0


async def test_a_line_that_only_shared_the_worker_is_not_blamed(tmp_path: Path) -> None:
    """Both lines are in flight at the first three deaths; alone, each is judged by itself."""
    content = make_lines(LINES)
    slow = Answer(hold=True)
    script = Script(by_id={POISON: (slow,), HELD: (slow, slow, slow, Answer())})
    async with backend_process(script) as backend:
        with server(tmp_path, backend.base_url) as running:
            client = running.client()
            batch = submit(client, content)
            await kill_on_arrival(running, backend, 3, held=2)
            await kill_on_arrival(running, backend, 2)
            ended = wait_for(client, batch.id)
            summary = conserved(client, ended, content, await backend.log())
            assert (summary.finished, summary.failed) == (LINES - 1, 1)


async def test_deaths_that_no_line_caused_cost_little_and_blame_nobody(tmp_path: Path) -> None:
    """Kills from outside: what was under way at all of them runs alone, the rest as ever."""
    content = make_lines(LINES)
    async with backend_process(Script(answer=Answer(latency_s=0.04))) as backend:
        with server(tmp_path, backend.base_url) as running:
            client = running.client()
            batch = submit(client, content)
            for _ in range(3):
                await backend.wait_for_arrivals((await backend.stats()).arrivals + 100)
                running.signal_workers(signal.SIGKILL)
            # One line at a time would take a minute; 64 of them take 3 s, beside the others.
            ended = wait_for(client, batch.id)
            assert conserved(client, ended, content, await backend.log()).finished == LINES


async def test_a_cancel_reaches_the_suspect_shard(tmp_path: Path) -> None:
    content = make_lines(LINES)
    script = Script(by_id={POISON: (Answer(hold=True),)})
    settings = {"cancel": {"grace_s": 0.0}}
    async with backend_process(script) as backend:
        with server(tmp_path, backend.base_url, settings=settings) as running:
            client = running.client()
            batch = submit(client, content)
            await kill_on_arrival(running, backend, 3)
            await backend.wait_until(min_held=1)
            client.batches.cancel(batch.id)
            ended = wait_for(client, batch.id)
            assert ended.status == "cancelled"
            summary = conserved(client, ended, content, await backend.log())
            assert summary.cancelled >= 1  # and what came after the poison, one at a time
            assert summary.finished + summary.cancelled == LINES
