"""Poison for real: answers and input lines that end, or hang, the process that touches them.

`test_worker_lost.py` kills workers itself; here a limit on memory, the parser or the processor does
it. How often the bad line is sent is bounded, and the backend's log is the witness.
"""

from __future__ import annotations

import json
import resource
import time
from collections import Counter
from pathlib import Path
from typing import Final

import anyio
import openai
from openai.types import Batch

from tests.fault.test_worker_lost import DEATHS, kill_on_arrival
from tests.support.inputs import line_id, make_lines
from tests.support.scripted_backend import Answer, BackendControl, Fault, Script, backend_process
from tests.support.server import (
    POLL_S,
    ServerProcess,
    conserved,
    content_of,
    server,
    submit,
    wait_for,
)

MIB: Final = 1024 * 1024
LINES: Final = 1_200
FIRST, SECOND, THIRD = (
    line_id(5),
    line_id(900),
    line_id(1_100),
)  # two shards: 0 to 999, and the rest
DEATH_S: Final = 20.0

# An answer that fits the memory that a worker is given here once, but not twice: its pieces can be
# received and not be put together.
LARGE: Final = Answer(hold=True, fault=Fault.HUGE, text_bytes=60 * MIB)
ROOM_BYTES: Final = 95 * MIB


def give_little_memory(pid: int) -> None:
    """Let a process have ROOM_BYTES more address space than it has now."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + ROOM_BYTES
    resource.prlimit(pid, resource.RLIMIT_AS, (most, most))


async def starve(running: ServerProcess, backend: BackendControl, *poison: str) -> None:
    """Limit every worker while the poison is held, then release it; returns when one has died."""
    now = await backend.wait_until(min_held=1)
    workers = running.workers()
    for pid in workers:
        give_little_memory(pid)
    await backend.release(*poison)
    with anyio.fail_after(DEATH_S):
        while set(workers) <= set(running.workers()):
            await anyio.sleep(POLL_S)
    await backend.wait_until(min_dropped=now.dropped)


def lost_lines(client: openai.OpenAI, batch: Batch) -> list[str]:
    """The custom_ids that were settled as `worker_lost`, and no other error."""
    lines = [
        json.loads(line) for line in (content_of(client, batch.error_file_id) or b"").splitlines()
    ]
    assert {line["error"]["code"] for line in lines} <= {"worker_lost"}
    return sorted(line["custom_id"] for line in lines)


async def test_an_answer_that_exhausts_the_memory_of_its_worker_is_settled(
    tmp_path: Path,
) -> None:
    content = make_lines(LINES)
    async with backend_process(Script(by_id={FIRST: (LARGE,)})) as backend:
        with server(tmp_path, backend.base_url) as running:
            client = running.client()
            batch = submit(client, content)
            for _ in range(DEATHS):
                await starve(running, backend, FIRST)
            ended = wait_for(client, batch.id)
            assert ended.status == "completed"
            log = await backend.log()
            assert conserved(client, ended, content, log).finished == LINES - 1
            assert lost_lines(client, ended) == [FIRST]
            assert log.attempts()[FIRST] == DEATHS
