"""Validation of whole files: `docs/compatibility.md`, V3 to V5, V12, V15, V16, V20 and V21."""

from __future__ import annotations

import json
import tempfile
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from batchline.domain import plan
from batchline.domain.errors import BlobUnreadable
from batchline.domain.model import Endpoint, LineProblem, PlannedShard
from batchline.domain.plan import PlanEntry
from batchline.service import duplicates
from batchline.service.plans import models_known
from batchline.service.validation import (
    MAX_MODELS,
    ValidationResult,
    validate,
)
from tests.support.inputs import MODEL, make_lines
from tests.support.validating import job_for

BOM = b"\xef\xbb\xbf"
MIB = 1024 * 1024
EMPTY = LineProblem(
    code="empty_file",
    message="The input file is empty. Please ensure that the batch contains at least one request.",
)


def line(custom_id: str, *, model: str = MODEL, **body: object) -> bytes:
    request = {
        "custom_id": custom_id,
        "method": "POST",
        "url": Endpoint.CHAT_COMPLETIONS,
        "body": {"model": model, "messages": [], **body},
    }
    return json.dumps(request).encode()


def embeddings(custom_id: str, inputs: object) -> bytes:
    request = {
        "custom_id": custom_id,
        "method": "POST",
        "url": Endpoint.EMBEDDINGS,
        "body": {"model": MODEL, "input": inputs},
    }
    return json.dumps(request).encode()


def file_of(*lines: bytes) -> bytes:
    return b"".join(line + b"\n" for line in lines)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def result_of(folder: Path, content: bytes, **changes: Any) -> ValidationResult:
    return validate(job_for(folder, content, **changes))


def problems_of(folder: Path, content: bytes, **changes: Any) -> Sequence[LineProblem]:
    """What is wrong with the file; then nothing but the input is left in `folder`."""
    result = result_of(folder, content, **changes)
    assert result.problems
    assert result == ValidationResult(problems=result.problems)
    assert names(folder) == ["input.jsonl"]
    return result.problems


def planned(folder: Path) -> list[PlanEntry]:
    raw = (folder / "plan").read_bytes()
    plan.check_header(raw)
    return list(plan.unpack(raw[plan.HEADER_BYTES :]))


def lines_of(problems: Sequence[LineProblem]) -> list[tuple[int | None, str]]:
    return [(problem.line_number, problem.code) for problem in problems]


def duplicate(custom_id: str, line_number: int) -> LineProblem:
    return LineProblem(
        code="duplicate_custom_id",
        message=(
            f"The custom_id '{custom_id}' for this request is a duplicate of another request. "
            "The custom_id parameter must be unique for each request in a batch."
        ),
        param="custom_id",
        line_number=line_number,
    )


# -- good files ------------------------------------------------------------------------------------


def test_a_good_file_has_a_plan_and_shards_of_its_one_model(tmp_path: Path) -> None:
    result = result_of(tmp_path, make_lines(25), shard_entries=10)
    assert result == ValidationResult(
        lines=25,
        model=MODEL,
        shards=result.shards,
        plan_bytes=(tmp_path / "plan").stat().st_size,
    )
    assert list(result.shards) == [
        PlannedShard(first_entry=0, entries=10, model=MODEL),
        PlannedShard(first_entry=10, entries=10, model=MODEL),
        PlannedShard(first_entry=20, entries=5, model=MODEL),
    ]
    assert names(tmp_path) == ["input.jsonl", "plan"]


def test_what_was_at_the_place_of_the_plan_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "plan").write_bytes(b"x" * 10_000)
    result = result_of(tmp_path, make_lines(3))
    assert [entry.line_number for entry in planned(tmp_path)] == [1, 2, 3]
    assert result.plan_bytes == (tmp_path / "plan").stat().st_size


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
@pytest.mark.parametrize("bom", [b"", BOM])
@pytest.mark.parametrize("last_newline", [True, False])
def test_line_endings_and_a_byte_order_mark_are_not_part_of_lines(
    tmp_path: Path, newline: bytes, bom: bytes, last_newline: bool
) -> None:
    lines = [line("a"), line("b"), line("c")]
    content = bom + newline.join(lines) + (newline if last_newline else b"")
    assert result_of(tmp_path, content).lines == 3
    assert [content[e.offset : e.offset + e.length] for e in planned(tmp_path)] == lines


