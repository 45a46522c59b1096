"""Hundreds of cancels at random moments: after the 200 nothing of the batch goes to a backend.

Several batches run at a time; what counts as after is told in `tests/support/late_requests.py`.
`BATCHLINE_CANCELS=1000` makes it longer, `BATCHLINE_SEED` repeats a run.
"""

from __future__ import annotations

import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import anyio
import openai
import pytest

from tests.support.inputs import make_lines
from tests.support.late_requests import CancelledBatch, cancel_and_wait, logs_by_batch
from tests.support.scripted_backend import Answer, Script, backend_process
from tests.support.server import server, submit, wait_for

CANCELS: Final = int(os.environ.get("BATCHLINE_CANCELS") or 200)
SEED: Final = int(os.environ.get("BATCHLINE_SEED") or random.SystemRandom().randrange(2**32))

LINES: Final = 250
AT_ONCE: Final = 4
DELAY_S: Final = 0.3  # at most, from the first moment of `in_progress`; a batch takes a second


@pytest.mark.timeout(60 + CANCELS // 2)
@pytest.mark.long
async def test_no_request_comes_after_the_answer_to_a_cancel(tmp_path: Path) -> None:
    _say(f"\nseed {SEED}, {CANCELS} cancels (BATCHLINE_SEED, BATCHLINE_CANCELS)")
    script = Script(answer=Answer(latency_s=0.02, latency_max_s=0.15), seed=SEED)
    # A worker that a busy machine holds up is not to be killed for it: its lines would be sent
    # again.
    settings = {"cancel": {"grace_s": 0.0, "ack_s": 5.0}}
    async with backend_process(script) as backend:
        with server(
            tmp_path, backend.base_url, settings=settings, options=["--workers", "2"]
        ) as running:
            client = running.client()
            cancelled = await anyio.to_thread.run_sync(_run_and_cancel, client, backend.url)
            logs = logs_by_batch(await backend.log(), lines=LINES, batches=CANCELS)
            # Each shard came back by itself: a worker that has to be killed for one takes requests
            # of other batches with it.
            assert "batch_fenced" not in running.log.read_text()

    met, longest_s, unread = 0, 0.0, 0
    late: list[list[str]] = []  # what the backend saw of each such request, since the answer
    for one, log in zip(cancelled, logs, strict=True):
        assert one.ended.status == "cancelled"
        summary = one.check(log)
        assert summary.resent == 0
        assert summary.failed == 0, one.errors
        late += [one.told(log, event) for event in one.late(log)]
        unread += len(log.arrived_after(one.told_at))
        met += log.in_flight_at(one.asked_at) > 0
        longest_s = max(longest_s, one.told_at - one.asked_at)
    _say(
        f"{met} of {CANCELS} met requests in flight; slowest answer {longest_s * 1000:.0f} ms; "
        f"{len(late)} requests sent after an answer, {unread} read after one"
    )
    assert late == []
    assert 2 * met >= CANCELS, "too few cancels met a batch with requests in flight"


def _run_and_cancel(client: openai.OpenAI, backend_url: str) -> list[CancelledBatch]:
    chance = random.Random(SEED)  # noqa: S311  # moments, not secrets
    delays = [chance.uniform(0, DELAY_S) for _ in range(CANCELS)]

    def one(number: int) -> CancelledBatch:
        start = number * LINES
        batch = submit(client, make_lines(LINES, start=start))
        wait_for(client, batch.id, "in_progress")
        time.sleep(delays[number])
        return cancel_and_wait(client, backend_url, batch.id, start=start, lines=LINES)

    with ThreadPoolExecutor(AT_ONCE) as threads:
        return list(threads.map(one, range(CANCELS)))


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201  # the record of a run; pytest shows it on failure or -s
