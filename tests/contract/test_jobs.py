"""Jobs in child processes: what comes back, and that no child outlives its job's caller.

Jobs here are small functions of the package itself. `telemetry.probe` does what it is armed for,
so it is a job that dies, hangs or fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from batchline import telemetry
from batchline.domain import lines, plan
from batchline.domain.errors import BlobUnreadable, StorageFull
from batchline.domain.job_queue import JobTerms
from batchline.domain.model import Endpoint, PlannedShard
from batchline.executor import processes
from batchline.service import jobs as jobs_module
from batchline.service.jobs import JobFailed, Jobs
from batchline.service.validation import ValidationJob, ValidationResult, validate
from tests.support.inputs import MODEL, make_lines

LIMIT_S = 20.0


MIB = 1024 * 1024


class Noted(contextlib.AbstractContextManager[None]):
    """Writes down who began."""

    def __init__(self, order: list[str], name: str) -> None:
        self._order, self._name = order, name

    def __enter__(self) -> None:
        self._order.append(self._name)

    def __exit__(self, *_: object) -> None:
        pass


class Held:
    """Starting a child, held back after the child was started and before anybody knows of it."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._spawn = jobs_module._spawn
        self._pid = 0
        self._spawned = threading.Event()
        self._let_go = threading.Event()
        patch.setattr(jobs_module, "_spawn", self._held)

    def _held(self, theirs: socket.socket, children_dir: Path) -> subprocess.Popen[bytes]:
        process = self._spawn(theirs, children_dir)
        self._pid = process.pid
        self._spawned.set()
        self._let_go.wait(LIMIT_S)
        return process

    async def spawned(self) -> int:
        """Wait for the child; its process id."""
        await asyncio.to_thread(self._spawned.wait, LIMIT_S)
        return self._pid

    def let_go(self) -> None:
        self._let_go.set()


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    telemetry.arm("")


@pytest.fixture
def children(tmp_path: Path) -> Path:
    folder = tmp_path / "children"
    folder.mkdir()
    return folder


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    held = Held(monkeypatch)
    yield held
    held.let_go()


@pytest.fixture
async def jobs(children: Path) -> AsyncIterator[Jobs]:
    jobs = Jobs(children)
    with anyio.fail_after(LIMIT_S):
        yield jobs
    await jobs.close()


@pytest.fixture
async def one_child(children: Path) -> AsyncIterator[Jobs]:
    jobs = Jobs(children, max_children=1)
    yield jobs
    await jobs.close()


def recorded(children: Path) -> set[int]:
    """The process ids of the children that are on record."""
    return {int(path.name) for path in children.iterdir() if path.name.isdigit()}


async def stopped_child() -> int:
    """Wait until another child of ours stopped itself; its process id. There must be a child."""
    found = await asyncio.to_thread(os.waitid, os.P_ALL, 0, os.WSTOPPED)
    assert found is not None
    return found.si_pid


def is_reaped(pid: int) -> bool:
    """Whether the child is gone for good: no process, no zombie."""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return True
    return False


def validation(folder: Path, content: bytes) -> ValidationJob:
    source = folder / "input"
    source.write_bytes(content)
    return ValidationJob(
        input_path=str(source),
        input_bytes=len(content),
        plan_path=str(folder / "plan"),
        endpoint=Endpoint.CHAT_COMPLETIONS,
        max_file_bytes=2**40,
        max_lines=2**40,
        max_line_bytes=2**40,
    )


# -- what comes back -------------------------------------------------------------------------------


async def test_values_and_results_arrive_as_they_are(jobs: Jobs, tmp_path: Path) -> None:
    job = validation(tmp_path, make_lines(3))
    result = await jobs.run(validate, job)
    assert isinstance(result, ValidationResult)
    assert (result.lines, result.model) == (3, MODEL)
    assert list(result.shards) == [PlannedShard(first_entry=0, entries=3, model=MODEL)]
    assert result.plan_bytes == (tmp_path / "plan").stat().st_size
    problems = (await jobs.run(validate, validation(tmp_path, b"{\n"))).problems
    assert [(problem.code, problem.line_number) for problem in problems] == [
        ("invalid_json_line", 1)
    ]


