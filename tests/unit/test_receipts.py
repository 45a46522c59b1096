"""What the receipt of a cancel says of its backends, from what is known of them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any, Final

import pytest

from batchline.domain import ids
from batchline.domain.ids import FileId, ProjectId, WorkerId
from batchline.domain.lifecycle import BatchStatus, Stopping
from batchline.domain.model import Batch, Counts
from batchline.executor.contract import AtGate, CancelBy, Ends, GateReport
from batchline.service import receipts

BATCH: Final = Batch(
    sequence=1,
    id=ids.batch_id(1_750_000_000, hashlib.sha256(b"batch").digest()[: ids.RANDOM_BYTES]),
    project_id=ProjectId("default"),
    endpoint="/v1/chat/completions",
    completion_window="24h",
    input_file_id=FileId("file-1"),
    status=BatchStatus.CANCELLING,
    stopping=Stopping.CANCEL,
    created_at=1,
    expires_at=2,
    in_progress_at=1,
    counts=Counts(total=100, completed=30, failed=10),
)
CLOSE, DRAIN, CALL = CancelBy.CLOSE, CancelBy.DRAIN, CancelBy.CALL


def report(*backends: AtGate) -> GateReport:
    return GateReport(acknowledged_s=0.01, backends=backends, killed=[WorkerId("w")], lets_go_s=1.0)


def gate(cancel: CancelBy, in_flight: int | None = 8, *, stops_on_close: bool = False) -> AtGate:
    return AtGate(backend="b", cancel=cancel, in_flight=in_flight, stops_on_close=stops_on_close)


def whole(one: AtGate, ends: Ends | None = None) -> dict[str, Any]:
    told = {} if ends is None else {"b": ends}
    return receipts.whole(BATCH, report=report(one), ends=told, quiet_s=0.5)


@pytest.mark.parametrize(
    ("one", "ends", "proof", "quiet"),
    [
        (gate(CLOSE), Ends(answered=8, finished_late=7), "answered", True),
        (gate(CLOSE), Ends(answered=7, closed=1), "unproven", True),
        (gate(CLOSE, stops_on_close=True), Ends(answered=7, closed=1), "closed", True),
        (gate(CALL), Ends(answered=3, called=5), "called", True),
        (gate(CALL), Ends(called=7, calls_failed=1), "unproven", True),
        (gate(CALL, stops_on_close=True), Ends(called=7, calls_failed=1), "closed", True),
        (gate(DRAIN), Ends(answered=8), "answered", True),
        (gate(DRAIN), Ends(answered=7, unanswered=1), "unproven", False),
        (gate(CLOSE, None), Ends(closed=3), "unproven", True),
        (gate(CLOSE, None, stops_on_close=True), Ends(), "closed", True),
        (gate(DRAIN, None), Ends(answered=3), "unproven", False),
    ],
)
def test_the_proof_is_the_weakest_of_the_requests(
    one: AtGate, ends: Ends, proof: str, quiet: bool
) -> None:
    receipt = whole(one, ends)
    (backend,) = receipt["backends"]
    assert (backend["proof"], backend["quiet"], receipt["quiet"]) == (proof, quiet, quiet)


def test_what_ran_in_a_worker_that_died_is_counted_by_its_way() -> None:
    ends = Ends(answered=3, finished_late=2)
    for cancel, name in ((CLOSE, "closed"), (CALL, "closed"), (DRAIN, "unanswered")):
        receipt = whole(gate(cancel), ends)
        (backend,) = receipt["backends"]
        assert (backend["answered"], backend["finished_late"], backend[name]) == (3, 2, 5)
        assert (receipt["lines_aborted"], receipt["lines_never_sent"]) == (5, 55)


def test_the_lines_of_a_batch_are_in_three_parts() -> None:
    receipt = whole(gate(CLOSE), Ends(answered=3, closed=5))
    parts = ("lines_finished", "lines_aborted", "lines_never_sent")
    assert [receipt[name] for name in parts] == [40, 5, 55]
    nothing_ran = receipts.whole(BATCH, report=report(), ends={}, quiet_s=0.0)
    assert [nothing_ran[name] for name in parts] == [40, 0, 60]


def test_what_a_killed_worker_had_in_flight_is_unknown_and_not_zero() -> None:
    receipt = whole(gate(CLOSE, None), Ends(closed=3))
    assert receipt["lines_aborted"] is None
    assert receipt["lines_never_sent"] is None
    assert receipt["backends"][0]["closed"] is None


@pytest.mark.parametrize("cancel", CancelBy)
def test_after_a_crash_the_receipt_keeps_what_had_been_told_before(cancel: CancelBy) -> None:
    before = json.loads(json.dumps(receipts.at_gate(report(gate(cancel)))))
    after = receipts.whole(replace(BATCH, receipt=before), report=None, ends={}, quiet_s=3.0)
    assert after["backends"] == [
        {
            "name": "b",
            "cancel": cancel.value,
            "in_flight": 8,
            "finished_late": None,
            "answered": None,
            "closed": None,
            "called": None,
            "calls_failed": None,
            "unanswered": None,
            "quiet": cancel is not DRAIN,
            "proof": "unproven",
        }
    ]
    assert after["lines_aborted"] is None
    assert "acknowledged_ms" not in after
    assert before["workers_killed"] == ["w"]


def test_after_a_crash_before_anything_was_told_nothing_is_made_up() -> None:
    after = receipts.whole(BATCH, report=None, ends={}, quiet_s=3.0)
    assert (after["backends"], after["lines_aborted"], after["quiet"]) == (None, None, None)
    never_ran = replace(BATCH, in_progress_at=None, counts=Counts())
    after = receipts.whole(never_ran, report=None, ends={}, quiet_s=3.0)
    assert (after["backends"], after["lines_aborted"], after["lines_never_sent"]) == ([], 0, 0)


def test_what_is_known_already_is_not_said_again() -> None:
    known = replace(BATCH, receipt={"quiet": False, "quiet_ms": 1.0})
    added = receipts.whole(known, report=report(), ends={}, quiet_s=3.0)
    assert "quiet" not in added
    assert "quiet_ms" not in added
