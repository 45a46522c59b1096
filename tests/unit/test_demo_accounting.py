"""The demo's bookkeeping: good files add up, and each way of not adding up is found."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from batchline.cli.demo.accounting import (
    ARRIVAL_STAMP_S,
    Account,
    CancelReceipt,
    Counts,
    Mismatch,
    Seen,
    settle_account,
    settle_cancel,
)

INPUT = b"".join(b'{"custom_id": "%d", "body": {}}\n' % n for n in range(6))


def answered(custom_id: object, status: int = 200) -> dict[str, object]:
    response = {"status_code": status, "request_id": "r", "body": {}}
    return {"id": f"i{custom_id}", "custom_id": custom_id, "response": response, "error": None}


def stopped(custom_id: object, code: str = "batch_cancelled") -> dict[str, object]:
    error = {"code": code, "message": "m"}
    return {"id": f"i{custom_id}", "custom_id": custom_id, "response": None, "error": error}


def jsonl(*lines: dict[str, object]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


OUTPUT = (answered("3"), answered("0"))
ERRORS = (answered("1", 400), stopped("2", "request_timeout"), stopped("4"), stopped("5"))
COUNTS = Counts(total=6, completed=2, failed=2)


def settle(
    output: bytes | None = jsonl(*OUTPUT),
    errors: bytes | None = jsonl(*ERRORS),
    counts: Counts = COUNTS,
    *,
    lines: bytes = INPUT,
) -> Account:
    return settle_account(input_file=lines, output_file=output, error_file=errors, counts=counts)


def test_every_line_is_finished_failed_or_unfinished() -> None:
    assert settle() == Account(finished=2, failed=2, unfinished=2)


def test_a_batch_without_an_error_file_finished_every_line() -> None:
    output = jsonl(*(answered(str(n)) for n in range(6)))
    counts = Counts(total=6, completed=6, failed=0)
    assert settle(output, None, counts) == Account(finished=6, failed=0, unfinished=0)


def test_a_batch_without_an_output_file_finished_none() -> None:
    errors = jsonl(*(stopped(str(n)) for n in range(6)))
    counts = Counts(total=6, completed=0, failed=0)
    assert settle(None, errors, counts) == Account(finished=0, failed=0, unfinished=6)


@pytest.mark.parametrize(
    ("output", "errors", "complaint"),
    [
        (jsonl(OUTPUT[0]), jsonl(*ERRORS), r"1 input lines have no result \(first: '0'\)"),
        (jsonl(*OUTPUT, answered("7")), jsonl(*ERRORS), r"1 results .* \(first: '7'\)"),
        (jsonl(*OUTPUT, OUTPUT[0]), jsonl(*ERRORS), r"1 results .* \(first: '3'\)"),
        (jsonl(*OUTPUT), jsonl(*ERRORS, stopped("0")), r"1 results .* \(first: '0'\)"),
        (jsonl(OUTPUT[0], answered("0", 404)), jsonl(*ERRORS), "output file: line '0'"),
        (jsonl(OUTPUT[0], stopped("0")), jsonl(*ERRORS), "output file: line '0'"),
        (
            jsonl(OUTPUT[0], answered("0") | {"error": {"code": "x"}}),
            jsonl(*ERRORS),
            "output file: line '0'",
        ),
        (jsonl(OUTPUT[0]), jsonl(*ERRORS, answered("0")), "error file: line '0'"),
        (
            jsonl(OUTPUT[0]),
            jsonl(*ERRORS, answered("0", 400) | {"error": {"code": "x"}}),
            "error file: line '0'",
        ),
        (
            jsonl(OUTPUT[0]),
            jsonl(*ERRORS, {"custom_id": "0", "response": None, "error": None}),
            "error file: line '0'",
        ),
        (jsonl(OUTPUT[0], {"custom_id": "0"}), jsonl(*ERRORS), "output file, line 2"),
        (jsonl(*OUTPUT) + b"\n", jsonl(*ERRORS), "output file, line 3"),
        (b"", jsonl(*ERRORS), "the output file exists but has no line"),
        (jsonl(*OUTPUT), b"", "the error file exists but has no line"),
    ],
)
def test_files_that_do_not_account_for_every_line_once_are_refused(
    output: bytes, errors: bytes, complaint: str
) -> None:
    with pytest.raises(Mismatch, match=complaint):
        settle(output, errors)


@pytest.mark.parametrize("name", ["total", "completed", "failed"])
def test_counts_other_than_the_files_are_refused(name: str) -> None:
    changed = {name: getattr(COUNTS, name) + 1}
    with pytest.raises(Mismatch, match="the batch object says"):
        settle(counts=replace(COUNTS, **changed))


ACCOUNT = Account(finished=30, failed=1, unfinished=69)
SEEN = Seen(received=40, answered=33, aborted=7, last_arrival_at=99.995, quiet_at=100.25)


def cancel(seen: Seen) -> CancelReceipt:
    return settle_cancel(ACCOUNT, seen, cancelled_at=100.0, acknowledged_at=100.01)


def test_lines_without_a_result_were_aborted_if_they_were_sent() -> None:
    receipt = cancel(SEEN)
    assert (receipt.finished, receipt.failed) == (30, 1)
    # Two answers were given and lost on their way: aborted all the same.
    assert (receipt.aborted, receipt.never_sent) == (9, 60)
    assert receipt.acknowledged_ms == pytest.approx(10.0)
    assert receipt.last_arrival_ms == pytest.approx(-5.0)
    assert receipt.quiet_ms == pytest.approx(250.0)


def test_a_backend_that_was_quiet_before_the_cancel_took_no_time() -> None:
    assert cancel(replace(SEEN, quiet_at=99.0)).quiet_ms == 0.0


@pytest.mark.parametrize(
    ("seen", "complaint"),
    [
        (replace(SEEN, answered=32), "not quiet"),
        (replace(SEEN, answered=30, aborted=10), "31 lines have results"),
        (replace(SEEN, received=101, answered=94), "received 101 requests"),
        (
            replace(SEEN, last_arrival_at=100.01 + ARRIVAL_STAMP_S + 0.001),
            "arrived 101 ms after the cancel was acknowledged",
        ),
    ],
)
def test_a_backend_that_saw_something_else_is_a_mismatch(seen: Seen, complaint: str) -> None:
    with pytest.raises(Mismatch, match=complaint):
        cancel(seen)
