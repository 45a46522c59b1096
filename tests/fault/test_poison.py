"""Poison for real: answers and input lines that end, or hang, the process that touches them.

`test_worker_lost.py` has the ordinary case; here there are several at once, and a cancel, a window,
a restart or a second worker beside them, and a limit on memory does what else only a kill does. How
often a bad line is sent is bounded, and the backend's log is the witness.
"""

from __future__ import annotations

import json
import resource
import signal
import time
from pathlib import Path
from typing import Final

import openai
import pytest
from openai.types import Batch

from batchline.service.planning import CHILD_TRIES, SERVER_TRIES
from tests.fault.test_worker_lost import DEATHS, kill_on_arrival
from tests.hostile.backend import Exchange, hostile_backend, sending
from tests.support.inputs import line_id, make_lines
from tests.support.pauses import POLL_S
from tests.support.scripted_backend import Answer, BackendControl, Fault, Script, backend_process
from tests.support.server import (
    TERMINAL,
    ServerProcess,
    conserved,
    content_of,
    server,
    submit,
    wait_for,
)

MIB: Final = 1024 * 1024
LINES: Final = 1_200
# Two shards: lines 0 to 999, and the rest.
FIRST, BESIDE, SECOND = line_id(5), line_id(6), line_id(1_100)
HELD: Final = (Answer(hold=True),)
DEATH_S: Final = 30.0
MAX_ATTEMPTS: Final = 5  # retry.max_attempts

# An answer that fits the memory that a worker is given here once, but not twice: its pieces can be
# received and not be put together.
LARGE: Final = Answer(hold=True, fault=Fault.HUGE, text_bytes=60 * MIB)
ROOM_BYTES: Final = 95 * MIB
WORKERS: Final = 2


