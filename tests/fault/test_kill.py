"""kill -9 before and after each durable step, of the server, of its workers, of both.

`steps.py` has the steps and who is ended at each, `scenes.py` the jobs that come by there. Each
case is started again without help and ends with every line accounted for, no byte left over and
nothing stuck. The backend's log is the witness. Below that are the deaths that no step is part of.
"""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.fault.scenes import play
from tests.fault.steps import SAMPLED, STEPS, Step, Victim
from tests.support.inputs import make_lines
from tests.support.scripted_backend import Answer, Script, backend_process
from tests.support.server import conserved, server, submit, wait_for
from tests.support.stored import let_expire

LINES = 400
GONE_S = 30.0  # takes milliseconds
SLOW = Script(answer=Answer(latency_s=0.05))
MAX_IN_FLIGHT = 64


@pytest.mark.parametrize(
    ("step", "victim"),
    [
        pytest.param(
            step,
            victim,
            id=f"{step}-{victim}",
            marks=[] if victim is step.victim and step in SAMPLED else [pytest.mark.matrix],
        )
        for step in STEPS
        for victim in step.victims
    ],
)
async def test_a_death_at_a_step_loses_nothing_and_leaves_nothing_stuck(
    tmp_path: Path, step: Step, victim: Victim
) -> None:
    await play(tmp_path, step, victim)


async def test_children_of_a_killed_server_are_gone_before_new_ones_dispatch(
    tmp_path: Path,
) -> None:
    content = make_lines(LINES)
    async with backend_process(Script(answer=Answer(hold=True))) as backend:
        with server(tmp_path, backend.base_url) as running:
            batch = submit(running.client(), content)
            await backend.wait_until(min_held=MAX_IN_FLIGHT)
            old = running.workers()
            running.signal_workers(signal.SIGSTOP)  # cannot notice that its server is gone
            running.kill()
            running.start()
            assert not set(old) & set(running.workers())
            await backend.wait_until(min_aborted=MAX_IN_FLIGHT)
            await backend.stop_holding()
            ended = wait_for(running.client(), batch.id)
            log = await backend.log()
            conserved(running.client(), ended, content, log)
            assert (await backend.stats()).max_in_flight <= MAX_IN_FLIGHT


async def test_a_killed_server_takes_its_children_with_it(tmp_path: Path) -> None:
    async with backend_process(Script(answer=Answer(hold=True))) as backend:
        with server(tmp_path, backend.base_url, options=["--workers", "2"]) as running:
            submit(running.client(), make_lines(LINES))
            await backend.wait_until(min_held=1)
            running.kill()
            began = time.monotonic()
            while running.children():
                assert time.monotonic() - began < GONE_S
                time.sleep(0.005)
            await backend.wait_until(in_flight=0)


async def test_a_silent_worker_is_replaced(tmp_path: Path) -> None:
    content = make_lines(LINES)
    settings = {"worker": {"silent_s": 0.5}}
    async with backend_process(SLOW) as backend:
        with server(tmp_path, backend.base_url, settings=settings) as running:
            client = running.client()
            batch = submit(client, content)
            await backend.wait_for_arrivals(50)
            running.signal_workers(signal.SIGSTOP)
            ended = wait_for(client, batch.id)
            assert conserved(client, ended, content, await backend.log()).finished == LINES


async def test_a_terminated_server_commits_and_exits_0_and_the_next_one_goes_on(
    tmp_path: Path,
) -> None:
    content = make_lines(LINES)
    # So slow that not all are sent before the signal comes, on a busy machine too.
    async with backend_process(Script(answer=Answer(latency_s=0.5))) as backend:
        with server(tmp_path, backend.base_url) as running:
            batch = submit(running.client(), content)
            await backend.wait_for_arrivals(70)
            assert running.terminate() == 0
            await backend.set_script(Script())
            assert running.children() == []
            sent = (await backend.stats()).arrivals
            running.start()
            ended = wait_for(running.client(), batch.id)
            summary = conserved(running.client(), ended, content, await backend.log())
            assert summary.finished == LINES
            assert summary.resent == 0
            assert sent < LINES


async def test_a_second_server_on_the_directory_is_refused(tmp_path: Path) -> None:
    with server(tmp_path, "http://127.0.0.1:9") as running:
        (tmp_path / "second").mkdir()
        second = type(running)(tmp_path / "second", ["http://127.0.0.1:9"])
        second.data = running.data
        second.start(wait=False)
        assert second.wait_ended() == 2
        assert "another server is using it" in second.tail()


async def test_a_batch_past_its_window_at_start_expires_before_any_dispatch(
    tmp_path: Path,
) -> None:
    content = make_lines(LINES)
    settings = {"expire": {"grace_s": 0.0}}
    async with backend_process(Script(answer=Answer(hold=True))) as backend:
        with server(tmp_path, backend.base_url, settings=settings) as running:
            batch = submit(running.client(), content)
            await backend.wait_until(min_held=MAX_IN_FLIGHT)
            running.kill_all()
            sent = (await backend.stats()).arrivals
            let_expire(running.data)
            running.start()
            ended = wait_for(running.client(), batch.id)
            assert ended.status == "expired"
            assert conserved(running.client(), ended, content).expired == LINES
            assert (await backend.stats()).arrivals == sent
