"""Whose lines go: counted in the order in which they came to the backend, not by time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest

from tests.support.inputs import make_lines
from tests.support.scripted_backend import Answer, BackendLog, Script, backend_process
from tests.support.server import server, submit, wait_for

IN_FLIGHT: Final = 16
SLOW: Final = Answer(latency_s=0.02)


def settings_for(url: str, **more: object) -> Mapping[str, object]:
    backend = {"name": "b", "base_url": url, "max_in_flight": IN_FLIGHT}
    return {"backend": [backend], **more}


def owners(log: BackendLog, begins: Mapping[str, int]) -> list[str]:
    """Whose each request was, in the order of arrival; ids count on from where a batch begins."""

    def owner(line: str) -> str:
        number = int(line.removeprefix("line-"))
        return max((first, name) for name, first in begins.items() if first <= number)[1]

    return [owner(event.id) for event in log.arrivals]


@pytest.mark.timeout(60)
async def test_small_batches_behind_a_huge_one_end_after_about_their_own_size(
    tmp_path: Path,
) -> None:
    """A shard has 1,000 lines, and two of the huge batch are open when the small ones come."""
    begins = {"huge": 0, "same": 10_000, "other": 20_000}
    async with backend_process(Script(answer=Answer(hold=True))) as backend:
        with server(tmp_path, settings=settings_for(backend.base_url)) as running:
            mine, theirs = (running.client(key=running.new_key(name)) for name in ("a", "b"))
            huge = submit(mine, make_lines(4_000))
            await backend.wait_for_arrivals(IN_FLIGHT)
            same = submit(mine, make_lines(100, start=begins["same"]))
            other = submit(theirs, make_lines(100, start=begins["other"]))
            wait_for(mine, same.id, "in_progress")
            wait_for(theirs, other.id, "in_progress")
            await backend.set_script(Script(answer=SLOW))
            await backend.stop_holding()
            wait_for(theirs, other.id, "completed")
            wait_for(mine, same.id, "completed")
            order = owners(await backend.log(), begins)
            mine.batches.cancel(huge.id)
    last = {name: len(order) - order[::-1].index(name) for name in begins}
    before = {name: Counter(order[: last[name]])["huge"] - IN_FLIGHT for name in ("same", "other")}
    # In turns the huge batch has as many lines as the small one meanwhile, or half as many where
    # its project has another one; the rest is for the time until their first shards are open.
    assert before["same"] < 500
    assert before["other"] < 500


@pytest.mark.timeout(60)
async def test_projects_share_a_backend_by_their_weights(tmp_path: Path) -> None:
    begins = {"heavy": 0, "light": 10_000}
    weights = {"heavy": {"weight": 3}}
    async with backend_process(Script(answer=Answer(hold=True))) as backend:
        settings = settings_for(backend.base_url, projects=weights)
        with server(tmp_path, settings=settings) as running:
            for name, start in begins.items():
                client = running.client(key=running.new_key(name))
                batch = submit(client, make_lines(2_000, start=start))
                wait_for(client, batch.id, "in_progress")
            await backend.wait_for_arrivals(IN_FLIGHT)
            await backend.set_script(Script(answer=SLOW))
            await backend.stop_holding()
            await backend.wait_for_arrivals(1_500, timeout_s=30)
            order = owners(await backend.log(), begins)
    middle = Counter(order[500:1_300])
    assert 2.4 < middle["heavy"] / middle["light"] < 3.6
