"""One server and one backend for all programs, with so many batches that no page holds them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

import openai
import pytest

from tests.support.scripted_backend import Answer, BackendControl, Script, backend_process
from tests.support.server import ServerProcess, server, wait_for

FAILED_BATCHES: Final = 250
# About 600 lines a second: a program sees its batch half-done, and cancels it there.
SLOW: Final = Script(answer=Answer(latency_s=0.1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    running: ServerProcess
    backend: BackendControl
    client: openai.OpenAI
    failed_ids: tuple[str, ...]  # newest first

    @property
    def port(self) -> int:
        return int(self.running.origin.rsplit(":", 1)[1])


@pytest.fixture(scope="session")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    """A server on which 250 batches have failed: their one line has no method."""
    async with backend_process(SLOW) as backend:
        with server(tmp_path_factory.mktemp("service"), backend.base_url) as running:
            client = running.client()
            file = client.files.create(file=("bad.jsonl", b'{"custom_id":"a"}\n'), purpose="batch")
            created = [
                client.batches.create(
                    input_file_id=file.id,
                    endpoint="/v1/chat/completions",
                    completion_window="24h",
                ).id
                for _ in range(FAILED_BATCHES)
            ]
            for batch_id in created:
                wait_for(client, batch_id, "failed")
            yield Service(
                running=running,
                backend=backend,
                client=client,
                failed_ids=tuple(reversed(created)),
            )
