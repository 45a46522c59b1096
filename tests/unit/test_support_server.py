"""Starting and killing real servers, and what is left of them."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
import tomllib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from batchline.executor.processes import start_time
from tests.support.scripted_backend import BackendControl, backend_process
from tests.support.server import ServerProcess, is_worker, server, to_toml

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


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a forked server executes them")
async def test_children_that_were_forked_are_as_those_that_were_executed(
    serving: ServerProcess, backend: BackendControl, tmp_path: Path
) -> None:
    (tmp_path / "executed").mkdir()
    with server(tmp_path / "executed", backend.base_url, fork=False) as executed:
        found = []
        for running in (serving, executed):
            children = children_by_name(running)
            assert {parent_of(pid) for pid in children.values()} == {running.pid}
            found.append(
                {
                    name: (open_files(pid), signals(pid), file_limit(pid))
                    for name, pid in children.items()
                }
            )
        assert set(found[0]) == {"worker", "job"}
        assert found[0] == found[1]


def children_by_name(running: ServerProcess) -> dict[str, int]:
    """One of each, once they wait for something to do."""
    running.wait_job_child()
    children = running.children()
    for pid in children:
        deadline = time.monotonic() + GONE_S
        while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "S":
            assert time.monotonic() < deadline
            time.sleep(0.005)
    return {"worker" if is_worker(pid) else "job": pid for pid in children}


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def open_files(pid: int) -> list[str]:
    """Standard input and output, then of what kind the others are. (An executed worker has its
    standard ones twice.)"""
    paths = {int(file.name): file.readlink() for file in Path(f"/proc/{pid}/fd").iterdir()}
    standard = [paths.pop(number).name for number in range(3)]
    return standard + sorted(
        path.name.partition(":[")[0] for path in paths.values() if path.name not in standard
    )


def signals(pid: int) -> list[str]:
    """Masks of what is blocked, ignored and caught."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return [line for line in lines if line.startswith(("SigBlk", "SigIgn", "SigCgt"))]


def file_limit(pid: int) -> tuple[int, int]:
    return resource.prlimit(pid, resource.RLIMIT_NOFILE)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a forked server executes them")
async def test_who_forks_the_children_does_not_end_before_the_server(
    serving: ServerProcess,
) -> None:
    old = serving.workers()
    os.kill(
        nursery_of(serving), signal.SIGTERM
    )  # which a server drains at, and may need a child for that
    serving.signal_workers(signal.SIGKILL)
    deadline = time.monotonic() + GONE_S
    while not set(serving.workers()) - set(old):
        assert time.monotonic() < deadline, serving.tail()
        time.sleep(0.005)
    assert serving.terminate() == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_nobody_of_a_servers_session_outlives_it(
    serving: ServerProcess, number: signal.Signals
) -> None:
    """The one that forks its children neither."""
    session = of_session(serving.pid)
    assert len(session) >= len(serving.children()) + 1
    os.killpg(serving.pid, number)  # as systemd does
    assert serving.wait_ended() == (0 if number == signal.SIGTERM else -number)
    assert_gone(session)


def nursery_of(running: ServerProcess) -> int:
    """Who forks its children, once none is on its way."""
    running.wait_job_child()
    deadline = time.monotonic() + GONE_S
    while len(others := set(of_session(running.pid)) - {running.pid, *running.children()}) != 1:
        assert time.monotonic() < deadline, others
        time.sleep(0.005)
    (nursery,) = others
    return nursery


def of_session(pid: int) -> list[int]:
    found = [int(one.name) for one in Path("/proc").iterdir() if one.name.isdigit()]
    return [one for one in found if _session(one) == pid]


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0


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
