"""Replicas of one model: one is killed, hangs, fails everything, comes back, is drained; lines are
sent elsewhere, and none is lost or worn out by it.

Where lines must not wear out the tests allow one attempt, so that a single one used would fail a
line.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from tests.support.inputs import make_lines
from tests.support.scripted_backend import (
    Answer,
    BackendControl,
    BackendLog,
    Kind,
    Script,
    backend_process,
    read_log,
)
from tests.support.server import ServerProcess, conserved, server, submit, wait_for

TWO_WORKERS: Final = ["--workers", "2"]
HOLDING: Final = Script(answer=Answer(hold=True))
PERMITS: Final = 16
LINES: Final = 1_200  # two shards, so that both workers have one


def settings_of(
    backends: Mapping[str, BackendControl], *, attempts: int = 1, **more: object
) -> dict[str, object]:
    """Settings with these backends by name, and so many attempts."""
    return {
        "retry": {"max_attempts": attempts, "base_s": 0.01},
        "shutdown": {"grace_s": 0},
        "backend": [
            {"name": name, "base_url": one.base_url, "max_in_flight": PERMITS, **more}
            for name, one in backends.items()
        ],
    }


def together(logs: Sequence[BackendLog]) -> BackendLog:
    return BackendLog([event for log in logs for event in log.events])


def state_of(body: Mapping[str, Any], name: str) -> str:
    """The state of a backend as readiness has it."""
    return str(next(one["state"] for one in body["backends"] if one["name"] == name))


def shown(running: ServerProcess, name: str) -> dict[str, Any]:
    """A backend as `batchline backends list` shows it."""
    ran = running.command("backends", "list", "--json")
    assert ran.returncode == 0, ran.stderr
    found: list[dict[str, Any]] = [json.loads(line) for line in ran.stdout.splitlines()]
    return next(one for one in found if one["name"] == name)


def kill(backend: BackendControl) -> None:
    assert backend.pid is not None
    os.kill(backend.pid, signal.SIGKILL)


async def test_one_is_killed_and_comes_back_another_is_drained_over_a_restart(
    tmp_path: Path,
) -> None:
    """With one attempt a line, and every line is completed."""
    content = make_lines(LINES)
    log_a = tmp_path / "a.jsonl"
    async with AsyncExitStack() as stack:
        a = await stack.enter_async_context(backend_process(HOLDING, log=log_a))
        b = await stack.enter_async_context(backend_process(HOLDING))
        c = await stack.enter_async_context(backend_process(HOLDING))
        settings = settings_of({"a": a, "b": b, "c": c})
        with server(tmp_path, settings=settings, options=TWO_WORKERS) as running:
            client = running.client()
            batch = submit(client, content)
            for one in (a, b, c):
                await one.wait_until(min_held=PERMITS)

            kill(a)
            running.wait_readiness(lambda body: state_of(body, "a") == "gated")
            assert await b.release() + await c.release() == 2 * PERMITS
            for one in (b, c):
                await one.wait_until(min_arrivals=2 * PERMITS, min_held=PERMITS)
            lost = {event.id for event in read_log(log_a).arrivals}
            taken = {event.id for log in (await b.log(), await c.log()) for event in log.arrivals}
            assert len(lost) == PERMITS
            assert lost & taken  # what it had goes to the others, before what was never sent

            port = urlsplit(a.url).port or 0
            again = await stack.enter_async_context(backend_process(HOLDING, log=log_a, port=port))
            await again.wait_until(min_held=1)  # the line that tries it
            assert await again.release() == 1
            await again.wait_until(min_held=2)  # one of each worker: it comes back slowly
            running.wait_readiness(lambda body: state_of(body, "a") == "up")

            # In a thread at once: readiness is waited for without giving the loop a turn.
            drained = asyncio.get_running_loop().run_in_executor(
                None, running.command, "backends", "drain", "c"
            )
            running.wait_readiness(lambda body: state_of(body, "c") == "draining")
            assert shown(running, "c")["in_flight"] == PERMITS
            assert not drained.done()
            assert await c.release() == PERMITS
            ran = await drained
            assert (ran.returncode, ran.stderr.splitlines()[0]) == (0, "c: 16 in flight")
            assert ran.stdout == "c is quiet: nothing of this server runs there\n"
            at_c = (await c.stats()).arrivals

            assert running.terminate() == 0
            running.start()
            assert state_of(running.readiness(), "c") == "drained"
            for one in (again, b):
                await one.stop_holding()
            client = running.client()
            ended = wait_for(client, batch.id)
            assert (ended.status, (await c.stats()).arrivals) == ("completed", at_c)
            logs = [read_log(log_a), await b.log(), await c.log()]
            summary = conserved(client, ended, content, together(logs))
            assert (summary.finished, summary.failed) == (LINES, 0)

            assert running.command("backends", "undrain", "c").returncode == 0
            running.wait_readiness(lambda body: state_of(body, "c") == "up")
            await c.set_script(Script())
            more = make_lines(60, start=LINES)
            wait_for(client, submit(client, more).id, "completed")
            assert (await c.stats()).arrivals > at_c


async def test_the_only_backend_is_killed_with_lines_in_their_last_attempt(tmp_path: Path) -> None:
    content = make_lines(60)
    log = tmp_path / "log.jsonl"
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(backend_process(HOLDING, log=log))
        with server(tmp_path, settings=settings_of({"a": first})) as running:
            client = running.client()
            batch = submit(client, content)
            await first.wait_until(min_held=PERMITS)
            kill(first)
            running.wait_readiness(lambda body: state_of(body, "a") == "gated")
            port = urlsplit(first.url).port or 0
            await stack.enter_async_context(backend_process(log=log, port=port))
            ended = wait_for(client, batch.id)
            summary = conserved(client, ended, content, read_log(log))
            assert (summary.finished, summary.failed, summary.resent) == (60, 0, PERMITS)


async def test_what_a_replica_that_hangs_has_in_flight_goes_to_the_other(tmp_path: Path) -> None:
    """It takes connections and says nothing, to requests as to looks."""
    content = make_lines(LINES)
    async with backend_process() as a, backend_process() as b:
        settings = settings_of({"a": a, "b": b}, total_timeout_s=1.0)
        with server(tmp_path, settings=settings) as running:
            assert a.pid is not None
            os.kill(a.pid, signal.SIGSTOP)
            try:
                client = running.client()
                batch = submit(client, content)
                ended = wait_for(client, batch.id)
                assert state_of(running.readiness(), "a") == "gated"
            finally:
                os.kill(a.pid, signal.SIGCONT)
            summary = conserved(client, ended, content)
            assert (summary.finished, summary.failed) == (LINES, 0)


async def test_a_replica_that_dies_while_nobody_needs_it_is_known_to_before_a_line_is_sent(
    tmp_path: Path,
) -> None:
    content = make_lines(60)
    async with backend_process() as a, backend_process() as b:
        settings = settings_of({"a": a, "b": b}, health_s=0.1)
        with server(tmp_path, settings=settings) as running:
            await a.go_down()
            running.wait_readiness(lambda body: state_of(body, "a") == "gated")
            client = running.client()
            ended = wait_for(client, submit(client, content).id)
            assert conserved(client, ended, content, await b.log()).finished == 60
            await a.come_up()
            running.wait_readiness(lambda body: state_of(body, "a") == "up")


async def test_a_replica_that_fails_everything_costs_a_line_one_attempt_at_most(
    tmp_path: Path,
) -> None:
    """It fails fast, and would get most of the lines."""
    content = make_lines(LINES)
    failing = Script(answer=Answer(status=500))
    working = Script(answer=Answer(latency_s=0.01))
    async with backend_process(failing) as a, backend_process(working) as b:
        settings = settings_of({"a": a, "b": b}, attempts=2)
        with server(tmp_path, settings=settings, options=TWO_WORKERS) as running:
            client = running.client()
            ended = wait_for(client, submit(client, content).id)
            log_a, log_b = await a.log(), await b.log()
            summary = conserved(client, ended, content, together([log_a, log_b]))
            assert (summary.finished, summary.failed) == (LINES, 0)
            assert max(log_a.attempts().values()) == 1
            failed = [event for event in log_a.of(Kind.ANSWERED) if event.status == 500]
            assert len(failed) < LINES / 3


async def test_backends_are_shown_and_unknown_ones_refused(tmp_path: Path) -> None:
    async with backend_process() as a:
        with server(tmp_path, settings=settings_of({"a": a}, weight=2.5)) as running:
            ran = running.command("backends")
            head, row = ran.stdout.splitlines()
            assert head.split()[:2] == ["NAME", "STATE"]
            assert row.split()[:7] == ["a", "up", "0", "0", "of", "16", "2.5"]
            assert shown(running, "a")["models"] == ["test-model"]
            for command in ("drain", "undrain"):
                refused = running.command("backends", command, "b")
                assert (refused.returncode, refused.stdout) == (1, "")
                assert "no backend 'b'; there are: a." in refused.stderr
            quiet = running.command("backends", "drain", "a", "--no-wait")
            assert quiet.stdout == "a is quiet: nothing of this server runs there\n"
            body = running.readiness()
            assert (body["status"], state_of(body, "a")) == ("ready", "drained")
            running.terminate()
            away = running.command("backends", "list")
            assert (away.returncode, away.stdout) == (3, "")
            assert "no server runs" in away.stderr
