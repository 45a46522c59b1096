"""Results read while a batch runs: every output line once, through kills, cancels and the end."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Final

import openai
import pytest

from tests.support.inputs import line_id, make_lines
from tests.support.scripted_backend import Answer, Script, backend_process
from tests.support.server import TERMINAL, conserved, content_of, server, submit, wait_for

PAUSE_S: Final = 0.02
PATIENCE_S: Final = 60.0


class Reader:
    """Polls the results of one batch, in answers of random size."""

    def __init__(self, batch_id: str, seed: int) -> None:
        self._batch_id = batch_id
        self._random = random.Random(seed)  # noqa: S311  # sizes, not secrets
        self.content = b""
        self.after = 0
        self.answers = 0  # that brought something

    def read(self, client: openai.OpenAI) -> bool:
        """One poll; whether that was all."""
        limit = self._random.choice([1, 2_000, 50_000, 10_000_000])
        answer = client.get(
            f"/batches/{self._batch_id}/results",
            options={"params": {"after": self.after, "limit": limit}},
            cast_to=openai.HttpxBinaryResponseContent,
        )
        self.content += answer.content
        self.answers += bool(answer.content)
        self.after = int(answer.response.headers["x-batchline-next-after"])
        assert self.after == len(self.content)
        ended = answer.response.headers["x-batchline-batch-status"] in TERMINAL
        return ended and not answer.content

    def read_until(self, client: openai.OpenAI, *, size: int | None = None) -> None:
        """Poll until so many bytes have come, or to the end."""
        deadline = time.monotonic() + PATIENCE_S
        while not self.read(client) and (size is None or len(self.content) < size):
            assert time.monotonic() < deadline
            time.sleep(PAUSE_S)


@pytest.mark.rule("X2")
@pytest.mark.parametrize("seed", [1, 2])
async def test_a_reader_gets_every_output_line_once_through_kills_and_the_end(
    tmp_path: Path, seed: int
) -> None:
    content = make_lines(1_200)
    failing = {line_id(number): (Answer(status=400),) for number in range(0, 1_200, 7)}
    # One that is held: the batch has not ended when the servers are killed.
    held = {line_id(1_199): (Answer(hold=True),)}
    script = Script(answer=Answer(latency_s=0.08), by_id={**failing, **held})
    async with backend_process(script) as backend:
        with server(tmp_path, backend.base_url, options=["--workers", "2"]) as running:
            client = running.client()
            batch = submit(client, content)
            reader = Reader(batch.id, seed)
            reader.read_until(client, size=30_000)
            assert client.batches.retrieve(batch.id).status == "in_progress"
            running.kill_all()
            await backend.stop_holding()
            running.start()
            client = running.client()
            reader.read_until(client)
            ended = wait_for(client, batch.id)
            assert ended.status == "completed"
            conserved(client, ended, content, await backend.log())
            assert reader.content == content_of(client, ended.output_file_id)
            assert reader.answers > 3
            again = Reader(batch.id, seed)
            again.read_until(client)
            assert again.content == reader.content


@pytest.mark.rule("X2")
async def test_a_reader_of_a_cancelled_batch_gets_what_was_finished(tmp_path: Path) -> None:
    content = make_lines(1_000)
    script = Script(answer=Answer(latency_s=0.05), by_id={line_id(999): (Answer(hold=True),)})
    async with backend_process(script) as backend:
        with server(tmp_path, backend.base_url, settings={"cancel": {"grace_s": 0.5}}) as running:
            client = running.client()
            batch = submit(client, content)
            reader = Reader(batch.id, 3)
            reader.read_until(client, size=10_000)
            client.batches.cancel(batch.id)
            reader.read_until(client)
            ended = wait_for(client, batch.id)
            assert 0 < conserved(client, ended, content).finished < 1_000
            assert reader.content == content_of(client, ended.output_file_id)
