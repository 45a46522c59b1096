"""Starting and killing real servers, and what is left of them."""

from __future__ import annotations

import os
import signal
import time
import tomllib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from batchline.executor.processes import start_time
from tests.support.scripted_backend import BackendControl, backend_process
from tests.support.server import ServerProcess, server, to_toml

GONE_S = 30.0


@pytest.fixture
async def backend() -> AsyncIterator[BackendControl]:
    async with backend_process() as control:
        yield control


@pytest.fixture
def serving(backend: BackendControl, tmp_path: Path) -> Iterator[ServerProcess]:
    with server(tmp_path, backend.base_url) as process:
        yield process


def assert_gone(pids: list[int]) -> None:
    """They may take a moment: those whose parent was killed are not ours to reap."""
    deadline = time.monotonic() + GONE_S
    while left := [pid for pid in pids if start_time(pid) is not None]:
        assert time.monotonic() < deadline, f"still there: {left}"
        time.sleep(0.005)


async def test_a_server_starts_serves_its_backends_models_and_ends_on_sigterm(
    serving: ServerProcess,
) -> None:
    with serving.client() as client:
        assert [model.id for model in client.models.list()] == ["test-model"]
    children = serving.children()
    assert len(serving.workers()) == 1
    assert set(serving.workers()) <= set(children)
    assert serving.terminate() == 0
    assert_gone(children)
    assert "listening on http://127.0.0.1:" in serving.tail()


async def test_a_killed_server_starts_again_on_its_directory(serving: ServerProcess) -> None:
    first, children = serving.pid, serving.children()
    serving.kill()
    assert not serving.is_running
    serving.start()
    assert serving.pid != first
    assert_gone(children)


async def test_kill_all_ends_a_stopped_worker_too(serving: ServerProcess) -> None:
    workers = serving.workers()
    assert serving.signal_workers(signal.SIGSTOP) == 1
    serving.kill_all()
    assert_gone(workers)


async def test_a_server_that_ends_by_itself_is_reaped(serving: ServerProcess) -> None:
    os.kill(serving.pid, signal.SIGKILL)
    assert serving.wait_ended() == -signal.SIGKILL
    assert not serving.is_running


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(AssertionError, match=r"the server ended(.|\n)*no_such_key"),
        server(tmp_path, settings={"no_such_key": 1}),
    ):
        pytest.fail("it started")


async def test_nothing_is_left_after_the_block(backend: BackendControl, tmp_path: Path) -> None:
    with server(tmp_path, backend.base_url, options=["--workers", "2"]) as process:
        pids = [process.pid, *process.children()]
        assert len(process.workers()) == 2
    assert_gone(pids)


def test_settings_become_a_toml_file_that_reads_back() -> None:
    settings = {
        "workers": 2,
        "windows": ["24h", "3s"],
        "cancel": {"grace_s": 0.5},
        "backend": [{"name": 'a "b"'}, {"name": "\u00e9\n", "models": []}],
    }
    assert tomllib.loads(to_toml(settings)) == settings
