"""Files of which the good lines run and the bad ones become error lines: X4."""

from __future__ import annotations

import errno
import json
import tempfile
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchline.domain import ids, plan
from batchline.domain.errors import StorageFull
from batchline.domain.ids import BatchId
from batchline.domain.model import Endpoint, LineProblem, PlannedShard
from batchline.domain.plan import PlanEntry
from batchline.service import duplicates, plans
from batchline.service.skipped import SkipSettings
from batchline.service.validation import ValidationJob, ValidationResult, validate
from tests.support import validating
from tests.support.inputs import MODEL

BATCH = BatchId("batch_0123456789abcdef0123456789abcdef")
MIB = 1024 * 1024


def line(custom_id: str, *, model: str = MODEL, url: str = Endpoint.CHAT_COMPLETIONS) -> bytes:
    body = {"model": model, "messages": [], "input": "x"}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body}).encode()


def job_for(folder: Path, *lines: bytes, **changes: Any) -> ValidationJob:
    skip = SkipSettings(batch_id=BATCH, path=str(folder / "skipped"))
    content = b"".join(one + b"\n" for one in lines)
    return validating.job_for(folder, content, **{"skip": skip, **changes})


def planned(folder: Path) -> list[PlanEntry]:
    raw = (folder / "plan").read_bytes()
    plan.check_header(raw)
    return list(plan.unpack(raw[plan.HEADER_BYTES :]))


def error_lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(raw) for raw in (folder / "skipped").read_bytes().splitlines()]


def told(folder: Path) -> list[tuple[int, str | None, str, str | None]]:
    """Line, custom_id, code and param of each error line."""
    return [
        (one["error"]["line"], one["custom_id"], one["error"]["code"], one["error"]["param"])
        for one in error_lines(folder)
    ]


def test_good_lines_are_planned_and_each_bad_one_has_an_error_line(tmp_path: Path) -> None:
    bad = [b"{", b'{"custom_id":"b"}', line("c", url="/v1/embeddings"), b"7"]
    job = job_for(tmp_path, line("a"), *bad, b"", line("d"))
    result = validate(job)
    assert (result.problems, result.lines, result.skipped, result.model) == ((), 2, 4, MODEL)
    assert list(result.shards) == [PlannedShard(first_entry=0, entries=2, model=MODEL)]
    assert [entry.line_number for entry in planned(tmp_path)] == [1, 7]
    assert told(tmp_path) == [
        (2, None, "invalid_json_line", None),
        (3, "b", "missing_required_parameter", "method"),
        (4, "c", "invalid_url", "url"),
        (5, None, "invalid_request", None),
    ]
    # The problems are those for which the file would be refused.
    strict = validate(replace(job, skip=None))
    assert list(result.skipped_problems) == strict.problems
    assert error_lines(tmp_path)[2] == {
        "id": ids.line_id(BATCH, 4),
        "custom_id": "c",
        "response": None,
        "error": {
            "code": "invalid_url",
            "message": "The URL provided for this request does not match the batch endpoint.",
            "param": "url",
            "line": 4,
        },
    }


def test_a_file_without_a_bad_line_leaves_no_error_lines(tmp_path: Path) -> None:
    result = validate(job_for(tmp_path, line("a"), line("b")))
    assert (result.lines, result.skipped, result.skipped_problems) == (2, 0, ())
    assert not (tmp_path / "skipped").exists()


def test_the_first_line_of_an_id_runs_and_its_repetitions_do_not(tmp_path: Path) -> None:
    result = validate(job_for(tmp_path, *[line(name) for name in "abacbab"]))
    assert [entry.line_number for entry in planned(tmp_path)] == [1, 2, 4]
    assert (result.lines, result.skipped) == (3, 4)
    assert told(tmp_path) == [
        (number, name, "duplicate_custom_id", "custom_id")
        for number, name in [(3, "a"), (5, "b"), (6, "a"), (7, "b")]
    ]


def test_the_id_of_a_bad_line_is_free_for_a_good_one(tmp_path: Path) -> None:
    result = validate(job_for(tmp_path, line("a", url="/v1/x"), line("a"), line("a")))
    assert [entry.line_number for entry in planned(tmp_path)] == [2]
    assert [one[2] for one in told(tmp_path)] == ["invalid_url", "duplicate_custom_id"]
    assert result.skipped == 2


def test_ids_of_one_hash_are_not_repetitions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates, "hash", lambda _: 7, raising=False)
    result = validate(job_for(tmp_path, line("a"), line("b"), line("a")))
    assert (result.lines, result.skipped) == (2, 1)


def test_a_line_with_another_model_than_the_first_good_one_is_left_out(tmp_path: Path) -> None:
    lines = [line("a", model="none"), line("b"), line("c", model="other"), line("d")]
    result = validate(job_for(tmp_path, *lines, known_models=[MODEL, "other"]))
    assert (result.model, result.lines) == (MODEL, 2)
    assert [one[:3] for one in told(tmp_path)] == [
        (1, "a", "model_not_found"),
        (3, "c", "mismatched_model"),
    ]


