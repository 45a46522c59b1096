"""A limit that is learnt, by a real server of two workers; the backend is the witness."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

from tests.support.inputs import make_lines
from tests.support.scripted_backend import Answer, BackendControl, Script, backend_process
from tests.support.server import conserved, server, submit, wait_for

CEILING = 48
KNEE = 12
LINES = 1_500


def settings(base_url: str, **more: object) -> dict[str, Any]:
    backend = {
        "name": "engine",
        "base_url": base_url,
        "concurrency": "adaptive",
        "max_in_flight": CEILING,
        **more,
    }
    return {"workers": 2, "backend": [backend]}


async def in_flight_over(backend: BackendControl, span_s: float) -> list[int]:
    """How many requests the backend has, looked at all the time for so long."""
    seen = []
    until = time.monotonic() + span_s
    while time.monotonic() < until:
        seen.append((await backend.stats()).in_flight)
    return seen


async def test_the_limit_moves_and_the_backend_never_has_more_than_the_ceiling(
    tmp_path: Path,
) -> None:
    script = Script(answer=Answer(latency_s=0.04), knee=KNEE)
    content = make_lines(LINES)
    async with backend_process(script) as backend:
        with server(tmp_path, settings=settings(backend.base_url)) as running:
            client = running.client()
            batch = submit(client, content)
            await backend.wait_until(min_in_flight=KNEE + 1)  # it looks beyond the knee ...
            await backend.wait_until(in_flight=KNEE)  # ... and comes back
            ended = wait_for(client, batch.id, timeout_s=60.0)
            assert ended.status == "completed"
            stats = await backend.stats()
            assert KNEE < stats.max_in_flight <= CEILING
            log = await backend.log()
            assert conserved(client, ended, content, log).finished == LINES


async def test_refusals_end_the_search_and_cost_no_line(tmp_path: Path) -> None:
    script = Script(answer=Answer(latency_s=0.04), cap=20)
    content = make_lines(LINES)
    async with backend_process(script) as backend:
        with server(tmp_path, settings=settings(backend.base_url)) as running:
            client = running.client()
            ended = wait_for(client, submit(client, content).id, timeout_s=60.0)
            assert ended.status == "completed"
            stats = await backend.stats()
            assert stats.max_in_flight <= CEILING
            assert conserved(client, ended, content).finished == LINES
            refused = sum(429 in statuses for statuses in (await backend.log()).statuses().values())
            # A fixed limit of the same height is refused every few lines, for as long as it runs.
            assert 0 < refused < 60


async def test_others_at_the_engine_are_made_way_for_within_a_few_looks(tmp_path: Path) -> None:
    alone = Script(answer=Answer(latency_s=0.05), others=0)
    crowded = Script(answer=Answer(latency_s=0.05), others=2 * CEILING)
    content = make_lines(12 * LINES)
    async with backend_process(alone) as backend:
        with server(tmp_path, settings=settings(backend.base_url, min_in_flight=3)) as running:
            client = running.client()
            batch = submit(client, content)
            await backend.wait_until(min_in_flight=CEILING)
            # While it still doubles it would look once what the engine takes beyond the others.
            running.wait_log("backend_limit_found")
            await backend.set_script(crowded)
            before = (await backend.stats()).load_pages
            looks = (await backend.wait_until(in_flight=3)).load_pages - before
            assert looks <= 8  # there are two a second, and one or two will do
            assert max(await in_flight_over(backend, 1.0)) <= 3
            await backend.set_script(alone)
            await backend.wait_until(min_in_flight=CEILING)
            assert (await backend.stats()).max_in_flight <= CEILING
            client.batches.cancel(batch.id)
            ended = wait_for(client, batch.id)
            assert ended.status == "cancelled"
            conserved(client, ended, content)


async def test_lines_go_out_with_the_backends_priority_unless_they_have_their_own(
    tmp_path: Path,
) -> None:
    lines = make_lines(2).splitlines()
    lines[1] = lines[1].replace(b'"body": {', b'"body": {"priority": -9, ')
    content = b"\n".join(lines)
    async with backend_process() as backend:
        table = {"backend": [{"base_url": backend.base_url, "priority": 5}]}
        with server(tmp_path, settings=table) as running:
            client = running.client()
            ended = wait_for(client, submit(client, content).id)
            log = await backend.log()
            assert conserved(client, ended, content).finished == 2
    bodies = [line[line.index(b'"body": ') + 8 : -1] for line in lines]
    bodies[0] = bodies[0].replace(b"{", b'{"priority":5,', 1)
    sent = {event.sha256 for event in log.arrivals}
    assert sent == {hashlib.sha256(body).hexdigest() for body in bodies}