def test_a_second_byte_order_mark_is_not_json(tmp_path: Path) -> None:
    assert lines_of(problems_of(tmp_path, BOM + BOM + file_of(line("a")))) == [
        (1, "invalid_json_line")
    ]


def test_blank_lines_are_skipped_and_counted(tmp_path: Path) -> None:
    blank = [b"", b" ", b"\t \r"]
    good = file_of(*blank, line("a"), b"", line("b"), b"\r")
    assert result_of(tmp_path, good).lines == 2
    assert [entry.line_number for entry in planned(tmp_path)] == [4, 6]
    (tmp_path / "plan").unlink()
    assert lines_of(problems_of(tmp_path, good + file_of(b"{", *blank, line("a")))) == [
        (8, "invalid_json_line"),
        (12, "duplicate_custom_id"),
    ]


class Drawn(NamedTuple):
    """A file as drawn, and the places that its plan should have."""

    content: bytes
    entries: list[PlanEntry]
    longest: int


@st.composite
def files(draw: st.DrawFn) -> Drawn:
    """Request lines of many lengths with blank lines between, either line ending for each."""
    content = draw(st.sampled_from([b"", BOM]))
    kinds = draw(st.lists(st.sampled_from(["request", "blank"]), max_size=30))
    entries, longest = [], 1
    for number, kind in enumerate(["request", *kinds], start=1):
        if kind == "request":
            text = line(f"line-{number}", padding="é" * draw(st.integers(0, 200)))
            entries.append(PlanEntry(len(content), len(text), number, 0))
        else:
            text = draw(st.sampled_from([b"", b" ", b"\t", b"   \t "]))
        ending = draw(st.sampled_from([b"\n", b"\r\n"]))
        longest = max(longest, len(text + ending) - 1)
        content += text + ending
    if draw(st.booleans()):
        content = content.removesuffix(b"\n").removesuffix(b"\r")
    return Drawn(content, entries, longest)


@settings(deadline=None, max_examples=60)
@given(files(), st.integers(0, 400))
@example(Drawn(line("a"), [PlanEntry(0, len(line("a")), 1, 0)], len(line("a"))), 0)
def test_a_plan_has_the_place_of_every_request_line(drawn: Drawn, room: int) -> None:
    """Blocks are as long as lines may be, so that a small limit cuts lines everywhere."""
    with tempfile.TemporaryDirectory() as folder:
        result = result_of(Path(folder), drawn.content, max_line_bytes=drawn.longest + room)
        assert result.problems == ()
        assert planned(Path(folder)) == drawn.entries
        assert result.lines == len(drawn.entries)


# -- rules of the whole file -----------------------------------------------------------------------


@pytest.mark.rule("V3")
@pytest.mark.parametrize("content", [b"", b"\n", b"\r\n \n\t", b" " * 300_000, BOM, BOM + b"\n"])
def test_a_file_without_a_request_line_is_empty(tmp_path: Path, content: bytes) -> None:
    assert problems_of(tmp_path, content) == [EMPTY]


@pytest.mark.rule("V3")
def test_a_file_with_bad_lines_only_is_not_empty(tmp_path: Path) -> None:
    assert lines_of(problems_of(tmp_path, b"{\n")) == [(1, "invalid_json_line")]


@pytest.mark.rule("V4")
@pytest.mark.parametrize(
    ("start", "of_model"),
    [
        (b"", f" for the {MODEL} model"),
        (BOM, f" for the {MODEL} model"),
        (b"not JSON\n", ""),
        (b"\n", ""),
    ],
)
def test_a_file_that_is_too_large_is_refused_with_its_model_where_that_is_known(
    tmp_path: Path, start: bytes, of_model: str
) -> None:
    content = start + make_lines(3, crlf=True)
    assert problems_of(tmp_path, content, max_file_bytes=len(content) - 1) == [
        LineProblem(
            code="file_too_large",
            message=(
                f"The batch input file is larger than the {len(content) - 1} maximum{of_model}. "
                "Please try again with a smaller batch."
            ),
        )
    ]


@pytest.mark.rule("V4")
def test_a_file_of_just_the_size_that_is_allowed_is_taken(tmp_path: Path) -> None:
    content = make_lines(3)
    assert result_of(tmp_path, content, max_file_bytes=len(content)).lines == 3