def give_little_memory(pid: int) -> None:
    """Let a process have ROOM_BYTES more address space than it has now."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + ROOM_BYTES
    _, hard = resource.prlimit(pid, resource.RLIMIT_AS)
    resource.prlimit(pid, resource.RLIMIT_AS, (most, hard))


async def starve(running: ServerProcess, backend: BackendControl, poison: str) -> None:
    """Limit every worker while the poison is held, then release it; returns when one has died.

    Whenever it is held again: an attempt may also end without its worker's death.
    """
    limited: set[int] = set()
    deadline = time.monotonic() + DEATH_S
    while limited <= set(running.workers()):
        assert time.monotonic() < deadline, "every worker survived the answer"
        # When all are there, also those that replace the dead: none is to die while it starts.
        all_there = running.readiness()["workers"]["running"] == WORKERS
        if all_there and (await backend.stats()).held:
            for pid in set(running.workers()) - limited:
                give_little_memory(pid)
                limited.add(pid)
            await backend.release(poison)
        time.sleep(POLL_S)


def lost_lines(client: openai.OpenAI, batch: Batch) -> list[str]:
    """The custom_ids that were settled as `worker_lost`, and no other error."""
    lines = [
        json.loads(line) for line in (content_of(client, batch.error_file_id) or b"").splitlines()
    ]
    assert {line["error"]["code"] for line in lines} <= {"worker_lost"}
    return sorted(line["custom_id"] for line in lines)


@pytest.mark.parametrize("other", [SECOND, BESIDE], ids=["another shard", "the same shard"])
async def test_two_lines_that_kill_are_both_found_and_nobody_else_pays(
    tmp_path: Path, other: str
) -> None:
    """Both are under way at the first three deaths; alone, each takes two more."""
    content = make_lines(LINES)
    async with backend_process(Script(by_id={FIRST: HELD, other: HELD})) as backend:
        with server(tmp_path, backend.base_url) as running:
            client = running.client()
            batch = submit(client, content)
            await kill_on_arrival(running, backend, 3, held=2)
            await kill_on_arrival(running, backend, 4)
            ended = wait_for(client, batch.id)
            assert ended.status == "completed"
            log = await backend.log()
            assert conserved(client, ended, content, log).finished == LINES - 2
            assert lost_lines(client, ended) == sorted([FIRST, other])
            assert [log.attempts()[one] for one in (FIRST, other)] == [DEATHS, DEATHS]


async def test_a_restart_in_between_costs_four_more_sends_at_most(tmp_path: Path) -> None:
    """Only the count of deaths survives the server: the line is found anew, by two deaths."""
    content = make_lines(LINES)
    async with backend_process(Script(by_id={FIRST: HELD})) as backend:
        with server(tmp_path, backend.base_url) as running:
            batch = submit(running.client(), content)
            await kill_on_arrival(running, backend, DEATHS - 1)  # one more, and it is settled
            await backend.wait_until(min_held=1)
            running.kill_all()
            running.start()
            await kill_on_arrival(running, backend, 4)
            ended = wait_for(running.client(), batch.id)
            log = await backend.log()
            assert conserved(running.client(), ended, content, log).finished == LINES - 1
            assert lost_lines(running.client(), ended) == [FIRST]
            assert log.attempts()[FIRST] == DEATHS + 4


async def test_a_window_that_closes_over_poison_expires_what_is_left(tmp_path: Path) -> None:
    """Every line kills: more than can be found in the time."""
    content = make_lines(200)
    settings = {"windows": ["5s"], "expire": {"grace_s": 0.0}}
    async with backend_process(Script(answer=Answer(hold=True))) as backend:
        with server(tmp_path, backend.base_url, settings=settings) as running:
            client = running.client()
            batch = submit(client, content, window="5s")
            while client.batches.retrieve(batch.id).status not in TERMINAL:
                if (await backend.stats()).held:
                    running.signal_workers(signal.SIGKILL)
                time.sleep(POLL_S)
            ended = wait_for(client, batch.id)
            assert ended.status == "expired"
            summary = conserved(client, ended, content, await backend.log())
            assert summary.finished == 0
            assert summary.expired + summary.failed == 200


@pytest.mark.matrix
async def test_a_line_that_hangs_its_worker_is_poison_as_well(tmp_path: Path) -> None:
    """A worker in the middle of twenty seconds of parsing looks like one that was stopped."""
    content = make_lines(LINES)
    settings = {"worker": {"silent_s": 2.0}}
    async with backend_process(Script(by_id={FIRST: HELD})) as backend:
        with server(tmp_path, backend.base_url, settings=settings) as running:
            client = running.client()
            batch = submit(client, content)
            for _ in range(DEATHS):
                now = await backend.wait_until(min_held=1)
                running.signal_workers(signal.SIGSTOP)
                await backend.wait_until(min_aborted=now.aborted + 1, timeout_s=DEATH_S)
            ended = wait_for(client, batch.id)
            log = await backend.log()
            assert conserved(client, ended, content, log).finished == LINES - 1
            assert lost_lines(client, ended) == [FIRST]
            assert log.attempts()[FIRST] == DEATHS


@pytest.mark.matrix
@pytest.mark.timeout(180)
async def test_an_answer_that_exhausts_the_memory_of_its_worker_is_settled(
    tmp_path: Path,
) -> None:
    """Beside a second worker. An attempt that runs out of memory while it receives is broken, not
    deadly, and so may be repeated by the same worker, as often as any line."""
    content = make_lines(LINES)
    async with backend_process(Script(by_id={FIRST: (LARGE,)})) as backend:
        with server(tmp_path, backend.base_url, options=["--workers", f"{WORKERS}"]) as running:
            client = running.client()
            batch = submit(client, content)
            for _ in range(DEATHS):
                await starve(running, backend, FIRST)
            ended = wait_for(client, batch.id)
            assert ended.status == "completed"
            log = await backend.log()
            assert conserved(client, ended, content, log).finished == LINES - 1
            assert lost_lines(client, ended) == [FIRST]
            sent = log.attempts()[FIRST]
            assert DEATHS <= sent <= DEATHS * MAX_ATTEMPTS
            # Neighbours: what was in flight or not yet committed at a death.
            assert log.resent() - (sent - 1) <= LINES


NESTED: Final[dict[str, bytes]] = {
    "brackets": b"[" * (63 * MIB),
    "closed brackets": b"[" * (31 * MIB) + b"]" * (31 * MIB),
    "half pairs": b'{"a":"' + b"\\ud83d" * (10 * MIB) + b'"}',
    "digits": b'{"usage":{"prompt_tokens":' + b"9" * (60 * MIB) + b"}}",
    "a list for usage": b'{"usage":[' + b"{}," * (20 * MIB) + b"{}]}",
}
REFUSED_NESTED: Final = {"brackets", "closed brackets", "half pairs"}


@pytest.mark.matrix
@pytest.mark.timeout(180)
def test_answers_at_the_limit_of_size_do_not_end_their_worker(tmp_path: Path) -> None:
    answers: dict[str, Exchange] = {name: sending(body) for name, body in NESTED.items()}
    lines = [
        json.dumps(
            {
                "custom_id": name,
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": {"model": "test-model", "messages": [], "user": name},
            }
        )
        for name in answers
    ]
    # One at a time: each by itself may take what the limit allows.
    settings = {"retry": {"max_attempts": 1}, "backend": [{"base_url": "", "max_in_flight": 1}]}
    with hostile_backend(answers) as url:
        settings["backend"] = [{"base_url": url, "max_in_flight": 1}]
        with server(tmp_path, settings=settings) as running:
            workers = running.workers()
            client = running.client(timeout_s=60)
            ended = wait_for(client, submit(client, "\n".join(lines).encode()).id, timeout_s=120)
            assert ended.status == "completed"
            assert running.workers() == workers
            errors = (content_of(client, ended.error_file_id) or b"").splitlines()
            assert {json.loads(line)["custom_id"] for line in errors} == REFUSED_NESTED


# -- input files -------------------------------------------------------------------------------


def failed(batch: Batch) -> None:
    """It ended `failed`, with an error that says whose fault it was."""
    assert batch.status == "failed"
    assert batch.errors is not None
    assert [problem.code for problem in batch.errors.data or ()] == ["server_error"]


async def test_an_input_that_kills_every_child_that_validates_it_fails_its_batch(
    tmp_path: Path,
) -> None:
    async with backend_process() as backend:
        with server(tmp_path, backend.base_url, probes="plan.synced=kill") as running:
            client = running.client()
            failed(wait_for(client, submit(client, make_lines(9)).id, "failed"))
            assert running.log.read_text().count("validation_child_failed") == CHILD_TRIES


async def test_an_input_that_exhausts_the_memory_of_its_child_fails_its_batch(
    tmp_path: Path,
) -> None:
    """A name of a model that is no string but four megabytes of objects."""
    line = json.loads(make_lines(1))
    line["body"]["model"] = [{}] * MIB
    async with backend_process() as backend:
        with server(tmp_path, backend.base_url) as running:
            client = running.client()
            give_little_memory(running.wait_job_child())
            failed(wait_for(client, submit(client, json.dumps(line).encode()).id, "failed"))
            # The next one is validated as ever.
            content = make_lines(9)
            ended = wait_for(client, submit(client, content).id)
            assert conserved(client, ended, content, await backend.log()).finished == 9


async def test_an_input_that_ends_the_server_with_its_child_fails_its_batch(
    tmp_path: Path,
) -> None:
    """As the memory limit of a container does. The next server begins again, but not for ever."""
    content = make_lines(9)
    async with backend_process() as backend:
        with server(tmp_path, backend.base_url, start=False) as running:
            running.start(probes="plan.synced=kill_both")
            batch = submit(running.client(), content)
            for start in range(SERVER_TRIES):
                if start:
                    running.start(probes="plan.synced=kill_both", wait=False)
                assert running.wait_ended() == -signal.SIGKILL
            running.start(probes="plan.synced=kill_both")
            client = running.client()
            failed(wait_for(client, batch.id, "failed"))
            assert running.terminate() == 0
            running.start()
            ended = wait_for(running.client(), submit(running.client(), content).id)
            assert conserved(running.client(), ended, content).finished == 9