def test_models_of_which_only_repetitions_are_left_have_no_shard(tmp_path: Path) -> None:
    lines = [line("a"), line("b", model="m"), line("a", model="other"), line("c", model="m")]
    result = validate(job_for(tmp_path, *lines, allow_mixed_models=True))
    assert [(shard.model, shard.entries) for shard in result.shards] == [(MODEL, 1), ("m", 2)]
    assert [entry.line_number for entry in planned(tmp_path)] == [1, 2, 4]
    lines = [line("a"), line("a", model="other")]
    assert validate(job_for(tmp_path, *lines, allow_mixed_models=True)).model == MODEL


def test_a_line_that_is_too_long_is_left_out(tmp_path: Path) -> None:
    long = line("b" * 3_000)
    result = validate(job_for(tmp_path, line("a"), long, line("c"), max_line_bytes=1_000))
    assert (result.lines, told(tmp_path)) == (2, [(2, None, "invalid_request", None)])


def test_only_inputs_of_lines_that_run_are_counted(tmp_path: Path) -> None:
    job = job_for(
        tmp_path,
        *(line("a", url=Endpoint.EMBEDDINGS) for _ in range(5)),
        line("b", url=Endpoint.EMBEDDINGS),
        endpoint=Endpoint.EMBEDDINGS,
    )
    assert validate(replace(job, max_embedding_inputs=2)).lines == 2
    assert validate(replace(job, max_embedding_inputs=1)).problems[0].param == "body.input"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["input.jsonl"]


def test_lines_that_are_left_out_are_requests_all_the_same(tmp_path: Path) -> None:
    job = job_for(tmp_path, line("a"), b"{", b"{")
    assert validate(replace(job, max_lines=3)).skipped == 2
    result = validate(replace(job, max_lines=2))
    assert result.problems[0].code == "too_many_tasks"
    assert result == ValidationResult(problems=result.problems)


@pytest.mark.parametrize("at", ["PlanWriter.finish", "SkippedLines.sync"])
def test_a_full_disk_at_the_end_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(f"batchline.service.validation.{at}", full)
    with pytest.raises(StorageFull):
        validate(job_for(tmp_path, line("a"), b"{"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["input.jsonl"]


@pytest.mark.parametrize("room", [2, 100])
def test_a_file_without_a_good_line_is_refused_with_its_first_problems(
    tmp_path: Path, room: int
) -> None:
    job = job_for(tmp_path, b"{", b"7", b"{", max_problems=room)
    result = validate(job)
    assert [problem.line_number for problem in result.problems] == [1, 2, 3][:room]
    assert result == ValidationResult(problems=result.problems)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["input.jsonl"]
    empty = validate(job_for(tmp_path, b"", b" "))
    assert [problem.code for problem in empty.problems] == ["empty_file"]


def test_only_the_first_problems_are_kept_and_every_line_is_written(tmp_path: Path) -> None:
    job = job_for(tmp_path, *[b"{"] * 500, line("a"), max_problems=10)
    result = validate(job)
    assert [problem.line_number for problem in result.skipped_problems] == list(range(1, 11))
    assert (result.lines, result.skipped, len(error_lines(tmp_path))) == (1, 500, 500)


DRAWN = st.lists(st.sampled_from(["good", "other", "repeat", "bad", "blank"]), max_size=60)


@given(kinds=DRAWN, mixed=st.booleans())
def test_every_request_line_is_either_planned_or_has_an_error_line(
    kinds: list[str], mixed: bool
) -> None:
    lines = [
        {
            "good": line(f"id-{number}"),
            "other": line(f"id-{number}", model="other"),
            "repeat": line(f"id-{number // 7}"),
            "bad": b"{" + str(number).encode(),
            "blank": b" ",
        }[kind]
        for number, kind in enumerate(kinds)
    ]
    with (
        tempfile.TemporaryDirectory() as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(plans, "_GROUPING_ENTRIES", 8)  # runs of plans that are compacted
        patch.setattr(duplicates, "SPILL_IDS", 4)
        result = validate(job_for(Path(folder), *lines, allow_mixed_models=mixed))
        wanted = [number for number, kind in enumerate(kinds, start=1) if kind != "blank"]
        if result.problems:
            assert result.lines == 0
            return
        run = planned(Path(folder))
        left = [one["error"]["line"] for one in error_lines(Path(folder))] if result.skipped else []
        assert sorted([entry.line_number for entry in run] + left) == wanted
        assert (result.lines, result.skipped) == (len(run), len(left))
        assert sum(shard.entries for shard in result.shards) == len(run)
        source = (Path(folder) / "input.jsonl").read_bytes()
        named = [json.loads(source[entry.offset : entry.offset + entry.length]) for entry in run]
        assert len({one["custom_id"] for one in named}) == len(run)
        models = [shard.model for shard in result.shards for _ in range(shard.entries)]
        assert models == [one["body"]["model"] for one in named]


def test_memory_does_not_grow_with_the_lines_that_are_left_out(tmp_path: Path) -> None:
    job = job_for(tmp_path, line("a"), *[b"{"] * 30_000, *[line("a")] * 5_000)
    tracemalloc.start()
    try:
        assert validate(job).skipped == 35_000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (tmp_path / "skipped").stat().st_size > 5 * MIB
    assert peak < 4 * MIB


def test_a_problem_of_one_line_is_a_problem_without_the_extension(tmp_path: Path) -> None:
    result = validate(job_for(tmp_path, line("a"), b"{", skip=None))
    assert result.problems == [
        LineProblem(
            code="invalid_json_line",
            message="This line is not parseable as valid JSON.",
            line_number=2,
        )
    ]
