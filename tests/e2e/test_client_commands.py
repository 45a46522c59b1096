"""The commands against a server, typed as a person or a script types them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.command import MODULE, command, ended, started
from tests.support.inputs import line_id, make_lines
from tests.support.scripted_backend import Answer, BackendControl, Script, backend_process
from tests.support.server import ServerProcess, conserved, content_of, server, wait_for


@asynccontextmanager
async def served(
    folder: Path, script: Script | None = None
) -> AsyncIterator[tuple[BackendControl, ServerProcess, dict[str, str]]]:
    """A backend, a server, and the environment that points the commands at it."""
    async with backend_process(script) as backend:
        with server(folder, backend.base_url, settings={"cancel": {"grace_s": 0}}) as running:
            yield backend, running, {"OPENAI_BASE_URL": f"{running.origin}/v1"}


def half_files(folder: Path) -> list[Path]:
    return list(folder.glob("*.part"))


async def test_a_file_is_submitted_watched_shown_and_fetched(tmp_path: Path) -> None:
    content = make_lines(120, markers=lambda n: "[[status=422]]" if n < 20 else "")
    source = tmp_path / "in.jsonl"
    source.write_bytes(content)
    async with served(tmp_path) as (_, running, env):
        ran = await command("submit", source, "--metadata", "team=red", "--watch", env=env)
        assert ran.returncode == 0, ran.stderr
        assert "completed: 100 of 120 lines succeeded, 20 failed" in ran.stdout

        listed = await command("list", "--json", env=env)
        (batch,) = [json.loads(line) for line in listed.stdout.splitlines()]
        assert (batch["status"], batch["metadata"]) == ("completed", {"team": "red"})
        shown = await command("show", batch["id"], env=env)
        assert f"output file   {batch['output_file_id']}" in shown.stdout
        assert batch["id"] in (await command("list", env=env)).stdout

        client = running.client()
        for words, file_id in (([], "output_file_id"), (["--errors"], "error_file_id")):
            target = tmp_path / f"{file_id}.jsonl"
            ran = await command("results", batch["id"], *words, "-o", target, env=env)
            assert ran.returncode == 0, ran.stderr
            assert target.read_bytes() == content_of(client, batch[file_id])
        assert half_files(tmp_path) == []
        piped = await command("results", batch["id"], "-o", "-", env=env)
        assert piped.stdout.encode() == content_of(client, batch["output_file_id"])

        assert (await command("models", env=env)).stdout == "test-model\n"
        file_id = (await command("files", "upload", source, env=env)).stdout.strip()
        assert "in.jsonl" in (await command("files", "get", file_id, env=env)).stdout
        files = await command("files", "list", "--purpose", "batch", "--all", env=env)
        assert file_id in files.stdout
        assert (await command("files", "delete", file_id, env=env)).returncode == 0
        gone = await command("files", "get", file_id, env=env)
        assert (gone.returncode, gone.stdout) == (1, "")
        assert "No such File object" in gone.stderr


async def test_a_bad_file_is_named_line_by_line_and_nothing_is_sent(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(make_lines(2) + b"{nonsense\n" + make_lines(1))
    # No server is needed to find that out.
    ran = await command("submit", source, env={"OPENAI_BASE_URL": "http://127.0.0.1:1/v1"})
    assert (ran.returncode, ran.stdout) == (1, "")
    assert f"{source}:3: invalid_json_line" in ran.stderr
    assert f"{source}:4: duplicate_custom_id" in ran.stderr


async def test_a_cancel_says_what_was_finished_and_what_was_not(tmp_path: Path) -> None:
    content = make_lines(300)
    source = tmp_path / "in.jsonl"
    source.write_bytes(content)
    script = Script(by_id={line_id(n): (Answer(hold=True),) for n in range(100, 300)})
    async with served(tmp_path, script) as (backend, running, env):
        batch_id = (await command("submit", source, env=env)).stdout.strip()
        await backend.wait_until(min_answered=100)
        ran = await command("cancel", batch_id, env=env)
        assert ran.returncode == 0, ran.stderr
        client = running.client()
        summary = conserved(client, client.batches.retrieve(batch_id), content)
        assert 0 < summary.cancelled < 300
        assert f"cancelled: {summary.finished} of 300 lines succeeded" in ran.stdout
        assert f"  {summary.cancelled} cancelled" in ran.stdout
        again = await command("watch", batch_id, env=env)
        assert again.returncode == 1


async def test_a_batch_that_waits_says_for_what(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(make_lines(3))
    async with served(tmp_path, Script(answer=Answer(status=401))) as (backend, running, env):
        batch_id = (await command("submit", source, env=env)).stdout.strip()
        await backend.wait_for_arrivals(1)
        running.wait_readiness(lambda now: now["backends"][0]["state"] != "up")
        shown = await command("show", batch_id, env=env)
        assert "waits for     backend 127.0.0.1:" in shown.stdout
        await backend.set_script(Script())
        wait_for(running.client(), batch_id)


async def test_ctrl_c_ends_the_watching_and_not_the_batch(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(make_lines(3))
    async with served(tmp_path, Script(answer=Answer(hold=True))) as (backend, running, env):
        with started("submit", source, "--watch", env=env) as process:
            await backend.wait_until(min_held=3)
            process.send_signal(signal.SIGINT)
            assert await ended(process) == 130
        await backend.stop_holding()
        client = running.client()
        assert wait_for(client, client.batches.list().data[0].id).status == "completed"


async def test_a_reader_that_goes_away_ends_the_command_quietly(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(make_lines(400, padding=2000))
    async with served(tmp_path, Script(answer=Answer(text_bytes=4000))) as (_, running, env):
        batch_id = (await command("submit", source, env=env)).stdout.strip()
        wait_for(running.client(), batch_id)
        process = subprocess.Popen(
            [*MODULE, "results", batch_id, "-o", "-"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **env},
        )
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.wait(20) == 141
        assert process.stderr.read() == b""
        process.stderr.close()


async def test_bad_lines_are_named_and_left_out_when_that_is_wanted(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(make_lines(3) + b"{\n")
    async with served(tmp_path) as (_, running, env):
        ran = await command("submit", source, env=env)
        assert (ran.returncode, ran.stdout) == (1, "")
        ran = await command("submit", source, "--skip-invalid", "--watch", env=env)
        assert ran.returncode == 0, ran.stderr
        assert f"skipped {source}:4: invalid_json_line: " in ran.stderr
        assert f"{source}: 3 lines for /v1/chat/completions\n" in ran.stderr
        assert ": \n" not in ran.stderr
        assert "completed: 3 of 4 lines succeeded, 1 failed" in ran.stdout
        (batch,) = running.client().batches.list().data
        assert batch.request_counts is not None
        assert batch.request_counts.failed == 1


@pytest.mark.parametrize(
    "words", [["list"], ["show", "batch_1"], ["watch", "batch_1"], ["models"], ["files", "list"]]
)
async def test_without_a_server_the_exit_code_is_3(words: list[str]) -> None:
    ran = await command(*words, env={"OPENAI_BASE_URL": "http://127.0.0.1:1/v1"})
    assert (ran.returncode, ran.stdout) == (3, "")
    assert "no server answers" in ran.stderr
    assert ran.stderr.count("\n") == 1


async def test_a_wrong_option_or_address_is_exit_code_2(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(make_lines(1))
    for words in (["--endpoint", "/v1/nothing"], ["--metadata", "x"], ["--no-such"]):
        assert (await command("submit", source, *words)).returncode == 2
    assert (await command("list", env={"OPENAI_BASE_URL": "ftp://x"})).returncode == 2
