"""Every backend's own way to end a running request, with the backend as the witness."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from batchline.executor.contract import CancelBy
from tests.support.cancelling import AT_ONCE, NO_COUNTS, backend_table, receipt_of
from tests.support.inputs import line_id, make_lines
from tests.support.scripted_backend import (
    Answer,
    BackendControl,
    BackendLog,
    Fault,
    Kind,
    Script,
    backend_process,
)
from tests.support.server import conserved, server, submit, wait_for

HELD = Script(answer=Answer(hold=True))
LINES = 60


def settings(*backends: dict[str, object], grace_s: float = 0.0, **more: Any) -> dict[str, Any]:
    return {"cancel": {"grace_s": grace_s}, "backend": list(backends), **more}


def order_of(log: BackendLog) -> dict[str, list[Kind]]:
    """What happened to each request after it came, by the id that it can be called off by."""
    ids = {event.request: event.abort_id for event in log.arrivals}
    seen: dict[str, list[Kind]] = {}
    for event in log.of(Kind.ANSWERED, Kind.DROPPED, Kind.ABORTED, Kind.CALLED_OFF):
        seen.setdefault(event.abort_id or ids[event.request] or "", []).append(event.kind)
    return seen


@pytest.mark.rule("X1")
async def test_each_backend_of_one_batch_is_left_in_its_own_way(tmp_path: Path) -> None:
    content = make_lines(LINES)
    async with (
        backend_process(HELD) as closing,
        backend_process(HELD) as draining,
        backend_process(HELD) as called,
    ):
        backends = [
            backend_table(closing.base_url, CancelBy.CLOSE, stops_on_close=True),
            backend_table(draining.base_url, CancelBy.DRAIN),
            backend_table(called.base_url, CancelBy.CALL),
        ]
        with server(tmp_path, settings=settings(*backends, grace_s=0.1)) as running:
            client = running.client()
            batch = submit(client, content)
            for backend in (closing, draining, called):
                await backend.wait_until(min_held=AT_ONCE)
            client.batches.cancel(batch.id)
            # The two others are through, so that the grace is over for all; the third still runs.
            assert (await closing.wait_until(in_flight=0)).aborted == AT_ONCE
            assert (await called.wait_until(in_flight=0, min_called_off=AT_ONCE)).aborted == 0
            assert client.batches.retrieve(batch.id).status == "cancelling"
            assert await draining.stop_holding() == AT_ONCE
            ended = wait_for(client, batch.id)
            assert ended.status == "cancelled"
            assert (await draining.stats()).aborted == 0
            # What an engine answers when it aborts is no result.
            summary = conserved(client, ended, content, await draining.log())
            assert (summary.finished, summary.cancelled) == (AT_ONCE, LINES - AT_ONCE)
            calls = order_of(await called.log())
            assert list(calls.values()) == [[Kind.CALLED_OFF, Kind.ANSWERED]] * AT_ONCE
            receipt = receipt_of(client, batch.id)
            assert receipt["quiet"] is True
            assert receipt["lines_aborted"] == 2 * AT_ONCE
            ran = {**NO_COUNTS, "in_flight": AT_ONCE, "quiet": True}
            ends = {"answered": AT_ONCE, "finished_late": AT_ONCE}
            assert receipt["backends"] == [
                {**ran, "name": "call", "cancel": "call", "called": AT_ONCE, "proof": "called"},
                {**ran, "name": "close", "cancel": "close", "closed": AT_ONCE, "proof": "closed"},
                {**ran, "name": "drain", "cancel": "drain", **ends, "proof": "answered"},
            ]


async def cancelled_receipt(
    tmp_path: Path, backend: BackendControl, table: dict[str, object], **cancel: float
) -> dict[str, Any]:
    """The one backend's part of the receipt of a cancel with everything in flight there."""
    content = make_lines(LINES)
    told = settings(table)
    told["cancel"] |= cancel
    with server(tmp_path, settings=told) as running:
        client = running.client()
        batch = submit(client, content)
        await backend.wait_until(min_in_flight=AT_ONCE)
        workers = running.workers()
        client.batches.cancel(batch.id)
        ended = wait_for(client, batch.id)
        assert ended.status == "cancelled"
        assert conserved(client, ended, content).cancelled == LINES
        assert running.workers() == workers  # other batches may have requests there
        receipt = receipt_of(client, batch.id)
        (one,) = receipt["backends"]
        assert receipt["quiet"] is one["quiet"]
        assert isinstance(one, dict)
        return one


