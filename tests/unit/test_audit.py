"""The audit finds each kind of defect, in files that are sound but for it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from batchline.cli.audit.auditing import AuditJob, audit
from batchline.cli.audit.report import FILES, Report
from batchline.cli.outcome import CommandFailed
from batchline.service import duplicates
from tests.support.inputs import AWKWARD, line_id, make_lines

Line = dict[str, Any]


def finished(number: int, *, custom_id: str | None = None, status: int = 200) -> Line:
    body = {"object": "x", "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}}
    return {
        "id": f"batch_req_{number:032x}",
        "custom_id": custom_id or line_id(number),
        "response": {"status_code": status, "request_id": f"r{number}", "body": body},
        "error": None,
    }


def not_run(number: int, code: str = "batch_cancelled") -> Line:
    return {
        "id": f"batch_req_{number:032x}",
        "custom_id": line_id(number),
        "response": None,
        "error": {"code": code, "message": "not run"},
    }


class Ended:
    """A batch of ten lines that was cancelled: six finished, two failed, two never ran."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.input = make_lines(10, blank_every=3, bom=True)
        self.output: list[Line] = [finished(number) for number in range(6)]
        self.errors: list[Line] = [finished(number, status=500) for number in (6, 7)]
        self.errors += [not_run(number) for number in (8, 9)]
        self.tail = b""  # behind the output's lines
        self.batch: Line = {
            "status": "cancelled",
            "in_progress_at": 1,
            "request_counts": {"total": 10, "completed": 6, "failed": 2},
            "usage": {"input_tokens": 18, "output_tokens": 24, "total_tokens": 42},
            "output_file_id": "file-1",
            "error_file_id": "file-2",
        }

    def job(self, *, batch: bool = True, show: int = 20) -> AuditJob:
        """The job on files as they are now; a file without a byte does not exist."""
        content = {
            "input": self.input,
            "output": as_jsonl(self.output) + self.tail,
            "errors": as_jsonl(self.errors),
        }
        for name, data in content.items():
            (self.folder / name).write_bytes(data)
        return AuditJob(
            input=self.folder / "input",
            output=self.folder / "output" if content["output"] else None,
            errors=self.folder / "errors" if content["errors"] else None,
            batch=self.batch if batch else None,
            show=show,
        )

    def audit(self, *, batch: bool = True, show: int = 20) -> Report:
        return audit(self.job(batch=batch, show=show))


