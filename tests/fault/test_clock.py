"""The wall clock set forward and back by hours while batches run, and while the server is away."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import openai
from openai.types import Batch

from tests.support.inputs import line_id, make_lines
from tests.support.pauses import pause
from tests.support.scripted_backend import Answer, Script, backend_process
from tests.support.server import ServerProcess, conserved, server, submit, wait_for

HOUR = 3_600
SHARD = 1_000
SETTINGS: dict[str, object] = {
    "windows": ["1h"],
    "retention": {"sweep_s": 0.1},
    "shutdown": {"grace_s": 0.0},
}


class Clock:
    """The server's wall clock, by how many seconds it is ahead."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.set(0)

    def set(self, ahead_s: int) -> None:
        fresh = self.path.with_suffix(".new")
        fresh.write_text(str(ahead_s))
        fresh.replace(self.path)


@contextmanager
def with_a_clock(folder: Path, upstream: str) -> Iterator[tuple[ServerProcess, Clock]]:
    clock = Clock(folder / "ahead")
    with server(folder, upstream, settings=SETTINGS, clock=clock.path) as running:
        yield running, clock


def settled(client: openai.OpenAI, batch: Batch) -> int:
    counts = client.batches.retrieve(batch.id).request_counts
    assert counts is not None
    return counts.completed


def until_settled(client: openai.OpenAI, batch: Batch, lines: int) -> None:
    began = time.monotonic()
    while settled(client, batch) < lines:
        assert client.batches.retrieve(batch.id).status == "in_progress"
        assert time.monotonic() < began + 30
        pause(began)


def instants(batch: Batch) -> list[int]:
    """Those that the batch has reached, in the order of its life."""
    found = [
        batch.created_at,
        batch.in_progress_at,
        batch.finalizing_at,
        batch.cancelling_at,
        batch.completed_at or batch.cancelled_at or batch.expired_at,
    ]
    return [one for one in found if one is not None]


async def test_a_clock_that_is_set_moves_no_batch_and_no_instant_backwards(tmp_path: Path) -> None:
    content = make_lines(SHARD + 2)
    of_first_shard, of_second, last = (line_id(n) for n in (SHARD - 1, SHARD, SHARD + 1))
    held = dict.fromkeys((of_first_shard, of_second, last), (Answer(hold=True),))
    async with backend_process(Script(by_id=held)) as backend:
        with with_a_clock(tmp_path, backend.base_url) as (running, clock):
            client = running.client()
            batch = submit(client, content, window="1h")
            await backend.wait_until(min_held=3)
            # Past the window by the wall clock alone; a shard that ends has the server look at it.
            clock.set(3 * HOUR)
            await backend.release(of_first_shard)
            until_settled(client, batch, SHARD)
            clock.set(-2 * HOUR)
            await backend.release(of_second)
            until_settled(client, batch, SHARD + 1)
            # Back once more while it is away.
            running.terminate()
            clock.set(-5 * HOUR)
            await backend.set_script(Script())
            running.start()
            client = running.client()
            ended = wait_for(client, batch.id)
            assert ended.status == "completed"
            conserved(client, ended, content)
            assert len(instants(ended)) == 4
            assert instants(ended) == sorted(instants(ended))


async def test_a_cancel_under_a_clock_that_was_set_back_is_not_before_its_batch(
    tmp_path: Path,
) -> None:
    content = make_lines(5)
    async with backend_process(Script(answer=Answer(hold=True))) as backend:
        with with_a_clock(tmp_path, backend.base_url) as (running, clock):
            client = running.client()
            batch = submit(client, content, window="1h")
            await backend.wait_until(min_held=5)
            clock.set(-HOUR)
            assert client.batches.cancel(batch.id).status == "cancelling"
            await backend.stop_holding()
            ended = wait_for(client, batch.id)
            assert ended.status == "cancelled"
            assert instants(ended) == sorted(instants(ended))
            receipt = client.get(f"/batches/{batch.id}/receipt", cast_to=object)
            assert isinstance(receipt, dict)
            assert 0 <= receipt["acknowledged_ms"] <= receipt["quiet_ms"] < 60_000

            # What expires while the server is away, by its clock, is closed when it comes back.
            late = submit(client, content, window="1h")
            running.terminate()
            clock.set(2 * HOUR)
            running.start()
            client = running.client()
            assert wait_for(client, late.id).status == "expired"


async def test_a_clock_that_jumps_ahead_deletes_nothing(tmp_path: Path) -> None:
    with with_a_clock(tmp_path, "http://127.0.0.1:9") as (running, clock):
        client = running.client()
        kept = client.files.create(
            file=("a.jsonl", make_lines(2)),
            purpose="batch",
            expires_after={"anchor": "created_at", "seconds": HOUR},
        )
        other = client.files.create(file=("b.jsonl", make_lines(3)), purpose="batch")
        clock.set(2 * HOUR)
        # A sweep that removes these bytes has looked for expired files before.
        client.files.delete(other.id)
        running.wait_blobs([len(make_lines(2))])
        clock.set(0)
        assert client.files.content(kept.id).content == make_lines(2)