async def test_a_closed_connection_proves_nothing_of_a_backend_that_nobody_has_probed(
    tmp_path: Path,
) -> None:
    async with backend_process(HELD) as backend:
        one = await cancelled_receipt(
            tmp_path, backend, backend_table(backend.base_url, CancelBy.CLOSE)
        )
        assert (one["closed"], one["quiet"], one["proof"]) == (AT_ONCE, True, "unproven")


async def test_a_drained_backend_is_left_at_the_cap_and_the_receipt_names_it(
    tmp_path: Path,
) -> None:
    async with backend_process(Script(answer=Answer(fault=Fault.SILENT))) as backend:
        table = backend_table(backend.base_url, CancelBy.DRAIN, stops_on_close=True)
        one = await cancelled_receipt(tmp_path, backend, table, cap_s=1.0)
        assert (one["unanswered"], one["quiet"], one["proof"]) == (AT_ONCE, False, "closed")
        assert (await backend.stats()).aborted == AT_ONCE


@pytest.mark.parametrize(
    "answer", [Answer(status=404), Answer(fault=Fault.SILENT)], ids=["refused", "unanswered"]
)
async def test_a_call_that_fails_is_counted_and_the_connection_is_closed_after_it(
    tmp_path: Path, answer: Answer
) -> None:
    script = Script(answer=Answer(hold=True), abort_answer=answer)
    async with backend_process(script) as backend:
        table = backend_table(backend.base_url, CancelBy.CALL)
        one = await cancelled_receipt(tmp_path, backend, table, cap_s=1.5)
        assert (one["called"], one["calls_failed"], one["closed"]) == (0, AT_ONCE, 0)
        assert (one["quiet"], one["proof"]) == (True, "unproven")
        calls = order_of(await backend.log())
        assert list(calls.values()) == [[Kind.CALLED_OFF, Kind.ABORTED]] * AT_ONCE


async def test_a_grace_past_the_cap_leaves_time_for_calls(tmp_path: Path) -> None:
    async with backend_process(HELD) as backend:
        table = backend_table(backend.base_url, CancelBy.CALL)
        one = await cancelled_receipt(tmp_path, backend, table, grace_s=600.0, cap_s=1.5)
        assert (one["called"], one["proof"]) == (AT_ONCE, "called")


@pytest.mark.parametrize("call", [{"id_header": "X-Request-Id"}, {}], ids=["header", "key"])
async def test_a_call_names_what_the_request_was_sent_with(
    tmp_path: Path, call: dict[str, str]
) -> None:
    async with backend_process(HELD) as backend:
        table = backend_table(
            backend.base_url, CancelBy.CALL, abort_call={"path": "/abort_request", **call}
        )
        one = await cancelled_receipt(tmp_path, backend, table)
        assert one["called"] == AT_ONCE
        arrived = {
            event.abort_id: event.idempotency_key for event in (await backend.log()).arrivals
        }
        assert len(arrived) == AT_ONCE
        assert all((given == key) is (not call) for given, key in arrived.items())


