"""What docs/quickstart.md says can be typed, works when it is typed."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path

import pytest

from tests.support.command import command
from tests.support.scripted_backend import Script, backend_process
from tests.support.server import server

TEXT = (Path(__file__).parents[2] / "docs" / "quickstart.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BACKEND = "http://127.0.0.1:8000"


def taken(folder: Path) -> list[str]:
    """The custom_ids of the results that are there, which then are not."""
    path = folder / "out.jsonl"
    lines = path.read_text().splitlines()
    path.unlink()
    return [json.loads(line)["custom_id"] for line in lines]


async def test_every_command_runs_as_it_stands_but_for_places_and_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = BLOCK.findall(TEXT)
    ((_, line),) = [block for block in blocks if block[0] == "json"]
    (tmp_path / "in.jsonl").write_text(line)
    model = json.loads(line)["body"]["model"]
    typed = [
        shlex.split(one, comments=True)
        for language, block in blocks
        if language == "sh"
        for one in block.splitlines()
    ]
    assert [words[:2] for words in typed] == [
        ["batchline", word] for word in ("run", "serve", "submit", "list", "results")
    ]
    async with backend_process(Script(models=(model,))) as backend:
        run, serve, submit, list_, results = (
            [word.replace(BACKEND, backend.url) for word in words[1:]] for words in typed
        )
        ran = await command(*run)
        assert ran.returncode == 0, ran.stderr
        assert taken(tmp_path) == ["1"]

        assert serve == ["serve", "--upstream", backend.url]  # what `server` types, with a port
        with server(tmp_path, backend.url) as running:
            env = {**os.environ, "OPENAI_BASE_URL": f"{running.origin}/v1"}
            ran = await command(*submit, env=env)
            assert "completed: 1 of 1 lines succeeded" in ran.stdout
            ran = await command(*list_, env=env)
            (batch_id,) = re.findall(r"batch_[0-9a-f]{32}", ran.stdout)
            words = [word.replace("BATCH_ID", batch_id) for word in results]
            ran = await command(*words, env=env)
            assert ran.returncode == 0, ran.stderr
            assert taken(tmp_path) == ["1"]