def as_jsonl(lines: list[Line]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


@pytest.fixture
def ended(tmp_path: Path) -> Ended:
    return Ended(tmp_path)


@pytest.mark.parametrize("batch", [True, False])
def test_sound_files_are_sound(ended: Ended, batch: bool) -> None:
    report = ended.audit(batch=batch)
    assert report.sound
    assert report.said().endswith("sound: every line of the input once, and the counts agree")
    assert report.lines == {
        "succeeded": 6,
        "failed": 2,
        "batch_cancelled": 2,
        "batch_expired": 0,
    }
    facts = report.files["output"]
    data = (ended.folder / "output").read_bytes()
    assert (facts.lines, facts.bytes) == (6, len(data))
    assert facts.sha256 == hashlib.sha256(data).hexdigest()


def test_an_input_that_was_refused_has_no_files_and_is_sound(ended: Ended) -> None:
    ended.output, ended.errors = [], []
    ended.batch |= {
        "status": "failed",
        "in_progress_at": None,
        "request_counts": {"total": 0, "completed": 0, "failed": 0},
        "usage": {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0},
        "output_file_id": None,
        "error_file_id": None,
    }
    assert ended.audit().sound


def test_lines_that_were_left_out_are_accounted_for(ended: Ended) -> None:
    """One without a custom_id, and one that repeats another's."""
    ended.input += b'{"no":"id"}\n' + make_lines(1)
    left_out = {"code": "invalid_request", "message": "why", "param": None, "line": 14}
    for number, custom_id in ((20, None), (21, line_id(0))):
        ended.errors.append({**not_run(number), "custom_id": custom_id, "error": left_out})
    ended.batch["request_counts"] = {"total": 12, "completed": 6, "failed": 4}
    assert ended.audit().sound


# -- defects ---------------------------------------------------------------------------------------


def lose(ended: Ended) -> None:
    del ended.errors[3]


def double(ended: Ended) -> None:
    ended.output.append({**finished(2), "id": "batch_req_" + "f" * 32})


def double_in_the_other_file(ended: Ended) -> None:
    ended.errors.append({**not_run(2), "id": "batch_req_" + "f" * 32})


def bring_a_foreign_one(ended: Ended) -> None:
    ended.output.append(finished(99, custom_id="foreign" + AWKWARD))


def swap_a_name(ended: Ended) -> None:
    ended.output[1]["custom_id"] = "line-000000x"


def repeat_an_id(ended: Ended) -> None:
    ended.errors[0]["id"] = ended.output[4]["id"]


def put_a_failure_into_the_output(ended: Ended) -> None:
    ended.output[3]["response"]["status_code"] = 404


def put_a_success_into_the_errors(ended: Ended) -> None:
    ended.errors[0]["response"]["status_code"] = 200


def give_another_reason(ended: Ended) -> None:
    ended.errors[2]["error"]["code"] = "batch_expired"


def leave_a_key_out(ended: Ended) -> None:
    del ended.errors[0]["error"]


def add_a_key(ended: Ended) -> None:
    ended.errors[0]["more"] = 1


def have_both(ended: Ended) -> None:
    ended.errors[0]["error"] = {"code": "c", "message": "m"}


def have_neither(ended: Ended) -> None:
    ended.errors[0]["response"] = None


def have_a_text_for_a_body(ended: Ended) -> None:
    ended.errors[0]["response"]["body"] = "text"


def have_a_text_for_a_status(ended: Ended) -> None:
    ended.errors[0]["response"]["status_code"] = "500"


def cut_the_end(ended: Ended) -> None:
    ended.tail = json.dumps(ended.output.pop()).encode()


def write_rubbish(ended: Ended) -> None:
    ended.tail = b"\xff\xfe\n"


def count_one_more(ended: Ended) -> None:
    ended.batch["request_counts"]["completed"] = 7


def count_fewer(ended: Ended) -> None:
    ended.batch["request_counts"]["total"] = 9


def count_failures_wrong(ended: Ended) -> None:
    ended.batch["request_counts"]["failed"] = 4


def tell_other_usage(ended: Ended) -> None:
    ended.batch["usage"]["total_tokens"] = 43


def forget_a_file(ended: Ended) -> None:
    ended.batch["error_file_id"] = None


def promise_a_file(ended: Ended) -> None:
    ended.errors = []


Named = tuple[str, int, str | None]

MALFORMED = ({"malformed": 1, "counts": 1}, ("errors", 1, line_id(6)))
COUNTS: tuple[dict[str, int], Named] = ({"counts": 1}, ("batch", 0, None))


@pytest.mark.parametrize(
    ("forge", "problems", "named"),
    [
        (lose, {"lost": 1}, ("input", 13, line_id(9))),
        (double, {"doubled": 1, "counts": 1, "usage": 3}, ("output", 7, line_id(2))),
        (double_in_the_other_file, {"doubled": 1}, ("errors", 5, line_id(2))),
        (
            bring_a_foreign_one,
            {"foreign": 1, "counts": 1, "usage": 3},
            ("output", 7, "foreign" + AWKWARD),
        ),
        (swap_a_name, {"foreign": 1, "lost": 1}, ("input", 2, line_id(1))),
        (repeat_an_id, {"repeated_id": 1}, ("errors", 1, line_id(6))),
        (put_a_failure_into_the_output, {"misplaced": 1}, ("output", 4, line_id(3))),
        (put_a_success_into_the_errors, {"misplaced": 1}, ("errors", 1, line_id(6))),
        (give_another_reason, {"misplaced": 1}, ("errors", 3, line_id(8))),
        (leave_a_key_out, *MALFORMED),
        (add_a_key, *MALFORMED),
        (have_both, *MALFORMED),
        (have_neither, *MALFORMED),
        (have_a_text_for_a_body, *MALFORMED),
        (have_a_text_for_a_status, *MALFORMED),
        (cut_the_end, {"malformed": 1}, ("output", 6, line_id(5))),
        (write_rubbish, {"malformed": 1}, ("output", 7, None)),
        (count_one_more, *COUNTS),
        (count_fewer, *COUNTS),
        (count_failures_wrong, *COUNTS),
        (tell_other_usage, {"usage": 1}, ("batch", 0, None)),
        (forget_a_file, {"files": 1}, ("errors", 0, None)),
        (promise_a_file, {"files": 1, "lost": 4, "counts": 1}, ("input", 9, line_id(6))),
    ],
)
def test_a_defect_is_found_and_named(
    ended: Ended, forge: Callable[[Ended], None], problems: dict[str, int], named: Named
) -> None:
    forge(ended)
    report = ended.audit()
    assert report.problems == problems
    found = [(one.file, one.line, one.custom_id) for one in report.first]
    assert named in found
    assert found == sorted(found, key=lambda one: (FILES.index(one[0]), one[1]))
    told = json.loads(report.as_json())
    assert told["sound"] is False
    assert len(told["first_problems"]) == sum(problems.values())
    assert report.said().splitlines()[-1].startswith(str(sum(problems.values())))


def test_of_many_problems_the_first_are_named_and_all_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With spills and parts as small as those of ten million lines are many."""
    monkeypatch.setattr(duplicates, "SPILL_IDS", 64)
    monkeypatch.setattr(duplicates, "_PARTITION_IDS", 64)
    count = 3_000
    ended = Ended(tmp_path)
    ended.input = make_lines(count)
    ended.output = [finished(number) for number in range(0, count, 2)]
    ended.errors = [finished(number, status=400) for number in (7, 7, 9, 5_000)]
    report = ended.audit(batch=False, show=3)
    assert report.problems == {"lost": 1_498, "doubled": 1, "foreign": 1, "repeated_id": 1}
    assert [(one.line, one.custom_id) for one in report.first] == [
        (2, line_id(1)),
        (4, line_id(3)),
        (6, line_id(5)),
    ]
    assert report.said().splitlines()[-2] == "and 1498 more"


def test_a_clash_of_hashes_is_no_problem(ended: Ended, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes are compared; where those of ids are equal, the lines are looked at."""
    monkeypatch.setattr(duplicates, "hash", lambda text: int(text[-1], 16) % 2, raising=False)
    assert ended.audit().sound


def test_a_file_that_cannot_be_read_is_said(ended: Ended) -> None:
    job = ended.job()
    job.input.unlink()
    with pytest.raises(CommandFailed, match="No such file"):
        audit(job)
