"""Committed results that are damaged on disk: an alarm, exactly their lines again, and a whole end.

The backend holds one line back, so that all others are committed when they are damaged.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types import Batch

from tests.support import damage
from tests.support.inputs import line_id, make_lines
from tests.support.scripted_backend import Answer, BackendLog, Script, backend_process
from tests.support.scripted_backend.control import BackendControl
from tests.support.server import (
    ServerProcess,
    conserved,
    server,
    submit,
    wait_for,
)

LINES = 300
FAILING = 30  # every tenth line has an error line
HELD = line_id(LINES - 1)
CONTENT = make_lines(LINES)


@dataclass
class Damaged:
    """A batch of which all lines but one are committed."""

    backend: BackendControl
    server: ServerProcess
    client: openai.OpenAI
    batch: Batch

    def ranges(self) -> list[damage.Range]:
        return damage.committed(self.server.data)

    async def finish(self) -> None:
        await self.backend.release(HELD)
        await self.backend.stop_holding()

    def alarms(self) -> list[dict[str, Any]]:
        return alarms(self.server)

    async def ended_well(self, *, again: set[str]) -> BackendLog:
        """Every line once, the lines in `again` sent twice and no other."""
        ended = wait_for(self.client, self.batch.id)
        assert ended.status == "completed", ended.errors
        log = await self.backend.log()
        summary = conserved(self.client, ended, CONTENT, log)
        assert (summary.finished, summary.failed) == (LINES - FAILING, FAILING)
        attempts = log.attempts()
        assert {one for one, count in attempts.items() if count > 1} == again
        assert max(attempts.values()) <= 2
        return log


def alarms(running: ServerProcess) -> list[dict[str, Any]]:
    return [
        event
        for line in running.log.read_text().splitlines()
        if line.startswith("{") and (event := json.loads(line))["event"] == "range_corrupt"
    ]


@asynccontextmanager
async def all_but_one_committed(
    tmp_path: Path, *, probes: str = "", settings: dict[str, object] | None = None
) -> AsyncIterator[Damaged]:
    failing = {line_id(number): (Answer(status=400),) for number in range(0, LINES, 10)}
    script = Script(
        answer=Answer(latency_s=0.02), by_id={**failing, HELD: (Answer(hold=True), Answer())}
    )
    async with backend_process(script) as backend:
        with server(tmp_path, backend.base_url, settings=settings, probes=probes) as running:
            client = running.client()
            batch = submit(client, CONTENT)
            while settled(client, batch.id) < LINES - 1:
                await backend.caught_up()
            yield Damaged(backend, running, client, batch)


def settled(client: openai.OpenAI, batch_id: str) -> int:
    counts = client.batches.retrieve(batch_id).request_counts
    assert counts is not None
    return counts.completed + counts.failed


@pytest.mark.parametrize("way", sorted(damage.WAYS))
async def test_exactly_the_lines_of_a_damaged_range_run_again(tmp_path: Path, way: str) -> None:
    async with all_but_one_committed(tmp_path) as damaged:
        ranges = damaged.ranges()
        assert len(ranges) > 2
        one = ranges[-1] if way == "short" else ranges[len(ranges) // 2]
        # Where the file is gone, so are all of its ranges; a shorter one may lack its last.
        lost = ranges if way == "gone" else [one]
        damage.WAYS[way](one)
        await damaged.finish()
        again = {custom_id for part in lost for custom_id in part.custom_ids}
        # Not the held line: its worker writes nothing more to a file that was removed.
        await damaged.ended_well(again=again)
        found = damaged.alarms()
        # Behind a file that was cut off the worker writes on where it was: a hole stays.
        assert {alarm["damage"] for alarm in found} == {"changed" if way == "short" else way}
        assert sum(alarm["lines"] for alarm in found) == len(again)
        assert {alarm["batch_id"] for alarm in found} == {damaged.batch.id}
        assert damaged.server.readiness()["damaged"] == len(found)


@pytest.mark.parametrize(
    "probe",
    ["ranges.checked", "unsettle.before", "unsettle.inside", "unsettle.after"],
)
async def test_a_death_in_the_middle_of_the_repair_repairs_once(tmp_path: Path, probe: str) -> None:
    async with all_but_one_committed(tmp_path, probes=f"{probe}=kill") as damaged:
        one = damaged.ranges()[1]
        damage.flip_a_bit(one)
        await damaged.finish()
        damaged.server.wait_ended()
        damaged.server.start()
        damaged.client = damaged.server.client()
        await damaged.ended_well(again=set(one.custom_ids))


@pytest.mark.parametrize("event", ["cancel", "window"])
async def test_damaged_results_of_a_stopped_batch_are_lines_without_a_result(
    tmp_path: Path, event: str
) -> None:
    settings: dict[str, object] = {"cancel": {"grace_s": 0.0}, "expire": {"grace_s": 0.0}}
    async with all_but_one_committed(tmp_path, settings=settings) as damaged:
        one = damaged.ranges()[1]
        damage.flip_a_bit(one)
        if event == "cancel":
            damaged.client.batches.cancel(damaged.batch.id)
        else:
            expire(damaged)
        ended = wait_for(damaged.client, damaged.batch.id)
        summary = conserved(damaged.client, ended, CONTENT, await damaged.backend.log())
        assert summary.not_run == 1 + len(one.custom_ids)
        assert ended.status == ("cancelled" if event == "cancel" else "expired")
        assert summary.resent == 0
        if event == "cancel":
            receipt: Any = damaged.client.get(f"/batches/{ended.id}/receipt", cast_to=object)
            assert receipt["lines_finished"] == summary.finished + summary.failed


def expire(damaged: Damaged) -> None:
    """Close the window while the server is away."""
    damaged.server.kill_all()
    with closing(sqlite3.connect(damaged.server.data / "batchline.sqlite3")) as database:
        database.execute("UPDATE batch SET expires_at = created_at")
        database.commit()
    damaged.server.start()
    damaged.client = damaged.server.client()
