"""What README.md says can be typed, works when it is typed."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from tests.support.scripted_backend import backend_process
from tests.support.server import server

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RUNNABLE = "<!-- a test runs this block against a real server -->\n"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MARKED = re.compile(re.escape(RUNNABLE) + r"```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def typed_commands() -> list[list[str]]:
    """Every command of the shell blocks, in words, without comments."""
    lines = [
        command.strip()
        for language, block in BLOCK.findall(README)
        if language == "sh"
        for line in block.splitlines()
        for command in line.split("&&")
    ]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


async def test_every_block_that_is_marked_runs_as_it_stands(tmp_path: Path) -> None:
    blocks = MARKED.findall(README)
    assert len(blocks) == README.count(RUNNABLE) >= 1
    async with backend_process() as backend:
        with server(tmp_path, backend.base_url) as running:
            for block in blocks:
                ran = subprocess.run(
                    [sys.executable, "-W", "error", "-"],
                    input=block,
                    cwd=tmp_path,
                    env={**os.environ, "OPENAI_BASE_URL": f"{running.origin}/v1"},
                    capture_output=True,
                    text=True,
                    timeout=30,
                    check=False,
                )
                assert ran.returncode == 0, ran.stderr
                answered = [
                    line for line in ran.stdout.splitlines() if line.startswith("greeting-")
                ]
                assert len(answered) == len(set(answered)) == 100
                assert "completed 100 of 100" in ran.stdout
            assert (await backend.stats()).arrivals == 100 * len(blocks)


async def test_the_server_starts_as_it_is_typed(tmp_path: Path) -> None:
    """The README's `batchline serve`, but for where things are on this machine."""
    typed = [words[1:] for words in typed_commands() if words[0].endswith("batchline")]
    assert [words[0] for words in typed] == ["serve"]
    async with backend_process() as backend:
        options = [backend.url if "127.0.0.1" in word else word for word in typed[0][1:]]
        with server(tmp_path, options=options) as running:
            assert [model.id for model in running.client().models.list()] == ["test-model"]


def test_every_make_target_that_is_typed_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    typed = [word for words in typed_commands() if words[0] == "make" for word in words[1:]]
    assert {"demo", "test"} <= set(typed)
    in_text = [word for run in re.findall(r"`make ([a-z -]+)`", README) for word in run.split()]
    assert set(typed + in_text) <= targets


def test_every_page_that_is_named_exists() -> None:
    named = set(re.findall(r"`(docs/[\w/.-]+)`", README))
    assert len(named) >= 5
    assert sorted(page for page in named if not (ROOT / page).exists()) == []
