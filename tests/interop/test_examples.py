"""`examples/clients/`: each program does as it stands what its first line says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.interop.conftest import Service
from tests.interop.programs import EXAMPLES, Program
from tests.support.inputs import make_lines
from tests.support.server import conserved

pytestmark = pytest.mark.interop

LINES = 3_000


@pytest.mark.parametrize("program", EXAMPLES, ids=str)
async def test_an_example_cancels_and_keeps_what_was_done(
    program: Program, service: Service, tmp_path: Path
) -> None:
    content = make_lines(LINES)
    (tmp_path / "requests.jsonl").write_bytes(content)
    await service.backend.clear()
    said = await program.run(tmp_path, f"{service.running.origin}/v1", "requests.jsonl")
    created = re.search(r"^created (\S+)$", said, re.MULTILINE)
    assert created is not None, said
    batch = service.client.batches.retrieve(created[1])
    assert batch.status == "cancelled"
    summary = conserved(service.client, batch, content, await service.backend.log())
    assert 0 < summary.finished < LINES
    assert f"cancelled: {summary.finished} of {LINES} completed, 0 failed\n" in said
    for file_id, kept_as in (
        (batch.output_file_id, "output.jsonl"),
        (batch.error_file_id, "error.jsonl"),
    ):
        assert file_id is not None
        assert (tmp_path / kept_as).read_bytes() == service.client.files.content(file_id).content