async def test_none_is_a_result(jobs: Jobs) -> None:
    assert await jobs.run(lines.custom_id_of, b"{}") is None
    await jobs.run(plan.check_header, plan.header())  # has no other


async def test_values_and_results_may_be_larger_than_a_socket_takes_at_once(jobs: Jobs) -> None:
    custom_id = "é" * (3 * 1024 * 1024)
    assert await jobs.run(lines.custom_id_of, f'{{"custom_id":"{custom_id}"}}'.encode()) == (
        custom_id
    )


async def test_a_job_runs_in_a_child_and_the_next_one_in_the_same(
    jobs: Jobs, children: Path
) -> None:
    await jobs.warm()
    await jobs.run(lines.custom_id_of, b"")
    first = recorded(children)
    assert len(first) == 1
    assert os.getpid() not in first
    await jobs.run(lines.custom_id_of, b"")
    await jobs.warm()
    assert recorded(children) == first


async def test_children_are_kept_for_one_job_at_a_time(jobs: Jobs, children: Path) -> None:
    """Of two children that ran at once one is kept; the other one is ended and off the record."""
    async with anyio.create_task_group() as tasks:
        for _ in range(2):
            tasks.start_soon(jobs.run, lines.custom_id_of, b"")
    assert len(recorded(children)) == 1


async def test_errors_that_are_raised_on_purpose_arrive_as_they_are(
    jobs: Jobs, tmp_path: Path
) -> None:
    telemetry.arm("plan.synced=enospc")
    job = validation(tmp_path, make_lines(1))
    with pytest.raises(StorageFull, match="no space for scratch files"):
        await jobs.run(validate, job)
    with pytest.raises(BlobUnreadable, match="the input cannot be opened"):
        await jobs.run(validate, replace(job, input_path=str(tmp_path / "gone")))


async def test_another_error_is_named_by_its_place_and_not_quoted(
    jobs: Jobs, children: Path
) -> None:
    """Messages of errors may quote what users sent, and this one ends in the server's log."""
    await jobs.warm()
    with pytest.raises(JobFailed) as caught:
        await jobs.run(telemetry.arm, "sentinel")  # a ConfigError that quotes it
    assert not caught.value.retryable
    assert "batchline.telemetry:arm: ConfigError at telemetry.py:" in caught.value.message
    assert "sentinel" not in caught.value.message
    # The child goes on: it is the job that was wrong.
    before = recorded(children)
    assert await jobs.run(lines.custom_id_of, b'{"custom_id":"a"}') == "a"
    assert recorded(children) == before


# -- children that die -----------------------------------------------------------------------------


async def test_a_job_whose_child_dies_may_be_run_again(jobs: Jobs, children: Path) -> None:
    telemetry.arm("here=kill")
    with pytest.raises(JobFailed, match="ended before its job") as caught:
        await jobs.run(telemetry.probe, "here")
    assert caught.value.retryable
    assert recorded(children) == set()
    telemetry.arm("")  # for the next child
    await jobs.run(telemetry.probe, "here")
    assert len(recorded(children)) == 1


