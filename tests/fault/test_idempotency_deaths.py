"""kill -9 around a create that has an idempotency key: sent again, it makes one batch."""

from __future__ import annotations

from pathlib import Path

import openai
import pytest

from tests.support.server import ServerProcess, server


def create(running: ServerProcess) -> str:
    batch = running.client().batches.create(
        input_file_id="file-none",
        endpoint="/v1/chat/completions",
        completion_window="24h",
        extra_headers={"Idempotency-Key": "the run of Monday"},
    )
    return batch.id


@pytest.mark.rule("I1")
@pytest.mark.parametrize("step", ["before", "inside", "after"])
def test_a_create_whose_answer_was_lost_makes_one_batch_when_it_is_sent_again(
    tmp_path: Path, step: str
) -> None:
    with server(tmp_path, "http://127.0.0.1:1", probes=f"batch.create.{step}=kill") as running:
        with pytest.raises(openai.APIConnectionError):
            create(running)
        running.wait_ended()
        running.start()
        batch_id = create(running)
        assert create(running) == batch_id
        assert [batch.id for batch in running.client().batches.list()] == [batch_id]
