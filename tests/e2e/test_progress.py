"""How fast a batch goes and what it waits for: route, commands and metrics of a real server."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.contract.api.test_http_progress import samples
from tests.support.command import command, ended, started
from tests.support.inputs import make_lines
from tests.support.pauses import POLL_S
from tests.support.scripted_backend import Answer, Script, backend_process
from tests.support.server import WAIT_S, ServerProcess, server, submit, wait_for

STEADY = Script(answer=Answer(latency_s=0.08))


def fetched(running: ServerProcess, path: str) -> bytes:
    url = f"{running.origin}{path}"
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310  # http, and ours
        found: bytes = answer.read()
        return found


async def progress_when(
    running: ServerProcess, batch_id: str, holds: Callable[[dict[str, Any]], object]
) -> dict[str, Any]:
    with anyio.fail_after(30):
        while True:
            found: dict[str, Any] = json.loads(fetched(running, f"/v1/batches/{batch_id}/progress"))
            if holds(found):
                return found
            await asyncio.sleep(0.05)


def wait_said(file: Path, words: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while words not in file.read_text():
        assert time.monotonic() < deadline, file.read_text()
        time.sleep(POLL_S)


@pytest.mark.rule("X9")
async def test_a_batch_tells_its_pace_and_end_its_obstacle_and_that_it_is_done(
    tmp_path: Path,
) -> None:
    async with backend_process(STEADY) as backend:
        one = {"name": "the-one", "base_url": backend.base_url, "max_in_flight": 8}
        with server(tmp_path, settings={"workers": 1, "backend": [one]}) as running:
            client = running.client()
            env = {"OPENAI_BASE_URL": f"{running.origin}/v1"}
            batch = submit(client, make_lines(1_500))
            going = await progress_when(running, batch.id, lambda now: now["expected_end_at"])
            assert 1 < going["rate_per_s"] < 101  # eight at a time, and the machine may be busy
            assert going["tokens_per_s"] > 0
            assert going["waiting"] == []
            low, high = going["expected_end_low"], going["expected_end_high"]
            assert going["at"] <= low <= going["expected_end_at"] <= high
            metrics = samples(fetched(running, "/metrics").decode())
            of_batch = f'batch_id="{batch.id}"'
            assert metrics["batchline_batch_lines_per_second", of_batch] > 1
            assert metrics["batchline_batch_lines", f'{of_batch},state="left"'] < 1_500
            shown = (await command("show", batch.id, env=env)).stdout
            assert "lines/s" in shown
            assert "done in" in shown

            await backend.go_down()
            stuck = await progress_when(running, batch.id, lambda now: now["waiting"])
            (wait,) = stuck["waiting"]
            assert (wait["code"], wait["backend"]) == ("backend_unreachable", "the-one")
            assert stuck["expected_end_at"] is None
            metrics = samples(fetched(running, "/metrics").decode())
            reason = f'{of_batch},reason="backend_unreachable",backend="the-one"'
            assert metrics["batchline_batch_waiting", reason] == 1

            said = tmp_path / "watched"
            with started("watch", batch.id, env=env, stderr=said) as watching:
                wait_said(said, "backend the-one cannot be reached")
                await backend.set_script(Script())  # and the rest quickly
                await backend.come_up()
                assert await ended(watching, timeout_s=40) == 0, said.read_text()
            assert "in_progress: " in said.read_text()
            done = wait_for(client, batch.id, "completed")
            over = await progress_when(running, batch.id, lambda now: now["ended_at"])
            assert (over["status"], over["ended_at"]) == ("completed", done.completed_at)
            assert (over["rate_per_s"], over["expected_end_at"], over["waiting"]) == (
                None,
                None,
                [],
            )
            assert batch.id.encode() not in fetched(running, "/metrics")


@pytest.mark.rule("X9")
async def test_after_a_restart_counts_are_there_at_once_and_the_pace_is_learnt_anew(
    tmp_path: Path,
) -> None:
    async with backend_process(Script(answer=Answer(hold=True))) as backend:
        with server(tmp_path, backend.base_url) as running:
            client = running.client()
            batch = submit(client, make_lines(20))
            await backend.wait_until(min_held=20)
            await backend.release("line-0000003", "line-0000004")
            counted = {"total": 20, "completed": 2, "failed": 0}
            await progress_when(running, batch.id, lambda now: now["request_counts"] == counted)
            running.kill()
            running.start()
            found = json.loads(fetched(running, f"/v1/batches/{batch.id}/progress"))
            assert found["request_counts"] == counted
            assert (found["rate_per_s"], found["expected_end_at"]) == (None, None)
            await backend.stop_holding()
            wait_for(running.client(), batch.id, "completed")
