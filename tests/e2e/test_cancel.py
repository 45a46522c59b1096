"""Cancel, from the call to the backend's own log (design.md section 6)."""

from __future__ import annotations

import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.support.inputs import make_lines
from tests.support.scripted_backend import Answer, Fault, Script, backend_process
from tests.support.server import conserved, server, submit, wait_for

AT_ONCE = {"cancel": {"grace_s": 0.0}}
PATIENT = {"cancel": {"grace_s": 20.0}}


def receipt_of(client: openai.OpenAI, batch_id: str) -> dict[str, Any]:
    """The cancel receipt as its route gives it."""
    answer = client.get(f"/batches/{batch_id}/receipt", cast_to=object)
    assert isinstance(answer, dict)
    return answer


@pytest.mark.rule("L3")
@pytest.mark.rule("L5")
@pytest.mark.rule("X1")
async def test_a_cancel_keeps_what_was_done_and_accounts_for_the_rest(tmp_path: Path) -> None:
    content = make_lines(3_000)
    script = Script(answer=Answer(latency_s=0.02))
    async with backend_process(script) as backend:
        with server(tmp_path, backend.base_url, options=["--workers", "2"]) as running:
            client = running.client()
            batch = submit(client, content)
            await backend.wait_for_arrivals(500)
            cancelling = client.batches.cancel(batch.id)
            told_at = await backend.caught_up()
            assert cancelling.status == "cancelling"
            assert cancelling.cancelling_at is not None
            assert cancelling.output_file_id is None
            ended = wait_for(client, batch.id)
            assert ended.status == "cancelled"
            log = await backend.log()
            assert log.arrived_after(told_at) == []
            summary = conserved(client, ended, content, log)
            assert summary.finished >= 436  # what had arrived, less what may be in flight
            assert summary.cancelled == 3_000 - summary.finished
            receipt = receipt_of(client, batch.id)
            assert receipt["lines_finished"] == summary.finished
            assert receipt["lines_never_sent"] + receipt["lines_aborted"] == summary.cancelled
            assert receipt["quiet"] is True
            assert receipt["workers_killed"] == []
            assert receipt["status"] == "cancelled"
            assert receipt["requested_at"] == ended.cancelling_at
            assert 0 <= receipt["acknowledged_ms"] <= receipt["quiet_ms"]


async def test_running_requests_may_finish_within_the_grace(tmp_path: Path) -> None:
    content = make_lines(200)
    async with backend_process(Script(answer=Answer(hold=True))) as backend:
        with server(tmp_path, backend.base_url, settings=PATIENT) as running:
            client = running.client()
            batch = submit(client, content)
            await backend.wait_until(min_held=64)
            client.batches.cancel(batch.id)
            assert client.batches.retrieve(batch.id).status == "cancelling"
            await backend.stop_holding()
            ended = wait_for(client, batch.id)
            log = await backend.log()
            summary = conserved(client, ended, content, log)
            assert summary.finished == 64
            assert summary.cancelled == 136
            assert receipt_of(client, batch.id)["in_flight_at_acknowledgement"] == 64


async def test_without_grace_running_requests_are_closed_at_once(tmp_path: Path) -> None:
    content = make_lines(200)
    async with backend_process(Script(answer=Answer(fault=Fault.SILENT))) as backend:
        with server(tmp_path, backend.base_url, settings=AT_ONCE) as running:
            client = running.client()
            batch = submit(client, content)
            await backend.wait_until(min_in_flight=64)
            client.batches.cancel(batch.id)
            ended = wait_for(client, batch.id)
            stats = await backend.wait_until(in_flight=0, min_aborted=64)
            assert stats.aborted == 64
            summary = conserved(client, ended, content, await backend.log())
            assert (summary.finished, summary.cancelled) == (0, 200)
            assert ended.output_file_id is None
            receipt = receipt_of(client, batch.id)
            assert receipt["lines_aborted"] == 64
            assert receipt["lines_never_sent"] == 136


async def test_a_retryable_end_during_the_grace_is_not_retried(tmp_path: Path) -> None:
    content = make_lines(10)
    script = Script(answer=Answer(hold=True, status=500))
    async with backend_process(script) as backend:
        with server(tmp_path, backend.base_url, settings=PATIENT) as running:
            client = running.client()
            batch = submit(client, content)
            await backend.wait_until(min_held=10)
            client.batches.cancel(batch.id)
            await backend.stop_holding()
            ended = wait_for(client, batch.id)
            summary = conserved(client, ended, content)
            assert (summary.cancelled, summary.failed) == (10, 0)
            assert (await backend.stats()).arrivals == 10


async def test_a_final_refusal_during_the_grace_is_a_failed_result(tmp_path: Path) -> None:
    content = make_lines(10)
    async with backend_process(Script(answer=Answer(hold=True, status=400))) as backend:
        with server(tmp_path, backend.base_url, settings=PATIENT) as running:
            client = running.client()
            batch = submit(client, content)
            await backend.wait_until(min_held=10)
            client.batches.cancel(batch.id)
            await backend.stop_holding()
            ended = wait_for(client, batch.id)
            assert conserved(client, ended, content).failed == 10


