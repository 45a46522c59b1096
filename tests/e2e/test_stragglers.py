"""Lines that take long, and lines that are large, beside all others."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import openai

from tests.contract.api.serving import until
from tests.support.inputs import line_id, make_lines
from tests.support.scripted_backend import (
    Answer,
    BackendControl,
    Fault,
    Script,
    backend_process,
)
from tests.support.server import conserved, server, submit, wait_for

MIB = 1024 * 1024
HELD = (Answer(hold=True),)


def holding(numbers: Iterable[int]) -> Script:
    """A backend that answers these lines when it is told to, and all others at once."""
    return Script(by_id={line_id(number): HELD for number in numbers})


def settings(backend: BackendControl, *, in_flight: int, **worker: int) -> dict[str, object]:
    one = {"name": "b", "base_url": backend.base_url, "max_in_flight": in_flight}
    return {"workers": 1, "backend": [one], "worker": worker}


async def test_one_line_in_a_hundred_that_takes_for_ever_keeps_no_other_waiting(
    tmp_path: Path,
) -> None:
    """More shards than a worker may have open, each with stragglers; and a batch behind it."""
    content = make_lines(4000)
    slow = range(50, 4000, 100)
    async with backend_process(holding(slow)) as backend:
        with server(tmp_path, settings=settings(backend, in_flight=64)) as running:
            client = running.client()
            batch = submit(client, content)
            stats = await backend.wait_until(min_answered=3960, min_held=40)
            assert (stats.in_flight, stats.held) == (40, 40)
            await until(lambda: completed(client, batch.id) == 3960)

            behind = submit(client, make_lines(30, start=5000))
            wait_for(client, behind.id, "completed")
            assert client.batches.retrieve(batch.id).status == "in_progress"
            assert (await backend.stats()).held == 40
            assert await backend.release() == 40
            done = wait_for(client, batch.id, "completed")
            assert conserved(client, done, content).finished == 4000
            log = await backend.log()
            assert log.resent() == 0


async def test_small_lines_go_beside_large_ones_and_memory_is_bounded_by_the_budget(
    tmp_path: Path,
) -> None:
    """30 lines of 3 MiB, of which a budget of 8 MiB takes three, before and among 300 small ones.

    If the worker holds more than is said here, look for another copy of a body.
    """
    large = range(0, 300, 10)
    lines = [
        make_lines(1, start=number, padding=3 * MIB if number in large else 100)
        for number in range(330)
    ]
    content = b"".join(lines)
    async with backend_process(holding(large)) as backend:
        ours = settings(backend, in_flight=64, byte_budget=8 * MIB)
        with server(tmp_path, settings=ours) as running:
            (worker,) = running.workers()
            client = running.client()
            before = peak_bytes(worker)
            batch = submit(client, content)
            stats = await backend.wait_until(min_answered=300, min_held=3)
            assert (stats.answered, stats.held, stats.in_flight) == (300, 3, 3)
            for given in range(3, 31, 3):  # three by three, never more
                await backend.release()
                stats = await backend.wait_until(
                    min_answered=300 + given, min_held=min(3, 30 - given)
                )
                assert stats.held <= 3
            done = wait_for(client, batch.id, "completed")
            grown = peak_bytes(worker) - before
            assert conserved(client, done, content).finished == 330
    # Three lines, a second copy of the one that is being read, small lines; and what it took to
    # begin at all (connections, modules that are imported late).
    assert grown < (3 + 1) * 3 * MIB + MIB + 12 * MIB, f"{grown / MIB:.1f} MiB"


async def test_large_answers_that_come_all_at_once_are_not_held_all_at_once(
    tmp_path: Path,
) -> None:
    """30 answers of 6 MiB, to as many requests in flight, with a budget of 8 MiB.

    If the worker holds more than is said here, look for another copy of an answer.
    """
    content = make_lines(30)
    script = Script(answer=Answer(fault=Fault.HUGE, text_bytes=6 * MIB, hold=True))
    async with backend_process(script) as backend:
        ours = settings(backend, in_flight=30, byte_budget=8 * MIB)
        with server(tmp_path, settings=ours) as running:
            (worker,) = running.workers()
            client = running.client()
            before = peak_bytes(worker)
            batch = submit(client, content)
            await backend.wait_until(min_held=30)
            await backend.release()
            done = wait_for(client, batch.id, "completed")
            grown = peak_bytes(worker) - before
            assert conserved(client, done, content).finished == 30
    # The budget and an answer beyond it, three more copies of the one that becomes a line, what the
    # others had when they were told to wait; and what it took to begin at all.
    assert grown < 8 * MIB + 4 * 6 * MIB + 30 * MIB // 2 + 12 * MIB, f"{grown / MIB:.1f} MiB"


def completed(client: openai.OpenAI, batch_id: str) -> int:
    counts = client.batches.retrieve(batch_id).request_counts
    assert counts is not None
    return counts.completed


def peak_bytes(pid: int) -> int:
    """The most memory that a process ever had at once."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024