@pytest.mark.rule("V5")
def test_a_file_with_too_many_lines_is_refused(tmp_path: Path) -> None:
    too_many = LineProblem(
        code="too_many_tasks",
        message="The batch input file has more than the maximum of 3 requests.",
    )
    content = make_lines(4, blank_every=1)
    assert problems_of(tmp_path, content, max_lines=3) == [too_many]
    content = file_of(b"{", *(line(str(number)) for number in range(4)))
    assert lines_of(problems_of(tmp_path, content, max_lines=3)) == [
        (None, "too_many_tasks"),
        (1, "invalid_json_line"),
    ]


@pytest.mark.rule("V5")
def test_blank_lines_are_not_among_those_that_may_be_too_many(tmp_path: Path) -> None:
    assert result_of(tmp_path, make_lines(3, blank_every=1), max_lines=3).lines == 3


@pytest.mark.rule("V15")
def test_each_line_with_a_model_that_no_backend_has_is_refused(tmp_path: Path) -> None:
    content = file_of(line("a", model="x"), line("b"), line("c", model="x"))
    assert problems_of(tmp_path, content, known_models=["another", MODEL]) == [
        LineProblem(
            code="model_not_found",
            message="The provided model 'x' is not supported by the Batch API.",
            param="body.model",
            line_number=number,
        )
        for number in (1, 3)
    ]


@pytest.mark.rule("V15")
@pytest.mark.parametrize("known", [None, [MODEL], ["another", MODEL]])
def test_a_model_is_taken_when_it_is_known_or_nobody_knows(
    tmp_path: Path, known: list[str] | None
) -> None:
    job = job_for(tmp_path, make_lines(2), known_models=known)
    assert validate(job).model == MODEL
    assert models_known(Path(job.plan_path)) == (known is not None)
    assert models_known(tmp_path / "no plan")  # nothing may be concluded


@pytest.mark.rule("V15")
def test_a_model_is_refused_when_the_catalogues_are_known_and_empty(tmp_path: Path) -> None:
    assert lines_of(problems_of(tmp_path, make_lines(1), known_models=[])) == [
        (1, "model_not_found")
    ]


@pytest.mark.rule("V16")
def test_each_line_with_another_model_than_the_first_is_refused(tmp_path: Path) -> None:
    content = file_of(line("a"), line("b", model="x"), line("c"), line("d", model="y"))
    assert problems_of(tmp_path, content) == [
        LineProblem(
            code="mismatched_model",
            message=(
                f"The model '{model}' for this request does not match the rest of the batch. "
                "Each batch must contain requests for a single model."
            ),
            param="body.model",
            line_number=number,
        )
        for number, model in ((2, "x"), (4, "y"))
    ]


@pytest.mark.rule("V16")
def test_where_several_models_are_allowed_each_has_shards_of_its_own(tmp_path: Path) -> None:
    models = ["x", "y", "x", "x", "y"]
    content = file_of(*(line(str(n), model=model) for n, model in enumerate(models)))
    result = result_of(tmp_path, content, allow_mixed_models=True, shard_entries=2)
    assert (result.lines, result.model) == (5, None)
    assert list(result.shards) == [
        PlannedShard(first_entry=0, entries=2, model="x"),
        PlannedShard(first_entry=2, entries=1, model="x"),
        PlannedShard(first_entry=3, entries=2, model="y"),
    ]
    assert [entry.line_number for entry in planned(tmp_path)] == [1, 3, 4, 2, 5]


@pytest.mark.rule("V16")
def test_there_is_an_end_to_the_models_of_one_file(tmp_path: Path) -> None:
    lines = [line(str(number), model=f"model-{number}") for number in range(MAX_MODELS + 1)]
    assert problems_of(tmp_path, file_of(*lines, lines[0]), allow_mixed_models=True) == [
        LineProblem(
            code="mismatched_model",
            message=f"The batch contains requests for more than {MAX_MODELS} models.",
            param="body.model",
            line_number=MAX_MODELS + 1,
        ),
        duplicate("0", MAX_MODELS + 2),
    ]
    allowed = result_of(tmp_path, file_of(*lines[:-1]), allow_mixed_models=True)
    assert len(allowed.shards) == MAX_MODELS


