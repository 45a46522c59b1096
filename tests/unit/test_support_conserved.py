"""Every check of `assert_conserved` is seen to fail on a file that is bad in just that way."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from openai.types import Batch

from tests.support.conserved import Conserved, Unconserved, assert_conserved
from tests.support.inputs import line_id, make_lines
from tests.support.scripted_backend import BackendLog, Event, Kind

USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}


def line(number: int, custom_id: str, response: object, error: object) -> dict[str, Any]:
    identity = f"batch_req_{number:032x}"
    return {"id": identity, "custom_id": custom_id, "response": response, "error": error}


def good(number: int) -> dict[str, Any]:
    body = {"choices": [{"text": f"[[id={line_id(number)}]]yyy"}], "usage": USAGE}
    response = {"status_code": 200, "request_id": "r", "body": body}
    return line(number, line_id(number), response, None)


def refused(number: int) -> dict[str, Any]:
    body = {"error": {"message": "no"}}
    response = {"status_code": 400, "request_id": "r", "body": body}
    return line(number, line_id(number), response, None)


def failed(number: int, code: str) -> dict[str, Any]:
    return line(number, line_id(number), None, {"code": code, "message": "why"})


def event(kind: Kind, number: int, status: int = 0) -> Event:
    return Event(kind=kind, request=0, at=1.0, monotonic_ns=1, id=line_id(number), status=status)


@dataclass
class Case:
    """A cancelled batch of five lines in which everything is right; tests break one thing."""

    input: bytes = field(default_factory=lambda: make_lines(5))
    status: str = "cancelled"
    counts: dict[str, int] = field(
        default_factory=lambda: {"total": 5, "completed": 2, "failed": 2}
    )
    usage: dict[str, Any] = field(
        default_factory=lambda: {
            "input_tokens": 22,
            "output_tokens": 14,
            "total_tokens": 36,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": 0},
        }
    )
    in_progress_at: int | None = 1
    output: list[dict[str, Any]] = field(default_factory=lambda: [good(1), good(0)])
    errors: list[dict[str, Any]] = field(
        default_factory=lambda: [
            refused(2),
            failed(3, "request_timeout"),
            failed(4, "batch_cancelled"),
        ]
    )
    events: list[Event] = field(
        default_factory=lambda: [
            *(event(Kind.ARRIVED, number) for number in (0, 0, 1, 2, 3)),
            *(event(Kind.ANSWERED, number, 200) for number in (0, 1)),
            event(Kind.ANSWERED, 2, 400),
        ]
    )
    output_bytes: bytes | None = None
    error_bytes: bytes | None = None
    output_file_id: str | None = "file-o"
    error_file_id: str | None = "file-e"

    def check(self) -> Conserved:
        batch = Batch.model_validate(
            {
                "id": "batch_1",
                "completion_window": "24h",
                "created_at": 1,
                "endpoint": "/v1/chat/completions",
                "input_file_id": "file-i",
                "object": "batch",
                "status": self.status,
                "in_progress_at": self.in_progress_at,
                "output_file_id": self.output_file_id,
                "error_file_id": self.error_file_id,
                "request_counts": self.counts,
                "usage": self.usage,
            }
        )
        output = written(self.output) if self.output_bytes is None else self.output_bytes
        errors = written(self.errors) if self.error_bytes is None else self.error_bytes
        return assert_conserved(
            self.input,
            batch,
            output if self.output_file_id or self.output_bytes else None,
            errors if self.error_file_id or self.error_bytes else None,
            witness=BackendLog(self.events),
        )


def written(lines: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in lines)


def never_ran(case: Case, status: str) -> None:
    case.status = status
    case.in_progress_at = case.output_file_id = case.error_file_id = None
    case.output, case.errors, case.events = [], [], []
    case.counts = dict.fromkeys(case.counts, 0)
    case.usage.update(input_tokens=0, output_tokens=0, total_tokens=0)


def test_a_batch_that_adds_up_passes_and_is_summed_up() -> None:
    assert Case().check() == Conserved(
        total=5, finished=2, failed=2, cancelled=1, expired=0, resent=1
    )


def test_blank_lines_crlf_and_a_byte_order_mark_are_no_request_lines() -> None:
    case = Case(input=make_lines(5, crlf=True, blank_every=2, bom=True, final_newline=False))
    assert case.check().total == 5


def test_custom_ids_survive_in_every_spelling() -> None:
    case = Case(input=make_lines(5, awkward=True))
    awkward = [json.loads(raw)["custom_id"] for raw in case.input.splitlines()]
    for one in case.output + case.errors:
        one["custom_id"] = awkward[int(one["custom_id"][-7:])]
    assert case.check().total == 5


@pytest.mark.parametrize("status", ["failed", "cancelled", "expired"])
def test_a_batch_that_never_ran_has_neither_files_nor_counts(status: str) -> None:
    case = Case()
    never_ran(case, status)
    assert case.check().finished == 0
    case.counts["total"] = 5
    with pytest.raises(Unconserved, match="total is 5, the files say 0"):
        case.check()


def test_a_failed_batch_with_a_file_is_a_problem() -> None:
    case = Case()
    never_ran(case, "failed")
    case.error_file_id = "file-e"
    case.error_bytes = written([failed(0, "batch_cancelled")])
    with pytest.raises(Unconserved, match="an error file of a batch that never ran"):
        case.check()


BREAKS: dict[str, tuple[Callable[[Case], object], str]] = {
    "a line is lost": (lambda c: c.output.pop(), "lost: no line for 'line-0000000'"),
    "a line is in both files": (lambda c: c.errors.append(refused(0)), "doubled: 2 lines"),
    "a line nobody asked for": (lambda c: c.output.append(good(9)), "invented: a line for"),
    "an id occurs twice": (
        lambda c: c.output[0].update(id=c.output[1]["id"]),
        "the line id batch_req_0+ occurs 2 times",
    ),
    "an id of another form": (lambda c: c.output[0].update(id="batch_req_1"), "id 'batch_req_1'"),
    "a fifth key": (lambda c: c.output[0].update(extra=1), "keys .*'extra'"),
    "a missing key": (lambda c: c.output[0].pop("error"), "output:1: keys"),
    "response and error": (
        lambda c: c.errors[0].update(error={"code": "c", "message": "m"}),
        "exactly one of response and error",
    ),
    "neither": (lambda c: c.errors[1].update(error=None), "exactly one of response and error"),
    "a response of other keys": (lambda c: c.output[0]["response"].update(x=1), "response {"),
    "a body of text": (lambda c: c.output[0]["response"].update(body="no"), "body 'no'"),
    "a status in quotes": (
        lambda c: c.errors[0]["response"].update(status_code="400"),
        "status_code '400'",
    ),
    "an error without message": (lambda c: c.errors[2]["error"].pop("message"), "error {"),
    "a failure among the output": (
        lambda c: c.output.append(c.errors.pop(0)),
        "status 400 in the output file",
    ),
    "a success among the errors": (
        lambda c: c.errors.append(c.output.pop(0)),
        "status 200 in the error file",
    ),
    "a line expired in a cancelled batch": (
        lambda c: c.errors[2]["error"].update(code="batch_expired"),
        "batch_expired in a cancelled batch",
    ),
    "completed with lines not run": (
        lambda c: setattr(c, "status", "completed"),
        r"completed with 2 \+ 2 of 5",
    ),
    "not ended": (lambda c: setattr(c, "status", "cancelling"), "has not ended: cancelling"),
    "total": (lambda c: c.counts.update(total=6), "total is 6, the files say 5"),
    "completed": (lambda c: c.counts.update(completed=3), "completed is 3, the files say 2"),
    "unfinished ones as failed": (lambda c: c.counts.update(failed=3), "failed is 3, .* say 2"),
    "usage": (lambda c: c.usage.update(input_tokens=33), "input_tokens is 33, .* says 22"),
    "a file without an id": (
        lambda c: vars(c).update(output_file_id=None, output_bytes=b"x\n"),
        "output file's id is None but content was given",
    ),
    "an empty file": (lambda c: setattr(c, "output_bytes", b""), "the output file is empty"),
    "no newline at the end": (
        lambda c: setattr(c, "output_bytes", written(c.output)[:-1]),
        "does not end with a newline",
    ),
    "half a line": (
        lambda c: setattr(c, "output_bytes", written(c.output) + b'{"id":\n'),
        "output:3 is not JSON",
    ),
    "a blank line": (
        lambda c: setattr(c, "output_bytes", written(c.output) + b"\n"),
        "output:3 is not JSON",
    ),
    "NaN": (
        lambda c: setattr(c, "output_bytes", written(c.output).replace(b"18", b"NaN")),
        "NaN is not JSON",
    ),
    "a list": (
        lambda c: setattr(c, "output_bytes", written(c.output) + b"[]\n"),
        "output:3 is not an object",
    ),
    "an answer nobody gave": (
        lambda c: c.events.remove(event(Kind.ANSWERED, 1, 200)),
        "the backend never answered b'line-0000001' with 200",
    ),
    "a refusal nobody gave": (
        lambda c: c.errors[0]["response"].update(status_code=404),
        "the backend never answered b'line-0000002' with 404",
    ),
    "swapped answers": (
        lambda c: (
            c.output[0].update(custom_id=line_id(0)),
            c.output[1].update(custom_id=line_id(1)),
        ),
        "swapped: b'line-0000000' got the answer to b'line-0000001'",
    ),
}


@pytest.mark.parametrize("broken", BREAKS)
def test_each_break_is_found(broken: str) -> None:
    case = Case()
    breaking, message = BREAKS[broken]
    breaking(case)
    with pytest.raises(Unconserved, match=message):
        case.check()


def test_many_problems_are_counted_and_some_shown() -> None:
    case = Case(input=make_lines(105))
    with pytest.raises(Unconserved, match=r"101 problems(.|\n)*and 81 more"):
        case.check()


def test_made_lines_have_unique_ids_and_the_markers_asked_for() -> None:
    made = make_lines(3, endpoint="/v1/embeddings", markers=lambda n: f"[[delay={n}]]", start=7)
    lines = [json.loads(raw) for raw in made.splitlines()]
    assert [one["custom_id"] for one in lines] == [line_id(number) for number in (7, 8, 9)]
    assert lines[2]["body"]["input"].startswith("[[id=line-0000009]][[delay=9]]")
    assert {(one["method"], one["url"]) for one in lines} == {("POST", "/v1/embeddings")}
