"""`order`: in which order the lines of a batch reach the backend."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path

import pytest

from batchline.domain.model import Endpoint
from tests.support.inputs import MODEL
from tests.support.scripted_backend import backend_process
from tests.support.server import conserved, server, submit, wait_for

DOCUMENTS = 12
LINES = 5 * DOCUMENTS  # the questions about a document are far apart in the file


def line(number: int) -> str:
    document = f"<{number % DOCUMENTS}>" * 800
    text = f"{document} [[id=line-{number:07d}]]"
    body: dict[str, object] = {"model": MODEL, "messages": [{"role": "user", "content": text}]}
    if number % 2:
        body["max_tokens"] = number + 100
    return json.dumps(
        {
            "custom_id": f"line-{number:07d}",
            "method": "POST",
            "url": Endpoint.CHAT_COMPLETIONS,
            "body": body,
        }
    )


CONTENT = "\n".join(map(line, range(LINES))).encode()


@pytest.mark.parametrize("order", ["prefix", "file"])
async def test_lines_that_share_a_prefix_reach_the_backend_together(
    tmp_path: Path, order: str
) -> None:
    """One at a time, so that what arrives is in the order of the plan. `prefix` is the default."""
    settings: dict[str, object] = {} if order == "prefix" else {"order": order}
    async with backend_process() as backend:
        settings["backend"] = [{"base_url": backend.base_url, "max_in_flight": 1}]
        with server(tmp_path, settings=settings) as running:
            client = running.client()
            batch = wait_for(client, submit(client, CONTENT).id)
            log = await backend.log()
            conserved(client, batch, CONTENT, log)
            arrived = [int(event.id.removeprefix("line-")) for event in log.arrivals]
            documents = [number % DOCUMENTS for number in arrived]
            if order == "file":
                assert arrived == list(range(LINES))
            else:
                assert len([1 for _ in groupby(documents)]) == DOCUMENTS
