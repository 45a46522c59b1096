"""Two things at once to one batch, on a real server: each answer is kept, and never half of both.

Where there are two possible ends, the moments are chosen so that both come. `BATCHLINE_RACES=1000`
makes the first test longer, `BATCHLINE_SEED` repeats its moments.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Barrier
from typing import Any, Final, TypeVar

import anyio
import openai
import pytest
from openai.types import Batch

from tests.support.inputs import line_id, make_lines
from tests.support.late_requests import CancelledBatch, cancel_and_wait, logs_by_batch
from tests.support.pauses import POLL_S
from tests.support.scripted_backend import Answer, Script, backend_process
from tests.support.server import (
    WAIT_S,
    ServerProcess,
    conserved,
    content_of,
    server,
    submit,
    wait_for,
)
from tests.support.stored import wait_until_rows_and_bytes_agree

RACES: Final = int(os.environ.get("BATCHLINE_RACES") or 100)
SEED: Final = int(os.environ.get("BATCHLINE_SEED") or random.SystemRandom().randrange(2**32))

AT_ONCE: Final = 6
LINES: Final = 10
DELAY_S: Final = 0.02  # at most, from a create to its cancel
HOLD: Final = Script(answer=Answer(hold=True))
NO_GRACE: Final = {"cancel": {"grace_s": 0.0}, "expire": {"grace_s": 0.0}}
SWEEPING: Final = {"retention": {"sweep_s": 0.05}, "worker": {"segment_idle_s": 0.2}}

A = TypeVar("A")
B = TypeVar("B")


# -- create and cancel -------------------------------------------------------------------------


@pytest.mark.timeout(60 + RACES // 2)
async def test_a_cancel_within_20_ms_of_its_create_ends_cancelled(tmp_path: Path) -> None:
    _say(f"\nseed {SEED}, {RACES} batches (BATCHLINE_SEED, BATCHLINE_RACES)")
    # Some lines are done at once, and of ten there is one that keeps its batch from completing.
    script = Script(answer=Answer(latency_s=0.005, latency_max_s=5.0), seed=SEED)
    settings = {"cancel": {"grace_s": 0.0, "ack_s": 5.0}}
    async with backend_process(script) as backend:
        with server(tmp_path, backend.base_url, settings=settings) as running:
            client = running.client()
            ran = await anyio.to_thread.run_sync(_create_and_cancel, client, backend.url)
            logs = logs_by_batch(await backend.log(), lines=LINES, batches=RACES)
    late: list[list[str]] = []
    seen: Counter[str] = Counter()
    for one, log in zip(ran, logs, strict=True):
        assert one.ended.status == "cancelled"
        summary = one.check(log)
        assert summary.failed == 0, one.errors
        late += [one.told(log, event) for event in one.late(log)]
        seen["never started"] += one.ended.in_progress_at is None
        seen["met requests"] += bool(log.arrivals)
        seen["lines finished"] += summary.finished
    _say(f"{dict(seen)}; {len(late)} requests sent after an answer")
    assert late == []
    # On a busy machine it may be all of them: 20 ms are over before a file has been read.
    assert seen["never started"], "every cancel came too late for what it is about"


def _create_and_cancel(client: openai.OpenAI, backend_url: str) -> list[CancelledBatch]:
    chance = random.Random(SEED)  # noqa: S311  # moments, not secrets
    delays = [chance.uniform(0, DELAY_S) for _ in range(RACES)]

    def one(number: int) -> CancelledBatch:
        start = number * LINES
        batch = submit(client, make_lines(LINES, start=start))
        time.sleep(delays[number])
        return cancel_and_wait(client, backend_url, batch.id, start=start, lines=LINES)

    with ThreadPoolExecutor(AT_ONCE) as threads:
        return list(threads.map(one, range(RACES)))


async def test_two_orders_under_one_key_at_once_make_one_batch(tmp_path: Path) -> None:
    async with backend_process() as backend:
        with server(tmp_path, backend.base_url) as running:
            client = running.client()
            content = make_lines(1)
            file = client.files.create(file=("in.jsonl", content), purpose="batch")

            def create(caller: int) -> Batch | None:
                try:
                    return client.batches.create(
                        input_file_id=file.id,
                        endpoint="/v1/chat/completions",
                        completion_window="24h",
                        metadata={"order": str(caller % 2)},
                        extra_headers={"Idempotency-Key": "one"},
                    )
                except openai.ConflictError:
                    return None

            with ThreadPoolExecutor(10) as threads:
                made = list(threads.map(create, range(10)))
            assert len({batch.id for batch in made if batch is not None}) == 1
            # All callers with the order that won were given the batch, and nobody else.
            assert [batch is not None for batch in made] in ([True, False] * 5, [False, True] * 5)
            assert len(client.batches.list().data) == 1


# -- cancel and the end ------------------------------------------------------------------------


async def test_a_cancel_beside_the_last_answers_ends_cancelled_or_comes_too_late(
    tmp_path: Path,
) -> None:
    """Each round moves towards the moment at which the batch completes, from either side."""
    async with backend_process(HOLD) as backend:
        with server(tmp_path, backend.base_url) as running:
            client = running.client()
            seen: Counter[str] = Counter()
            delay_s = 0.0
            number = 0
            while number < 16 or min(seen["completed"], seen["cancelled"]) < 2:
                assert number < 60, seen
                start = number * 2
                content = make_lines(2, start=start)
                batch = submit(client, content)
                await backend.wait_until(min_held=2)
                await backend.release(line_id(start), line_id(start + 1))
                await anyio.sleep(delay_s)
                told = cancel_or_too_late(client, batch.id)
                ended = wait_for(client, batch.id)
                assert ended.status == ("completed" if told is None else "cancelled")
                assert conserved(client, ended, content).failed == 0
                seen[ended.status] += 1
                delay_s = delay_s * 0.8 if told is None else delay_s * 1.5 + 0.002
                number += 1
            _say(f"{dict(seen)}")


async def test_a_cancel_while_the_files_of_an_expired_batch_are_written_ends_cancelled(
    tmp_path: Path,
) -> None:
    """The child that writes the lines that never ran is stopped, so that `finalizing` lasts."""
    content = make_lines(100)
    settings = {"windows": ["10s"], **NO_GRACE}
    async with backend_process(HOLD) as backend:
        with server(tmp_path, backend.base_url, settings=settings, start=False) as running:
            running.start(probes="never_run.synced=stop")
            client = running.client()
            batch = submit(client, content, window="10s")
            await backend.wait_until(min_held=64)
            await backend.release(*(line_id(number) for number in range(10)))
            wait_for(client, batch.id, "finalizing")
            stopped = _until_stopped(running)
            told = client.batches.cancel(batch.id)
            assert told.status == "cancelling"
            assert told.finalizing_at is not None
            assert told.error_file_id is None
            assert client.batches.cancel(batch.id).cancelling_at == told.cancelling_at
            os.kill(stopped, signal.SIGCONT)
            ended = wait_for(client, batch.id)
            assert ended.status == "cancelled"
            assert ended.expired_at is None
            summary = conserved(client, ended, content)
            assert summary.cancelled == 100 - summary.finished


def _until_stopped(running: ServerProcess) -> int:
    """The child that a probe has stopped."""
    deadline = time.monotonic() + WAIT_S
    while True:
        for pid in running.children():
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            if state == "T":
                return pid
        assert time.monotonic() < deadline, "no child was stopped"
        time.sleep(POLL_S)


async def test_a_cancel_beside_the_end_of_the_window_ends_in_one_of_the_two_ways(
    tmp_path: Path,
) -> None:
    count = 16
    settings = {"windows": ["4s"], **NO_GRACE}
    async with backend_process(HOLD) as backend:
        with server(tmp_path, backend.base_url, settings=settings) as running:
            client = running.client()
            contents = [make_lines(2, start=2 * number) for number in range(count)]

            def one(number: int) -> tuple[str, Batch | None]:
                batch = submit(client, contents[number], window="4s")
                # From 0.2 s before the end to as much after it. One is too late for certain, and
                # one early: a busy machine may be late by more than that.
                offset_s = 0.4 * number / (count - 1) - 0.2
                assert batch.expires_at is not None
                if number == count - 1:
                    wait_for(client, batch.id)
                if number > 0:
                    time.sleep(max(0.0, batch.expires_at + offset_s - time.time()))
                return batch.id, cancel_or_too_late(client, batch.id)

            with ThreadPoolExecutor(count) as threads:
                answers = list(threads.map(one, range(count)))
            seen: Counter[str] = Counter()
            for content, (batch_id, told) in zip(contents, answers, strict=True):
                ended = wait_for(client, batch_id)
                assert ended.status == ("expired" if told is None else "cancelled")
                summary = conserved(client, ended, content)
                # Which code a line has follows the status: `conserved` sees to that.
                assert summary.not_run == (0 if ended.in_progress_at is None else 2)
                seen[ended.status] += 1
            _say(f"{dict(seen)}")
            assert seen["expired"]
            assert seen["cancelled"]


# -- the input goes away -----------------------------------------------------------------------


async def test_a_cancel_beside_the_deletion_of_the_input_accounts_for_every_line(
    tmp_path: Path,
) -> None:
    async with backend_process(HOLD) as backend:
        with server(tmp_path, backend.base_url, settings={**NO_GRACE, **SWEEPING}) as running:
            client = running.client()
            for number in range(6):
                content = make_lines(20, start=20 * number)
                batch = submit(client, content)
                await backend.wait_until(min_held=20)
                await backend.release(line_id(20 * number))
                told, deleted = both(
                    partial(client.batches.cancel, batch.id),
                    partial(client.files.delete, batch.input_file_id),
                )
                assert told.status == "cancelling"
                assert deleted.deleted
                ended = wait_for(client, batch.id)
                assert ended.status == "cancelled"
                summary = conserved(client, ended, content)
                assert summary.cancelled == 20 - summary.finished
            wait_until_rows_and_bytes_agree(running.data)


async def test_a_create_beside_the_deletion_of_its_input_runs_whole_or_not_at_all(
    tmp_path: Path,
) -> None:
    async with backend_process() as backend:
        with server(tmp_path, backend.base_url, settings=SWEEPING) as running:
            client = running.client()
            seen: Counter[str] = Counter()
            ahead_s = 0.0  # of the create before the deletion; below 0: after it
            for number in range(12):
                content = make_lines(3, start=3 * number)
                file = client.files.create(file=("in.jsonl", content), purpose="batch")
                created, _ = both(
                    partial(_create, client, file.id, after_s=-ahead_s),
                    partial(_delete, client, file.id, after_s=ahead_s),
                )
                ended = wait_for(client, created.id)
                assert ended.status in ("completed", "failed")
                if ended.status == "completed":
                    assert conserved(client, ended, content).finished == 3
                else:
                    assert ended.errors is not None
                    assert ended.errors.data is not None
                    assert str(ended.errors.data[0].message).startswith("Cannot find file")
                    assert content_of(client, ended.output_file_id) is None
                seen[ended.status] += 1
                ahead_s += -0.001 if ended.status == "completed" else 0.001
            _say(f"{dict(seen)}")
            assert seen["completed"]
            assert seen["failed"]
            wait_until_rows_and_bytes_agree(running.data)


def _create(client: openai.OpenAI, file_id: str, *, after_s: float) -> Batch:
    time.sleep(max(0.0, after_s))
    return client.batches.create(
        input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h"
    )


def _delete(client: openai.OpenAI, file_id: str, *, after_s: float) -> None:
    time.sleep(max(0.0, after_s))
    assert client.files.delete(file_id).deleted


# -- what races need ---------------------------------------------------------------------------


def cancel_or_too_late(client: openai.OpenAI, batch_id: str) -> Batch | None:
    """What a cancel is answered with 200; None for the 409 of a batch that ended otherwise."""
    try:
        batch = client.batches.cancel(batch_id)
    except openai.ConflictError as refused:
        message = refused.message
    else:
        assert batch.status == "cancelling"
        assert batch.cancelling_at is not None
        return batch
    ended = client.batches.retrieve(batch_id)
    assert f"Cannot cancel a batch with status '{ended.status}'." in message
    return None


def both(one: Callable[[], A], other: Callable[[], B]) -> tuple[A, B]:
    """What the two give that are done at once."""
    start = Barrier(2)

    def at_once(work: Callable[[], Any]) -> Any:
        start.wait()
        return work()

    with ThreadPoolExecutor(2) as threads:
        first, second = threads.submit(at_once, one), threads.submit(at_once, other)
        return first.result(), second.result()


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201  # the record of a run; pytest shows it on failure or -s
