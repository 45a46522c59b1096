"""A process dies while what was cut off is kept: a line may lose its partial, nothing else."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.support.inputs import make_lines
from tests.support.scripted_backend import Answer, Fault, Script, backend_process
from tests.support.server import conserved, content_of, server, submit, wait_for

CUT_OFF = 8


# Behind the first commit of a batch whose lines all hang, there are only records.
@pytest.mark.parametrize(
    ("probe", "may_keep"),
    [
        ("segment.synced=kill_both", False),
        ("commit.inside=kill", False),
        ("commit.after=kill", True),
        ("never_run.written=kill", True),
    ],
)
async def test_a_death_loses_partials_at_most(tmp_path: Path, probe: str, may_keep: bool) -> None:
    content = make_lines(20)
    script = Script(answer=Answer(streams=True, fault=Fault.SILENT, text_bytes=400))
    async with backend_process(script) as backend:
        own = {"base_url": backend.base_url, "max_in_flight": CUT_OFF}
        settings: dict[str, Any] = {
            "cancel": {"grace_s": 0.0},
            "backend": [{**own, "stream": True, "keep_partial": True}],
        }
        with server(tmp_path, settings=settings, probes=probe) as running:
            client = running.client()
            batch = submit(client, content)
            await backend.wait_until(min_in_flight=CUT_OFF)
            await backend.caught_up()
            with contextlib.suppress(openai.APIConnectionError):  # lost with the server
                client.batches.cancel(batch.id)
            running.wait_ended()
            running.start()
            client = running.client()
            ended = wait_for(client, batch.id)
            assert ended.status == "cancelled"
            summary = conserved(client, ended, content, await backend.log())
            assert summary.cancelled == 20
            errors = (content_of(client, ended.error_file_id) or b"").splitlines()
            kept = [line for line in errors if "partial" in json.loads(line)]
            assert (1 <= len(kept) <= CUT_OFF) if may_keep else not kept
