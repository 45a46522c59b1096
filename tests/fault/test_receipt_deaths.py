"""kill -9 right after a cancelled batch ended: its receipt is whole all the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.inputs import make_lines
from tests.support.scripted_backend import Answer, Script, backend_process
from tests.support.server import server, submit, wait_for


@pytest.mark.rule("X1")
async def test_no_receipt_is_lost_with_the_server(tmp_path: Path) -> None:
    async with backend_process(Script(answer=Answer(hold=True))) as backend:
        with server(
            tmp_path, backend.base_url, settings={"cancel": {"grace_s": 0.0}}, start=False
        ) as running:
            running.start(probes="finalize.after=kill")
            client = running.client()
            batch = submit(client, make_lines(100))
            await backend.wait_until(min_held=64)
            client.batches.cancel(batch.id)
            running.wait_ended()
            running.start()
            client = running.client()
            assert wait_for(client, batch.id).status == "cancelled"
            receipt = client.get(f"/batches/{batch.id}/receipt", cast_to=object)
            assert isinstance(receipt, dict)
            assert None not in receipt.values()
            assert (receipt["lines_aborted"], receipt["lines_never_sent"]) == (64, 36)