async def test_a_line_with_an_id_of_its_own_is_sent_as_it_is_and_closed(tmp_path: Path) -> None:
    """What the engine would know it by is the line's to say, and not ours to guess."""
    content = make_lines(AT_ONCE).replace(b'"model":', b'"rid": "mine", "model":')
    async with backend_process(HELD) as backend:
        told = settings(backend_table(backend.base_url, CancelBy.CALL))
        with server(tmp_path, settings=told) as running:
            client = running.client()
            batch = submit(client, content)
            await backend.wait_until(min_held=AT_ONCE)
            client.batches.cancel(batch.id)
            ended = wait_for(client, batch.id)
            log = await backend.log()
            assert conserved(client, ended, content, log).cancelled == AT_ONCE
            assert {event.abort_id for event in log.arrivals} == {"mine"}
            assert log.of(Kind.CALLED_OFF) == []
            (one,) = receipt_of(client, batch.id)["backends"]
            assert (one["calls_failed"], one["proof"]) == (AT_ONCE, "unproven")


async def test_an_attempt_is_never_called_off_by_the_id_of_an_earlier_one(tmp_path: Path) -> None:
    """That one may still run, whatever became of its connection."""
    answers = (Answer(fault=Fault.RESET), Answer(hold=True))
    script = Script(by_id={line_id(number): answers for number in range(AT_ONCE)})
    content = make_lines(AT_ONCE)
    async with backend_process(script) as backend:
        table = backend_table(backend.base_url, CancelBy.CALL)
        told = settings(table, retry={"base_s": 0.01})
        with server(tmp_path, settings=told) as running:
            client = running.client()
            batch = submit(client, content)
            await backend.wait_until(min_held=AT_ONCE)
            client.batches.cancel(batch.id)
            wait_for(client, batch.id)
            log = await backend.log()
            assert len({event.idempotency_key for event in log.arrivals}) == AT_ONCE
            second = {event.abort_id for event in log.arrivals if event.attempt == 2}
            assert len({event.abort_id for event in log.arrivals}) == 2 * AT_ONCE
            assert {event.abort_id for event in log.of(Kind.CALLED_OFF)} == second


async def test_a_closed_window_ends_requests_in_the_backends_way_too(tmp_path: Path) -> None:
    content = make_lines(LINES)
    async with backend_process(HELD) as draining, backend_process(HELD) as called:
        backends = [
            backend_table(draining.base_url, CancelBy.DRAIN),
            backend_table(called.base_url, CancelBy.CALL),
        ]
        told = settings(*backends, windows=["6s"], expire={"grace_s": 0.0})
        with server(tmp_path, settings=told) as running:
            client = running.client()
            batch = submit(client, content, window="6s")
            for backend in (draining, called):
                await backend.wait_until(min_held=AT_ONCE)
            await called.wait_until(in_flight=0, min_called_off=AT_ONCE)
            assert client.batches.retrieve(batch.id).status == "finalizing"
            await draining.stop_holding()
            ended = wait_for(client, batch.id)
            assert ended.status == "expired"
            summary = conserved(client, ended, content, await draining.log())
            assert (summary.finished, summary.expired) == (AT_ONCE, LINES - AT_ONCE)
            assert (await draining.stats()).aborted == 0


async def test_a_terminated_server_waits_for_no_backend_longer_than_its_grace(
    tmp_path: Path,
) -> None:
    """A drained one is closed, one that is called is called."""
    content = make_lines(LINES)
    async with backend_process(HELD) as draining, backend_process(HELD) as called:
        backends = [
            backend_table(draining.base_url, CancelBy.DRAIN),
            backend_table(called.base_url, CancelBy.CALL),
        ]
        told = settings(*backends, shutdown={"grace_s": 0.2})
        with server(tmp_path, settings=told) as running:
            batch = submit(running.client(), content)
            for backend in (draining, called):
                await backend.wait_until(min_held=AT_ONCE)
            began = time.monotonic()
            assert running.terminate() == 0
            assert time.monotonic() - began >= 0.2
            assert (await draining.wait_until(in_flight=0)).aborted == AT_ONCE
            assert (await called.wait_until(in_flight=0)).aborted == 0
            calls = order_of(await called.log())
            assert list(calls.values()) == [[Kind.CALLED_OFF, Kind.ANSWERED]] * AT_ONCE
            for backend in (draining, called):
                await backend.stop_holding()
            running.start()
            ended = wait_for(running.client(), batch.id)
            assert conserved(running.client(), ended, content).finished == LINES
