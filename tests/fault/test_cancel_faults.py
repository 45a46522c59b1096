"""Whatever breaks during a cancel, whichever way the backend is left: the batch is `cancelled`.

Every fault meets every way (`CancelBy`). The grace is short, the cap too, and a line that runs is
never answered: only the fault and the way decide how the cancel ends. The backend is the witness
that nothing of the batch was begun after the 200.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import openai
import pytest

from batchline.executor.contract import CancelBy
from tests.support.cancelling import AT_ONCE, backend_table, deaf_backend, receipt_of
from tests.support.inputs import make_lines
from tests.support.scripted_backend import Answer, BackendControl, Fault, Script, backend_process
from tests.support.server import ServerProcess, conserved, server, submit, wait_for

LINES: Final = 40
CAP_S: Final = 3
LATE_S: Final = 5  # that a busy machine may be; without the cap it would never end
UNTOLD: Final = None  # the worker was killed before it could say what it had in flight
NEVER: Final = Script(answer=Answer(fault=Fault.SILENT))


def told(table: dict[str, object]) -> dict[str, Any]:
    return {"cancel": {"grace_s": 0.2, "cap_s": float(CAP_S)}, "backend": [table]}


@dataclass(frozen=True, slots=True)
class Case:
    """One fault. `probe` makes it happen by itself; else the test does, before the cancel.

    `killed`: the worker is killed for its silence, before the 200; `lost`: it is, after that.
    """

    name: str
    probe: str = ""
    stops_before: bool = False
    killed: bool = False
    lost: bool = False

    def in_flight(self) -> int | None:
        return UNTOLD if self.killed else AT_ONCE

    def ends(self, way: CancelBy) -> dict[str, int | None]:
        """Which count of the receipt has the requests; all are null where nobody told."""
        names = ("answered", "closed", "called", "calls_failed", "unanswered")
        if self.killed:
            return dict.fromkeys(names)
        by_way = {
            CancelBy.CLOSE: "closed",
            CancelBy.DRAIN: "unanswered",
            CancelBy.CALL: "closed" if self.lost else "called",
        }
        return {**dict.fromkeys(names, 0), by_way[way]: AT_ONCE}


CASES: Final = [
    Case("a backend that never answers"),
    Case("a worker that is stopped before it hears of the cancel", stops_before=True, killed=True),
    Case("a message to the worker that is lost", probe="gate.asking=drop", killed=True),
    Case("an acknowledgement that is lost", probe="gate.acknowledging=drop", killed=True),
    Case("a worker that is stopped after it", probe="abort.starting=stop", lost=True),
    Case("a worker that dies after it", probe="abort.starting=kill", lost=True),
]


def ended_in_time(client: openai.OpenAI, batch_id: str, content: bytes) -> None:
    """It is `cancelled`, within the cap by its own instants, and every line is accounted for."""
    ended = wait_for(client, batch_id)
    assert ended.status == "cancelled"
    assert ended.cancelled_at is not None
    assert ended.cancelling_at is not None
    assert ended.cancelled_at - ended.cancelling_at <= CAP_S + LATE_S
    assert conserved(client, ended, content).cancelled == LINES


async def in_flight(backend: BackendControl, running: ServerProcess, content: bytes) -> str:
    """The id of a batch that has all that it may at the backend."""
    batch = submit(running.client(), content)
    await backend.wait_until(min_in_flight=AT_ONCE)
    return batch.id


@pytest.mark.parametrize("way", CancelBy)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_a_cancel_ends_within_its_cap_and_its_receipt_tells_how(
    tmp_path: Path, case: Case, way: CancelBy
) -> None:
    content = make_lines(LINES)
    async with backend_process(NEVER) as backend:
        table = backend_table(backend.base_url, way)
        with server(tmp_path, settings=told(table), probes=case.probe) as running:
            batch_id = await in_flight(backend, running, content)
            if case.stops_before:
                running.signal_workers(signal.SIGSTOP)
            client = running.client()
            client.batches.cancel(batch_id)
            told_at = await backend.caught_up()
            ended_in_time(client, batch_id, content)
            await backend.wait_until(in_flight=0)
            assert (await backend.log()).arrived_after(told_at) == []
            receipt = receipt_of(client, batch_id)
            (one,) = receipt["backends"]
            left_running = way is CancelBy.DRAIN
            assert one["in_flight"] == case.in_flight()
            assert {name: one[name] for name in case.ends(way)} == case.ends(way)
            assert receipt["quiet"] is one["quiet"] is not left_running
            assert one["proof"] == ("called" if one["called"] else "unproven")
            assert len(receipt["workers_killed"]) == case.killed
            aborted = UNTOLD if case.killed else AT_ONCE
            assert receipt["lines_aborted"] == aborted
            assert receipt["lines_never_sent"] == (UNTOLD if case.killed else LINES - AT_ONCE)


@pytest.mark.parametrize("way", CancelBy)
async def test_a_backend_that_never_reads_holds_no_cancel(tmp_path: Path, way: CancelBy) -> None:
    """Not even what it is called with."""
    content = make_lines(LINES, padding=100_000)
    with (
        deaf_backend() as backend,
        server(tmp_path, settings=told(backend_table(backend.base_url, way))) as running,
    ):
        client = running.client()
        batch = submit(client, content)
        await backend.wait_for_connections(AT_ONCE)
        client.batches.cancel(batch.id)
        ended_in_time(client, batch.id, content)
        (one,) = receipt_of(client, batch.id)["backends"]
        left = {CancelBy.CALL: "calls_failed", CancelBy.DRAIN: "unanswered"}.get(way, "closed")
        assert (one[left], one["quiet"]) == (AT_ONCE, way is not CancelBy.DRAIN)


# Where the server dies, with its worker's word where it had given it. Each phase meets one way.
DEATHS: Final[Sequence[tuple[str, CancelBy]]] = [
    ("cancel.after=kill", CancelBy.DRAIN),
    ("gate.closed=kill_both", CancelBy.CALL),
    ("abort.starting=kill_parent", CancelBy.CLOSE),
    ("abort.starting=kill_parent", CancelBy.DRAIN),
    ("abort.starting=kill_both", CancelBy.CALL),
    ("never_run.written=kill", CancelBy.CLOSE),
    ("finalize.inside=kill", CancelBy.CALL),
]


@pytest.mark.parametrize(("probe", "way"), DEATHS)
async def test_a_server_that_dies_in_a_cancel_ends_it_when_it_is_back(
    tmp_path: Path, probe: str, way: CancelBy
) -> None:
    content = make_lines(LINES)
    async with backend_process(NEVER) as backend:
        table = backend_table(backend.base_url, way)
        with server(tmp_path, settings=told(table), probes=probe) as running:
            batch_id = await in_flight(backend, running, content)
            answered = True
            try:
                running.client().batches.cancel(batch_id)
            except openai.APIConnectionError:
                answered = False
            died_at = await backend.caught_up()
            running.wait_ended()
            running.start()
            client = running.client()
            ended = wait_for(client, batch_id)
            assert ended.status == "cancelled"
            assert conserved(client, ended, content).cancelled == LINES
            await backend.wait_until(in_flight=0)
            assert (await backend.log()).arrived_after(died_at) == []
            receipt = receipt_of(client, batch_id)
            if probe.startswith("abort."):
                # What its worker had told it is kept; what came of that, nobody is left to tell.
                assert answered
                (one,) = receipt["backends"]
                assert (one["in_flight"], one["closed"]) == (AT_ONCE, None)
                assert (one["quiet"], one["proof"]) == (way is not CancelBy.DRAIN, "unproven")
                assert receipt["lines_aborted"] is UNTOLD
            elif not probe.startswith("never_run") and not probe.startswith("finalize"):
                assert not answered
                assert receipt["backends"] is receipt["quiet"] is UNTOLD
            else:
                (one,) = receipt["backends"]
                assert one["called" if way is CancelBy.CALL else "closed"] == AT_ONCE