async def test_a_child_that_died_between_jobs_is_not_given_another(
    jobs: Jobs, children: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget, forgotten = processes.forget, asyncio.Event()

    def noted(directory: Path, pid: int) -> None:
        forget(directory, pid)
        forgotten.set()

    monkeypatch.setattr(processes, "forget", noted)
    await jobs.run(lines.custom_id_of, b"")
    (pid,) = recorded(children)
    os.kill(pid, signal.SIGKILL)
    await forgotten.wait()
    assert is_reaped(pid)
    assert recorded(children) == set()
    assert await jobs.run(lines.custom_id_of, b'{"custom_id":"a"}') == "a"


async def test_a_cancelled_job_is_over_when_the_cancellation_arrives(
    jobs: Jobs, children: Path
) -> None:
    telemetry.arm("here=stop")
    await jobs.warm()
    job = asyncio.create_task(jobs.run(telemetry.probe, "here"))
    pid = await stopped_child()
    assert recorded(children) == {pid}
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    assert is_reaped(pid)
    assert recorded(children) == set()
    telemetry.arm("")
    assert await jobs.run(lines.custom_id_of, b'{"custom_id":"a"}') == "a"


async def test_a_job_that_is_cancelled_again_while_its_child_is_ended_leaves_none(
    jobs: Jobs, children: Path
) -> None:
    telemetry.arm("here=stop")
    await jobs.warm()
    job = asyncio.create_task(jobs.run(telemetry.probe, "here"))
    pid = await stopped_child()
    for _ in range(3):
        job.cancel()
        await asyncio.sleep(0)  # one turn of the loop: into the next step of the cancellation
    with pytest.raises(asyncio.CancelledError):
        await job
    assert is_reaped(pid)
    assert recorded(children) == set()


async def test_a_job_that_is_cancelled_while_its_child_starts_leaves_none(
    jobs: Jobs, children: Path, held: Held
) -> None:
    job = asyncio.create_task(jobs.run(lines.custom_id_of, b""))
    pid = await held.spawned()
    job.cancel()
    held.let_go()
    with pytest.raises(asyncio.CancelledError):
        await job
    assert is_reaped(pid)
    assert recorded(children) == set()


async def test_a_warm_up_that_is_cancelled_leaves_no_child(
    jobs: Jobs, children: Path, held: Held
) -> None:
    warming = asyncio.create_task(jobs.warm())
    pid = await held.spawned()
    warming.cancel()
    held.let_go()
    with pytest.raises(asyncio.CancelledError):
        await warming
    assert is_reaped(pid)
    assert recorded(children) == set()


# -- how many, and the end -------------------------------------------------------------------------


async def test_closing_ends_the_jobs_that_run_and_those_that_wait(
    jobs: Jobs, children: Path
) -> None:
    telemetry.arm("here=stop")
    await jobs.warm()
    running = [asyncio.create_task(jobs.run(telemetry.probe, "here")) for _ in range(4)]
    pids = {await stopped_child(), await stopped_child()}
    assert recorded(children) == pids  # the others wait for a place
    await jobs.close()
    assert all(map(is_reaped, pids))
    ended = await asyncio.gather(*running, return_exceptions=True)
    assert [isinstance(one, JobFailed) and one.retryable for one in ended] == [True] * 4
    assert recorded(children) == set()
    await jobs.close()


async def test_an_urgent_job_waits_for_none_that_is_not(jobs: Jobs, children: Path) -> None:
    """However many validations wait, a cancelled batch comes to its end."""
    telemetry.arm("here=stop")
    await jobs.warm()
    running = [asyncio.create_task(jobs.run(telemetry.probe, "here")) for _ in range(4)]
    pids = {await stopped_child(), await stopped_child()}
    assert (
        await jobs.run(lines.custom_id_of, b'{"custom_id":"a"}', terms=JobTerms(urgent=True)) == "a"
    )
    assert pids <= recorded(children)
    assert not any(one.done() for one in running)
    await jobs.close()
    await asyncio.gather(*running, return_exceptions=True)


async def test_a_small_job_runs_beside_large_ones_in_a_child_of_its_own(
    jobs: Jobs, children: Path
) -> None:
    """However long two huge files take, a small one is validated meanwhile."""
    telemetry.arm("here=stop")
    await jobs.warm()
    large = JobTerms(project="many", work=10_000 * MIB)
    running = [
        asyncio.create_task(jobs.run(telemetry.probe, "here", terms=large)) for _ in range(4)
    ]
    pids = {await stopped_child(), await stopped_child()}
    for number in range(3):
        terms = JobTerms(project="other", work=number * MIB)
        assert await jobs.run(lines.custom_id_of, b'{"custom_id":"a"}', terms=terms) == "a"
        assert len(recorded(children)) == 3  # the same one each time
    assert pids < recorded(children)
    assert not any(one.done() for one in running)
    await jobs.close()
    await asyncio.gather(*running, return_exceptions=True)


async def test_projects_take_turns_and_not_jobs(one_child: Jobs, children: Path) -> None:
    jobs = one_child
    order: list[str] = []

    async def one(project: str) -> None:
        begun = Noted(order, project)
        terms = JobTerms(project=project, work=MIB)
        await jobs.run(lines.custom_id_of, b"", terms=terms, during=begun)

    with anyio.fail_after(LIMIT_S):
        await asyncio.gather(*[one("many") for _ in range(4)], one("other"))
    assert order == ["many", "other", "many", "many", "many"]
    assert len(recorded(children)) == 1


async def test_whoever_gives_up_waiting_leaves_no_place_taken(one_child: Jobs) -> None:
    jobs = one_child
    with anyio.fail_after(LIMIT_S):
        running = [asyncio.create_task(jobs.run(lines.custom_id_of, b"")) for _ in range(6)]
        await asyncio.sleep(0)  # one turn of the loop: the first begins, the others wait
        for waiting in running[1:5]:
            waiting.cancel()
        running[0].cancel()  # those who would be next are cancelled too and have not left yet
        assert await running[5] is None
        ended = await asyncio.gather(*running, return_exceptions=True)
        assert [isinstance(one, asyncio.CancelledError) for one in ended] == [True] * 5 + [False]
        assert await jobs.run(lines.custom_id_of, b'{"custom_id":"a"}') == "a"


async def test_two_children_are_kept_while_jobs_wait_and_one_when_none_does(
    jobs: Jobs, children: Path
) -> None:
    for _ in range(2):
        await asyncio.gather(*[jobs.run(lines.custom_id_of, b"") for _ in range(6)])
        assert len(recorded(children)) == 1


async def test_closing_ends_the_child_that_waits_for_a_job(jobs: Jobs, children: Path) -> None:
    await jobs.run(lines.custom_id_of, b"")
    (pid,) = recorded(children)
    await jobs.close()
    assert is_reaped(pid)
    assert recorded(children) == set()


@pytest.mark.parametrize("starter", ["run", "warm"])
async def test_closing_ends_a_child_that_is_being_started(
    jobs: Jobs, children: Path, held: Held, starter: str
) -> None:
    starting = asyncio.create_task(
        jobs.run(lines.custom_id_of, b"") if starter == "run" else jobs.warm()
    )
    pid = await held.spawned()
    closing = asyncio.create_task(jobs.close())
    await asyncio.sleep(0)  # one turn of the loop: it is closing now
    held.let_go()
    await closing
    assert is_reaped(pid)
    assert recorded(children) == set()
    (ended,) = await asyncio.gather(starting, return_exceptions=True)
    assert isinstance(ended, JobFailed) if starter == "run" else ended is None


async def test_nothing_starts_after_closing(jobs: Jobs, children: Path) -> None:
    await jobs.close()
    await jobs.warm()
    with pytest.raises(JobFailed, match="stopping") as caught:
        await jobs.run(lines.custom_id_of, b"")
    assert caught.value.retryable
    assert recorded(children) == set()


async def test_a_child_ends_when_its_server_is_gone(jobs: Jobs, children: Path) -> None:
    """The server's end of the socket closes with the server, however that ends."""
    telemetry.arm("here=stop")
    await jobs.warm()
    job = asyncio.create_task(jobs.run(telemetry.probe, "here"))
    pid = await stopped_child()
    (child,) = jobs._children
    assert child._transport is not None
    child._transport.abort()
    os.kill(pid, signal.SIGCONT)
    with pytest.raises(JobFailed):
        await job
    assert processes.start_time(pid) is None
