"""Backends that are down, full, locked, hung or cut off: lines wait, and none wears out by it.

Where lines must not wear out the tests allow one attempt, so that a single one used would fail a
line.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.inputs import line_id, make_lines
from tests.support.scripted_backend import (
    Answer,
    BackendLog,
    Fault,
    Kind,
    Script,
    backend_process,
)
from tests.support.server import conserved, content_of, server, submit, wait_for

ONE_ATTEMPT: Final = {"retry": {"max_attempts": 1}}
TWO_WORKERS: Final = ["--workers", "2"]
LINES: Final = 300


def reason_of(body: dict[str, Any]) -> str:
    """Why the only backend is not used, as readiness says it."""
    (backend,) = body["backends"]
    return str(backend["reason"])


def both(first: BackendLog, second: BackendLog) -> BackendLog:
    """What two backends saw, for questions about ids."""
    return BackendLog([*first.events, *second.events])


async def test_a_batch_waits_for_a_backend_that_is_down_at_start(tmp_path: Path) -> None:
    content = make_lines(LINES)
    async with backend_process() as backend:
        await backend.go_down()
        with server(tmp_path, backend.base_url, settings=ONE_ATTEMPT) as running:
            client = running.client()
            batch = submit(client, content)
            wait_for(client, batch.id, "in_progress")
            body = running.wait_readiness(lambda body: body["backends"][0]["state"] == "gated")
            assert body["status"] == "ready"  # the API works; its batches wait
            assert "connection refused" in reason_of(body)
            await backend.come_up()
            ended = wait_for(client, batch.id)
            assert ended.status == "completed"
            summary = conserved(client, ended, content, await backend.log())
            assert (summary.finished, summary.resent) == (LINES, 0)
            body = running.wait_readiness(lambda body: body["backends"][0]["state"] == "up")
            assert body["backends"][0]["reason"] is None


async def test_a_backend_may_go_away_in_the_middle_and_return(tmp_path: Path) -> None:
    content = make_lines(LINES)
    settings = {"retry": {"max_attempts": 2, "base_s": 0.05}}
    async with backend_process(Script(answer=Answer(hold=True))) as backend:
        with server(tmp_path, backend.base_url, settings=settings, options=TWO_WORKERS) as running:
            client = running.client()
            batch = submit(client, content)
            await backend.wait_until(min_held=64)
            await backend.go_down()  # held requests are reset, new connections refused
            body = running.wait_readiness(lambda body: body["backends"][0]["state"] == "gated")
            assert "connection refused" in reason_of(body)
            await backend.stop_holding()
            await backend.come_up()
            ended = wait_for(client, batch.id)
            assert ended.status == "completed"
            summary = conserved(client, ended, content, await backend.log())
            # What had been sent is sent once more; the rest never knew.
            assert (summary.finished, summary.resent) == (LINES, 64)


async def test_requests_that_are_reset_unread_are_sent_again(tmp_path: Path) -> None:
    content = make_lines(LINES)
    settings = {"retry": {"max_attempts": 21, "base_s": 0.01, "ceiling_s": 0.01}}
    async with backend_process(Script(unread_resets=20)) as backend:
        with server(tmp_path, backend.base_url, settings=settings) as running:
            client = running.client()
            ended = wait_for(client, submit(client, content).id)
            assert ended.status == "completed"
            log = await backend.log()
            summary = conserved(client, ended, content, log)
            assert (summary.finished, summary.resent) == (LINES, 0)
            assert len(log.of(Kind.CUT_OFF)) == 20


@pytest.mark.parametrize("status", [429, 503])
async def test_a_backend_that_sheds_is_left_alone_by_all_workers_as_long_as_it_asks(
    tmp_path: Path, status: int
) -> None:
    content = make_lines(LINES)
    shedding = Script(answer=Answer(status=status, retry_after="1", latency_s=0.02))
    async with backend_process(shedding) as backend:
        with server(
            tmp_path, backend.base_url, settings=ONE_ATTEMPT, options=TWO_WORKERS
        ) as running:
            client = running.client()
            # Two shards, so that both workers have one.
            batches = [submit(client, content), submit(client, make_lines(LINES, start=LINES))]
            body = running.wait_readiness(lambda body: body["backends"][0]["state"] == "gated")
            assert reason_of(body) == f"takes no more requests for now (status {status})"
            assert body["backends"][0]["code"] == "backend_shed"
            await backend.wait_until(min_answered=1, in_flight=0)
            await backend.set_script(Script())
            for number, batch in enumerate(batches):
                ended = wait_for(client, batch.id)
                assert ended.status == "completed"
                part = make_lines(LINES, start=number * LINES)
                assert conserved(client, ended, part).finished == LINES
            log = await backend.log()
    shed = [event for event in log.of(Kind.ANSWERED) if event.status == status]
    assert len(shed) <= 64
    later = [event for event in log.arrivals if event.at > shed[-1].at]
    assert later[0].first_byte_at - shed[-1].at >= 0.9
    # One line tries whether it admits again; the others follow its answer.
    answered = next(event for event in log.of(Kind.ANSWERED) if event.status == 200)
    assert [event.id for event in later if event.at < answered.at] == [answered.id]


async def test_a_refused_key_opens_the_circuit_and_is_named(tmp_path: Path) -> None:
    content = make_lines(LINES)
    async with backend_process(Script(answer=Answer(status=401, latency_s=0.02))) as backend:
        with server(
            tmp_path, backend.base_url, settings=ONE_ATTEMPT, options=TWO_WORKERS
        ) as running:
            client = running.client()
            batch = submit(client, content)
            body = running.wait_readiness(lambda body: body["backends"][0]["state"] == "gated")
            assert reason_of(body) == "does not accept our API key (status 401)"
            assert body["backends"][0]["code"] == "backend_refused"
            # It is tried now and then; the lines wait.
            await backend.wait_until(min_answered=1, in_flight=0)
            sent = (await backend.stats()).arrivals
            await backend.wait_for_arrivals(sent + 1)
            assert client.batches.retrieve(batch.id).status == "in_progress"
            await backend.set_script(Script())
            ended = wait_for(client, batch.id)
            assert ended.status == "completed"
            assert conserved(client, ended, content, await backend.log()).finished == LINES


@pytest.mark.parametrize("status", [401, 429])
async def test_a_fault_of_the_backend_that_is_followed_by_a_break_has_used_no_attempt(
    tmp_path: Path, status: int
) -> None:
    """Of faults alone no line ends, however they are counted: so its attempts are used up after."""
    content = make_lines(5)
    refused = Answer(status=status)
    plan = (refused, refused, Answer(status=500), Answer())
    # Without patience: else the error of the trial would not count either.
    settings = {"retry": {"max_attempts": 2, "base_s": 0.01, "trial_patience_s": 0}}
    async with backend_process(Script(by_id={line_id(2): plan})) as backend:
        with server(tmp_path, backend.base_url, settings=settings) as running:
            client = running.client()
            ended = wait_for(client, submit(client, content).id)
            assert ended.status == "completed"
            log = await backend.log()
            assert conserved(client, ended, content, log).finished == 5
    of_line = [event.status for event in log.of(Kind.ANSWERED) if event.id == line_id(2)]
    assert of_line == [status, status, 500, 200]


async def test_the_key_of_an_attempt_changes_with_an_answer_and_not_without_one(
    tmp_path: Path,
) -> None:
    """Without one the work may be done already; with one a stored 500 would be given again."""
    plan = (Answer(fault=Fault.TRUNCATED), Answer(status=500), Answer())
    settings = {"retry": {"max_attempts": 3, "base_s": 0.01}}
    async with backend_process(Script(by_id={line_id(0): plan})) as backend:
        with server(tmp_path, backend.base_url, settings=settings) as running:
            client = running.client()
            ended = wait_for(client, submit(client, make_lines(1)).id)
            assert ended.status == "completed"
            first, second, third = [
                event.idempotency_key for event in (await backend.log()).arrivals
            ]
    assert first is not None
    assert first == second
    assert third not in (None, first)


async def test_a_hung_request_times_out_and_its_line_fails_after_its_attempts(
    tmp_path: Path,
) -> None:
    content = make_lines(LINES)
    hung = [line_id(number) for number in (3, 200)]
    script = Script(by_id={one: (Answer(fault=Fault.SILENT),) for one in hung})
    async with backend_process(script) as backend:
        settings = {
            "retry": {"max_attempts": 2, "base_s": 0.01},
            "backend": [{"base_url": backend.base_url, "total_timeout_s": 0.5}],
        }
        with server(tmp_path, settings=settings) as running:
            client = running.client()
            ended = wait_for(client, submit(client, content).id)
            assert ended.status == "completed"
            log = await backend.log()
            summary = conserved(client, ended, content, log)
            assert (summary.finished, summary.failed, summary.resent) == (LINES - 2, 2, 2)
            errors = content_of(client, ended.error_file_id) or b""
            codes = {
                line["custom_id"]: line["error"]["code"]
                for line in map(json.loads, errors.splitlines())
            }
            assert codes == dict.fromkeys(hung, "request_timeout")
            assert [log.attempts()[one] for one in hung] == [2, 2]
            await backend.wait_until(in_flight=0, min_aborted=4)


async def test_no_more_than_max_in_flight_over_all_workers(tmp_path: Path) -> None:
    parts = [make_lines(LINES, start=number * LINES) for number in range(3)]
    async with backend_process(Script(answer=Answer(latency_s=0.01))) as backend:
        settings = {"backend": [{"base_url": backend.base_url, "max_in_flight": 10}]}
        with server(tmp_path, settings=settings, options=TWO_WORKERS) as running:
            client = running.client()
            batches = [submit(client, part) for part in parts]
            for batch, part in zip(batches, parts, strict=True):
                ended = wait_for(client, batch.id)
                assert ended.status == "completed"
                assert conserved(client, ended, part).finished == LINES
            assert (await backend.stats()).max_in_flight == 10


async def test_two_backends_share_the_work(tmp_path: Path) -> None:
    content = make_lines(2 * LINES)
    script = Script(answer=Answer(latency_s=0.02))
    async with backend_process(script) as first, backend_process(script) as second:
        with server(tmp_path, first.base_url, second.base_url, options=TWO_WORKERS) as running:
            client = running.client()
            ended = wait_for(client, submit(client, content).id)
            assert ended.status == "completed"
            logs = await first.log(), await second.log()
            summary = conserved(client, ended, content, both(*logs))
            assert (summary.finished, summary.resent) == (2 * LINES, 0)
            assert min(len(log.arrivals) for log in logs) > LINES / 2


async def test_lines_of_a_backend_that_goes_away_go_to_the_other(tmp_path: Path) -> None:
    content = make_lines(2 * LINES)
    settings = {"retry": {"base_s": 0.05}}
    holding = Script(answer=Answer(hold=True))
    async with backend_process(holding) as first, backend_process(holding) as second:
        with server(tmp_path, first.base_url, second.base_url, settings=settings) as running:
            client = running.client()
            batch = submit(client, content)
            await first.wait_until(min_held=64)
            await second.wait_until(min_held=64)
            await first.go_down()
            await second.stop_holding()
            ended = wait_for(client, batch.id)
            assert ended.status == "completed"
            log = both(await first.log(), await second.log())
            summary = conserved(client, ended, content, log)
            assert (summary.finished, summary.resent) == (2 * LINES, 64)
            assert (await first.stats()).arrivals == 64