@pytest.mark.rule("V20")
def test_too_many_embedding_inputs_in_all_lines_are_refused(tmp_path: Path) -> None:
    # One text, three texts, one text that is cut into tokens, two such: seven inputs.
    lines = [
        embeddings("a", "text"),
        embeddings("b", ["x", "y", "z"]),
        embeddings("c", [1, 2, 3, 4]),
        embeddings("d", [[1, 2], [3]]),
    ]
    expected = LineProblem(
        code="invalid_request",
        message=(
            "The batch input file has more than the maximum of 6 embedding inputs in all its "
            "requests."
        ),
        param="body.input",
    )
    limits: dict[str, Any] = {"endpoint": Endpoint.EMBEDDINGS}
    content = file_of(*lines)
    assert problems_of(tmp_path, content, max_embedding_inputs=6, **limits) == [expected]
    assert result_of(tmp_path, content, max_embedding_inputs=7, **limits).lines == 4
    assert result_of(tmp_path, content, max_embedding_inputs=None, **limits).lines == 4


@pytest.mark.rule("V20")
def test_inputs_are_counted_for_embeddings_only(tmp_path: Path) -> None:
    content = file_of(line("a", input=["x", "y"]))
    assert result_of(tmp_path, content, max_embedding_inputs=0).lines == 1


@pytest.mark.rule("V21")
@pytest.mark.parametrize("promised", [-1, 1])
def test_nothing_is_concluded_from_a_file_of_another_length_than_promised(
    tmp_path: Path, promised: int
) -> None:
    job = job_for(tmp_path, make_lines(3))
    with pytest.raises(BlobUnreadable):
        validate(replace(job, input_bytes=job.input_bytes + promised))
    assert names(tmp_path) == ["input.jsonl"]


@pytest.mark.rule("V21")
def test_nothing_is_concluded_from_a_file_that_is_gone(tmp_path: Path) -> None:
    job = job_for(tmp_path, b"")
    Path(job.input_path).unlink()
    with pytest.raises(BlobUnreadable):
        validate(job)
    assert names(tmp_path) == []


# -- duplicates ------------------------------------------------------------------------------------


@pytest.mark.rule("V12")
def test_every_line_that_repeats_a_custom_id_is_refused(tmp_path: Path) -> None:
    content = file_of(*(line(custom_id) for custom_id in ["a", "b", "a", "c", "b", "a"]))
    assert problems_of(tmp_path, content) == [
        duplicate("a", 3),
        duplicate("b", 5),
        duplicate("a", 6),
    ]


@pytest.mark.rule("V12")
@pytest.mark.parametrize(
    ("one", "other"),
    [
        (rb'"a/b"', rb'"a\/b"'),
        (rb'"\u0061"', rb'"a"'),
        ('"é漢😀"'.encode(), rb'"\u00e9\u6F22\ud83d\ude00"'),
        (rb'"\n"', rb'"\u000a"'),
    ],
)
def test_spellings_of_one_custom_id_are_duplicates(
    tmp_path: Path, one: bytes, other: bytes
) -> None:
    content = file_of(line("ID").replace(b'"ID"', one), line("ID").replace(b'"ID"', other))
    assert lines_of(problems_of(tmp_path, content)) == [(2, "duplicate_custom_id")]


@pytest.mark.rule("V12")
@pytest.mark.parametrize("ids", [["a", "A"], ["a", "a "], ["é", "e\u0301"], ["1", "01"]])
def test_custom_ids_that_only_look_alike_are_different(tmp_path: Path, ids: list[str]) -> None:
    assert result_of(tmp_path, file_of(*map(line, ids))).lines == 2


@pytest.mark.rule("V12")
def test_a_line_is_refused_once_and_its_id_counts_all_the_same(tmp_path: Path) -> None:
    bad = line("a").replace(b"POST", b"GET")
    assert lines_of(problems_of(tmp_path, file_of(bad, line("a"), bad, line("b")))) == [
        (1, "invalid_value"),
        (2, "duplicate_custom_id"),
        (3, "invalid_value"),
    ]


@pytest.mark.rule("V12")
def test_custom_ids_of_one_hash_are_not_duplicates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates, "hash", lambda _: 7, raising=False)
    lines = [line(str(number)) for number in range(50)]
    assert result_of(tmp_path, file_of(*lines)).lines == 50
    assert problems_of(tmp_path, file_of(*lines, lines[-1])) == [duplicate("49", 51)]


@pytest.mark.rule("V12")
def test_duplicates_are_found_across_what_was_spilled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates, "SPILL_IDS", 3)
    monkeypatch.setattr(duplicates, "_SHORTEST_LINE_BYTES", 1)
    monkeypatch.setattr(duplicates, "_PARTITION_IDS", 100)
    lines = [line(str(number)) for number in range(40)]
    content = file_of(*lines, lines[0], *lines[20:22])
    # Blocks of one or two lines each, so that ids are added and spilled in small groups.
    assert problems_of(tmp_path, content, max_line_bytes=len(lines[-1])) == [
        duplicate("0", 41),
        duplicate("20", 42),
        duplicate("21", 43),
    ]


