"""Hundreds of cancels at random moments: after the 200 nothing of the batch goes to a backend.

Several batches run at a time, each with prompts of its own numbers, so that the backend's log says
whose request came when. `BATCHLINE_CANCELS=1000` makes it longer, `BATCHLINE_SEED` repeats a run.

The backend reads a request, on a busy machine, up to 80 ms after it came, and may then answer it
before it sees that it was aborted. So the kernel's stamp counts, which says when it came. Besides,
the backend is asked something after each 200: what it reads later than that was sent too late.
"""

from __future__ import annotations

import os
import random
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import anyio
import openai
import pytest
from openai.types import Batch

from tests.support.conserved import Conserved, assert_conserved
from tests.support.inputs import make_lines
from tests.support.invariants import Cancelled, sent_after
from tests.support.scripted_backend import Answer, BackendLog, Event, Script, backend_process
from tests.support.server import content_of, server, submit, wait_for

CANCELS: Final = int(os.environ.get("BATCHLINE_CANCELS") or 200)
SEED: Final = int(os.environ.get("BATCHLINE_SEED") or random.SystemRandom().randrange(2**32))

LINES: Final = 250
AT_ONCE: Final = 4
DELAY_S: Final = 0.3  # at most, from the first moment of `in_progress`; a batch takes a second


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelledBatch:
    """One batch of `LINES` lines from `start`. Instants are `time.time()`: around the cancel, and
    when the backend had answered a question that was asked after it."""

    start: int
    asked_at: float
    told_at: float
    read_at: float
    ended: Batch
    output: bytes | None
    errors: bytes | None

    def check(self, log: BackendLog) -> Conserved:
        content = make_lines(LINES, start=self.start)
        return assert_conserved(content, self.ended, self.output, self.errors, witness=log)

    def late(self, log: BackendLog) -> list[Event]:
        """The requests that were sent after the 200."""
        return sent_after(Cancelled(told_at=self.told_at, read_at=self.read_at), log)

    def told(self, log: BackendLog, late: Event) -> list[str]:
        """What became of a request at the backend, in seconds since the 200."""
        seen = [each for each in log.events if each.request == late.request]
        return [
            f"received {late.received_at - self.told_at:+.3f}",
            f"first byte {late.first_byte_at - self.told_at:+.3f}",
            *(f"{each.kind} {each.at - self.told_at:+.3f}" for each in seen),
            f"the question answered {self.read_at - self.told_at:+.3f}",
        ]


@pytest.mark.timeout(60 + CANCELS // 2)
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
            logs = _by_batch(await backend.log())
            # Each shard came back by itself: a worker that has to be killed for one takes requests
            # of other batches with it.
            assert "batch_fenced" not in running.log.read_text()

    met, longest_s, unread = 0, 0.0, 0
    late: list[list[str]] = []  # what the backend saw of each such request, since the answer
    for one in cancelled:
        log = logs[one.start // LINES]
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
        asked_at = time.time()
        assert client.batches.cancel(batch.id).status == "cancelling"
        told_at = time.time()
        _ask(backend_url)
        read_at = time.time()
        ended = wait_for(client, batch.id)
        return CancelledBatch(
            start=start,
            asked_at=asked_at,
            told_at=told_at,
            read_at=read_at,
            ended=ended,
            output=content_of(client, ended.output_file_id),
            errors=content_of(client, ended.error_file_id),
        )

    with ThreadPoolExecutor(AT_ONCE) as threads:
        return list(threads.map(one, range(CANCELS)))


def _ask(backend_url: str) -> None:
    """A round trip to the backend on a new connection.

    It accepts connections in order and then reads them in order (on another port it would not), so
    what was sent before this has been read when it returns.
    """
    address = urlsplit(backend_url)
    connection = HTTPConnection(address.hostname or "", address.port, timeout=10)
    connection.request("GET", "/v1/models")
    assert connection.getresponse().read()
    connection.close()


def _by_batch(log: BackendLog) -> dict[int, BackendLog]:
    """The log of each batch, by the batch's number."""
    events: dict[int, list[Event]] = defaultdict(list)
    for event in log.events:
        events[int(event.id.removeprefix("line-")) // LINES].append(event)
    return {number: BackendLog(events.get(number, [])) for number in range(CANCELS)}


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201  # the record of a run; pytest shows it on failure or -s