async def test_lines_that_wait_for_a_retry_are_cancelled(tmp_path: Path) -> None:
    content = make_lines(10)
    script = Script(answer=Answer(status=500))
    settings = {"retry": {"base_s": 60.0, "ceiling_s": 60.0}, **PATIENT}
    async with backend_process(script) as backend:
        with server(tmp_path, backend.base_url, settings=settings) as running:
            client = running.client()
            batch = submit(client, content)
            await backend.wait_until(min_answered=10)
            client.batches.cancel(batch.id)
            ended = wait_for(client, batch.id)
            assert conserved(client, ended, content).cancelled == 10


async def test_cancel_is_idempotent_in_every_state_that_allows_it(tmp_path: Path) -> None:
    content = make_lines(100)
    async with backend_process(Script(answer=Answer(hold=True))) as backend:
        with server(tmp_path, backend.base_url, settings=PATIENT) as running:
            client = running.client()
            batch = submit(client, content)
            await backend.wait_until(min_held=64)
            with ThreadPoolExecutor(16) as threads:
                answers = list(threads.map(lambda _: client.batches.cancel(batch.id), range(50)))
            assert {answer.status for answer in answers} == {"cancelling"}
            assert len({answer.cancelling_at for answer in answers}) == 1
            await backend.stop_holding()
            ended = wait_for(client, batch.id)
            again = client.batches.cancel(batch.id)
            assert again == ended


async def test_a_completed_batch_cannot_be_cancelled_and_the_client_is_told_not_to_retry(
    tmp_path: Path,
) -> None:
    content = make_lines(3)
    async with backend_process() as backend:
        with server(tmp_path, backend.base_url) as running:
            client = running.client(retries=2)
            batch = submit(client, content)
            ended = wait_for(client, batch.id)
            with pytest.raises(openai.ConflictError) as refused:
                client.batches.cancel(batch.id)
            assert refused.value.response.headers["x-should-retry"] == "false"
            assert "Cannot cancel a batch with status 'completed'." in refused.value.message
            assert client.batches.retrieve(batch.id) == ended


async def test_a_cancel_right_after_the_create_ends_cancelled(tmp_path: Path) -> None:
    content = make_lines(2_000)
    async with backend_process(Script(answer=Answer(latency_s=0.01))) as backend:
        with server(tmp_path, backend.base_url) as running:
            client = running.client()
            file = client.files.create(file=("in.jsonl", content), purpose="batch")
            chance = random.Random(7)  # noqa: S311  # moments, not secrets
            batches = []
            for _ in range(25):
                batch = client.batches.create(
                    input_file_id=file.id,
                    endpoint="/v1/chat/completions",
                    completion_window="24h",
                )
                time.sleep(chance.random() * 0.02)
                cancelled = client.batches.cancel(batch.id)
                assert cancelled.status == "cancelling"
                batches.append(batch.id)
            for batch_id in batches:
                ended = wait_for(client, batch_id)
                assert ended.status == "cancelled"
                receipt = receipt_of(client, batch_id)
                assert None not in receipt.values()
                conserved(client, ended, content)
                if ended.in_progress_at is None:
                    assert ended.request_counts is not None
                    assert ended.request_counts.total == 0
                    assert ended.error_file_id is None


async def test_a_stopped_worker_is_killed_before_the_answer(tmp_path: Path) -> None:
    content = make_lines(500)
    async with backend_process(Script(answer=Answer(hold=True))) as backend:
        with server(tmp_path, backend.base_url, settings=PATIENT) as running:
            client = running.client()
            batch = submit(client, content)
            await backend.wait_until(min_held=64)
            stopped = running.workers()
            assert running.signal_workers(signal.SIGSTOP) == 1
            client.batches.cancel(batch.id)
            assert not set(stopped) & set(running.workers())
            told_at = await backend.caught_up()
            ended = wait_for(client, batch.id)
            assert ended.status == "cancelled"
            conserved(client, ended, content)
            assert (await backend.log()).arrived_after(told_at) == []
            assert receipt_of(client, batch.id)["workers_killed"]


async def test_a_backend_that_never_answers_cannot_hold_a_cancel_past_its_cap(
    tmp_path: Path,
) -> None:
    content = make_lines(100)
    settings = {"cancel": {"grace_s": 600.0, "cap_s": 1.0}}
    async with backend_process(Script(answer=Answer(fault=Fault.SILENT))) as backend:
        with server(tmp_path, backend.base_url, settings=settings) as running:
            client = running.client()
            batch = submit(client, content)
            await backend.wait_until(min_in_flight=64)
            began = time.monotonic()
            client.batches.cancel(batch.id)
            ended = wait_for(client, batch.id)
            assert time.monotonic() - began >= 0.6  # two thirds are for what runs
            assert ended.status == "cancelled"
            assert conserved(client, ended, content).cancelled == 100
            await backend.wait_until(in_flight=0)


async def test_a_cancel_disturbs_no_other_batch(tmp_path: Path) -> None:
    content = make_lines(1_500)
    other = make_lines(1_500, start=10_000)
    async with backend_process(Script(answer=Answer(latency_s=0.01))) as backend:
        with server(tmp_path, backend.base_url, settings=AT_ONCE) as running:
            client = running.client()
            first, second = submit(client, content), submit(client, other)
            await backend.wait_for_arrivals(300)
            client.batches.cancel(first.id)
            assert wait_for(client, first.id).status == "cancelled"
            ended = wait_for(client, second.id)
            assert ended.status == "completed"
            assert conserved(client, ended, other).finished == 1_500
