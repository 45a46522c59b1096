"""A proxy answers for a backend that is away: an outage, and no fault of the lines (decision 0031).

Where lines must not wear out the tests allow one attempt, so that a single one used would fail a
line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import pytest

from tests.fault.test_replicas import HOLDING, PERMITS, kill, state_of
from tests.support.inputs import make_lines
from tests.support.proxy import Proxy, proxy
from tests.support.scripted_backend import BackendControl, backend_process, read_log
from tests.support.server import conserved, content_of, server, submit, wait_for

TRIALS: Final = 4  # one more than the losses of a line that are free


def settings_of(
    before: Mapping[str, Proxy | BackendControl], *, attempts: int = 1
) -> dict[str, object]:
    return {
        "retry": {"max_attempts": attempts, "base_s": 0.01},
        "backend": [
            {
                "name": name,
                "base_url": one.base_url,
                "max_in_flight": PERMITS,
                "health_s": 0.1,  # so that one that is back is noticed at once
            }
            for name, one in before.items()
        ],
    }


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("status", "lines"), [(502, 1), (504, 60)])
async def test_a_backend_that_restarts_behind_a_proxy_uses_up_no_attempt(
    tmp_path: Path, status: int, lines: int
) -> None:
    """However long it takes: a line is tried more often than it may be lost."""
    content = make_lines(lines)
    log = tmp_path / "log.jsonl"
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(backend_process(HOLDING, log=log))
        before = stack.enter_context(proxy(first.url, status=status))
        settings = settings_of({"a": before})
        running = stack.enter_context(server(tmp_path, settings=settings))
        client = running.client()
        batch = submit(client, content)
        in_flight = min(lines, PERMITS)
        await first.wait_until(min_held=in_flight)
        kill(first)
        running.wait_readiness(lambda body: state_of(body, "a") == "gated")
        before.wait_pages(in_flight + TRIALS)
        port = urlsplit(first.url).port or 0
        await stack.enter_async_context(backend_process(log=log, port=port))
        ended = wait_for(client, batch.id)
        summary = conserved(client, ended, content, read_log(log))
        assert (summary.finished, summary.failed) == (lines, 0)
        # The proxy gives pages without sending anything: nothing but what was lost came twice.
        assert summary.resent == in_flight


async def test_behind_a_proxy_too_the_lines_of_a_dead_replica_go_to_the_other(
    tmp_path: Path,
) -> None:
    content = make_lines(60)
    async with backend_process(HOLDING) as dead, backend_process() as other:
        with proxy(dead.url) as before:
            settings = settings_of({"a": before, "b": other})
            with server(tmp_path, settings=settings) as running:
                client = running.client()
                batch = submit(client, content)
                await dead.wait_until(min_held=1)
                kill(dead)
                ended = wait_for(client, batch.id)
                summary = conserved(client, ended, content)
                assert (summary.finished, summary.failed) == (60, 0)


@pytest.mark.parametrize("status", [502, 503])
async def test_a_line_that_ends_its_backend_each_time_comes_to_an_end(
    tmp_path: Path, status: int
) -> None:
    """Three times free, then as often as there are attempts. Of a 503 only trials count: at other
    times it may be load, and so the other lines are through before the bad one is told."""
    content = make_lines(20)
    bad = "line-0000003"
    async with backend_process() as backend:
        with (
            proxy(backend.url, status=status, fatal=f"[[id={bad}]]".encode()) as before,
            server(tmp_path, settings=settings_of({"a": before})) as running,
        ):
            client = running.client()
            ended = wait_for(client, submit(client, content).id)
            summary = conserved(client, ended, content)
            assert (summary.finished, summary.failed) == (19, 1)
            (failed,) = (content_of(client, ended.error_file_id) or b"").splitlines()
            assert json.loads(failed)["custom_id"] == bad
            assert json.loads(failed)["response"]["status_code"] == status
            assert before.deaths >= TRIALS if status == 503 else before.deaths == TRIALS


async def test_a_page_for_one_line_counts_as_long_as_the_backend_is_there(tmp_path: Path) -> None:
    content = make_lines(20)
    bad = "line-0000003"
    async with backend_process() as backend:
        with (
            proxy(backend.url, status=504, refused=f"[[id={bad}]]".encode()) as before,
            server(tmp_path, settings=settings_of({"a": before}, attempts=3)) as running,
        ):
            client = running.client()
            ended = wait_for(client, submit(client, content).id)
            summary = conserved(client, ended, content)
            assert (summary.finished, summary.failed) == (19, 1)
            assert before.pages == 3
            tries = (await backend.log()).attempts()
            assert (set(tries.values()), bad in tries) == ({1}, False)