# -- lists of problems -----------------------------------------------------------------------------


def test_all_problems_are_listed_in_line_order_whatever_found_them(tmp_path: Path) -> None:
    content = file_of(
        line("a"),
        line("b", model="x"),
        b"{",
        line("c"),
        b'"' + b"x" * 400 + b'"',
        line("a"),
        b"[]",
        line("d", stream=True),
        line("b", model="y"),
    )
    assert lines_of(problems_of(tmp_path, content, max_line_bytes=300)) == [
        (2, "mismatched_model"),
        (3, "invalid_json_line"),
        (5, "invalid_request"),
        (6, "duplicate_custom_id"),
        (7, "invalid_request"),
        (8, "streaming_unsupported"),
        (9, "mismatched_model"),
    ]


BAD_LINES = [
    pytest.param(b"{", "invalid_json_line", id="not JSON"),
    pytest.param(b"x" * 500, "invalid_request", id="too long"),
    pytest.param(line("id", model="x"), "mismatched_model", id="another model"),
    pytest.param(line("first"), "duplicate_custom_id", id="a duplicate"),
    pytest.param(line("first").replace(b"POST", b"GET"), "invalid_value", id="both"),
]


@pytest.mark.parametrize(("bad", "code"), BAD_LINES)
@pytest.mark.parametrize("count", [99, 100, 150])
def test_the_first_hundred_problems_are_listed(
    tmp_path: Path, bad: bytes, code: str, count: int
) -> None:
    content = file_of(line("first"), *[bad] * count)
    assert lines_of(problems_of(tmp_path, content, max_line_bytes=400)) == [
        (number, code) for number in range(2, 2 + min(count, 100))
    ]


@pytest.mark.parametrize(("bad", "code"), BAD_LINES)
def test_problems_are_listed_to_the_end_of_the_file_when_ids_are_spilled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: bytes, code: str
) -> None:
    """A bad line whose id is there twice is one problem, not two, on the way to the limit."""
    monkeypatch.setattr(duplicates, "SPILL_IDS", 5)
    content = file_of(line("first"), *[bad] * 6, *map(line, "abcdefghij"), b"{")
    assert lines_of(problems_of(tmp_path, content, max_line_bytes=400, max_problems=8)) == [
        *((number, code) for number in range(2, 8)),
        (18, "invalid_json_line"),
    ]


def test_a_file_of_one_repeated_id_is_not_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates, "SPILL_IDS", 20)
    content = file_of(*[line("a")] * 50, *[b"{"] * 50)
    problems = problems_of(tmp_path, content, max_problems=10, max_line_bytes=len(line("a")))
    assert lines_of(problems) == [(number, "duplicate_custom_id") for number in range(2, 12)]


# -- lines that are too long -----------------------------------------------------------------------


def too_long(limit: int, line_number: int) -> LineProblem:
    return LineProblem(
        code="invalid_request",
        message=f"This line is longer than the maximum of {limit} bytes.",
        line_number=line_number,
    )


@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("last_newline", [True, False])
def test_a_line_that_is_too_long_is_a_problem_and_its_neighbours_are_not(
    tmp_path: Path, at: int, last_newline: bool
) -> None:
    lines = [line("a"), line("b")]
    limit = len(lines[0])
    lines.insert(at, line("long"))
    content = file_of(*lines) if last_newline else file_of(*lines)[:-1]
    assert problems_of(tmp_path, content, max_line_bytes=limit) == [too_long(limit, at + 1)]
    assert result_of(tmp_path, content, max_line_bytes=len(line("long"))).lines == 3


def test_a_line_that_is_too_long_is_not_held_in_memory(tmp_path: Path) -> None:
    job = job_for(tmp_path, file_of(line("a")), max_line_bytes=MIB)
    size = 64 * MIB
    with Path(job.input_path).open("r+b") as file:
        file.truncate(size)  # a hole, which reads as zeros
    tracemalloc.start()
    try:
        result = validate(replace(job, input_bytes=size))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert result.problems == [too_long(MIB, 2)]
    assert peak < 4 * MIB
