"""The order of plans: what begins alike lies side by side, and no line is lost."""

from __future__ import annotations

import json
import random
import tempfile
import tracemalloc
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchline.domain import plan, prefixes
from batchline.domain.model import Endpoint
from batchline.domain.plan import Order, PlanEntry
from batchline.service import arranging, prefix_order, prefix_sample, record_sort
from batchline.service.prefix_order import GROUP_LINES
from batchline.service.record_sort import RecordSort
from batchline.service.skipped import SkipSettings
from batchline.service.validation import ValidationResult, validate
from tests.support.inputs import MODEL
from tests.support.validating import job_for

SYSTEM = "s" * 2_000


def line(number: int, text: str, *, model: str = MODEL, **body: Any) -> bytes:
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]
    request = {
        "custom_id": f"line-{number}",
        "method": "POST",
        "url": Endpoint.CHAT_COMPLETIONS,
        "body": {"model": model, "messages": messages, **body},
    }
    return json.dumps(request).encode() + b"\n"


def ordered(
    folder: Path, lines: Sequence[bytes], order: Order = Order.PREFIX, **changes: Any
) -> tuple[ValidationResult, list[PlanEntry]]:
    """The plan of a file of `lines`, of which nothing but the plan is left."""
    result = validate(job_for(folder, b"".join(lines), order=order, **changes))
    assert not result.problems
    assert sorted(path.name for path in folder.iterdir()) == ["input.jsonl", "plan"]
    raw = (folder / "plan").read_bytes()
    plan.check_header(raw)
    return result, list(plan.unpack(raw[plan.HEADER_BYTES :]))


def numbers(entries: Sequence[PlanEntry]) -> list[int]:
    return [entry.line_number for entry in entries]


def documents(count: int, questions: int, *, size: int = 3_000, seed: int = 1) -> list[bytes]:
    """Questions about documents, shuffled; the text of a line begins with its document's number."""
    texts = [
        f"{document:03d}" * (size // 3) + f" question {question}"
        for document in range(count)
        for question in range(questions)
    ]
    random.Random(seed).shuffle(texts)  # noqa: S311  # a workload
    return [line(number, text) for number, text in enumerate(texts)]


def document_of(raw: bytes) -> str:
    return str(json.loads(raw)["body"]["messages"][1]["content"][:3])


def test_lines_about_one_document_are_side_by_side_and_a_group(tmp_path: Path) -> None:
    lines = documents(20, 6)
    _, entries = ordered(tmp_path, lines)
    assert sorted(numbers(entries)) == list(range(1, 121))
    groups = [
        [document_of(lines[entry.line_number - 1]) for entry in group]
        for _, group in groupby(entries, key=lambda entry: entry.prefix_hash)
    ]
    assert len(groups) == 20
    assert all(len(group) == 6 and len(set(group)) == 1 for group in groups)
    assert len({entry.prefix_hash for entry in entries} - {0}) == 20
    assert all(
        (tmp_path / "input.jsonl").read_bytes()[entry.offset :][: entry.length] + b"\n"
        == lines[entry.line_number - 1]
        for entry in entries
    )


def test_what_saves_most_comes_first_and_what_shares_nothing_last_in_file_order(
    tmp_path: Path,
) -> None:
    texts = [
        *(f"alone {number} " * 300 for number in range(5)),
        *("few" * 700 + str(number) for number in range(3)),
        *("many" * 500 + str(number) for number in range(5)),
        *("long" * 2_000 + str(number) for number in range(4)),
    ]
    _, entries = ordered(tmp_path, [line(number, text) for number, text in enumerate(texts)])
    assert numbers(entries) == [14, 15, 16, 17, 9, 10, 11, 12, 13, 6, 7, 8, 1, 2, 3, 4, 5]
    assert [entry.prefix_hash == 0 for entry in entries] == [False] * 12 + [True] * 5


@pytest.mark.parametrize(
    "texts",
    [
        pytest.param([f"{number} " * 500 for number in range(400)], id="only the system prompt"),
        pytest.param(["the same " * 300] * 400, id="everything"),
        pytest.param([str(number) for number in range(400)], id="short prompts"),
    ],
)
def test_a_file_that_no_order_would_help_keeps_its_own(tmp_path: Path, texts: list[str]) -> None:
    lines = [line(number, text) for number, text in enumerate(texts)]
    with mock.patch.object(arranging, "put_in_order", side_effect=AssertionError):
        _, entries = ordered(tmp_path, lines)
    assert numbers(entries) == list(range(1, len(lines) + 1))
    assert {entry.prefix_hash for entry in entries} == {0}


def test_where_half_of_a_plan_shares_nothing_that_half_keeps_the_files_order(
    tmp_path: Path,
) -> None:
    lines = documents(30, 2)
    alone = [line(100 + number, f"alone {number} " * 200) for number in range(60)]
    mixed = [one for pair in zip(lines, alone, strict=True) for one in pair]
    _, entries = ordered(tmp_path, mixed)
    assert numbers(entries)[60:] == list(range(2, 121, 2))


def test_groups_are_found_though_they_are_rare_and_far_apart(tmp_path: Path) -> None:
    """Some 400 of the lines are looked at, and pairs of one prefix are found all the same."""
    lines = [
        line(number, f"{number % 5_000:05d}" * 60, max_tokens=number) for number in range(20_000)
    ]
    with mock.patch.object(prefix_sample, "key_of", wraps=prefixes.key_of) as looked:
        _, entries = ordered(tmp_path, lines)
    assert 300 < looked.call_count < 500
    hashes = [entry.prefix_hash for entry in entries]
    assert len(set(hashes)) == 5_000
    assert [len(list(group)) for _, group in groupby(hashes)] == [4] * 5_000


def test_a_large_group_is_in_parts_so_that_it_can_be_at_work_in_many_places(
    tmp_path: Path,
) -> None:
    texts = ["one " * 500 + str(number) for number in range(3 * GROUP_LINES + 1)]
    texts += ["other " * 300 + str(number) for number in range(3 * GROUP_LINES + 1)]
    texts += [f"{number} " * 300 for number in range(50)]
    _, entries = ordered(tmp_path, [line(number, text) for number, text in enumerate(texts)])
    hashes = [entry.prefix_hash for entry in entries]
    sizes = [len(list(group)) for _, group in groupby(hashes)]
    assert sizes == [*([GROUP_LINES, GROUP_LINES, GROUP_LINES, 1] * 2), 50]
    assert len(set(hashes)) == 9
    assert 0 not in hashes[:-50]


def test_a_line_between_two_documents_belongs_to_neither(tmp_path: Path) -> None:
    task = "task " * 200
    texts = [task + "aaa" * 3_000 + str(number) for number in range(4)]
    texts += [task + f"{number}" * 9_000 for number in range(6)]
    texts += [task + "bbb" * 3_000 + str(number) for number in range(4)]
    texts += [f"{number}" * 3_000 for number in range(20)]
    _, entries = ordered(tmp_path, [line(number, text) for number, text in enumerate(texts)])
    hashes = {entry.line_number: entry.prefix_hash for entry in entries}
    first, last = ({hashes[number] for number in some} for some in (range(1, 5), range(11, 15)))
    between = {hashes[number] for number in range(5, 11)}
    assert len(first) == len(last) == 1
    assert not first & last
    assert 0 not in between
    assert not between & (first | last)


def test_models_keep_their_shards_and_share_nothing(tmp_path: Path) -> None:
    lines = [
        line(number, f"{number % 7}" * 3_000, model=("b", "a")[number % 2]) for number in range(140)
    ]
    result, entries = ordered(tmp_path, lines, allow_mixed_models=True, shard_entries=30)
    assert [(shard.model, shard.entries) for shard in result.shards] == [
        *(("b", size) for size in (30, 30, 10)),
        *(("a", size) for size in (30, 30, 10)),
    ]
    assert {number % 2 for number in numbers(entries[:70])} == {1}
    assert len([1 for _ in groupby(entry.prefix_hash for entry in entries)]) == 14


def test_where_one_model_ends_as_the_next_begins_each_keeps_its_lines(tmp_path: Path) -> None:
    """The last prompts of the one are the first of the other: side by side, and no family."""
    prompt = prefixes.prompt_of(Endpoint.CHAT_COMPLETIONS)
    assert prompt is not None
    keys = {
        prefixes.key_of(prompt(line(0, text))): text for text in (f"{n}" * 3_000 for n in range(9))
    }
    texts = [keys[key] for key in sorted(keys)]
    asked = [("b", text) for text in texts[:5]] + [("a", text) for text in texts[4:]]
    asked += [("a", texts[-1])] * 3  # it saves most of all, and so comes first of its model
    models = [model for model, _ in asked for _ in range(8)]
    lines = [line(n, asked[n // 8][1], model=model) for n, model in enumerate(models)]
    result, entries = ordered(tmp_path, lines, allow_mixed_models=True)
    assert [(shard.model, shard.entries) for shard in result.shards] == [("b", 40), ("a", 64)]
    assert [models[number - 1] for number in numbers(entries)] == ["b"] * 40 + ["a"] * 64


def test_lines_that_are_left_out_stay_out(tmp_path: Path) -> None:
    lines = documents(5, 4)
    lines[3:3] = [b"{}\n", b"\n"]
    skipped = tmp_path / "skipped"
    settings_of = SkipSettings(batch_id="batch_" + "0" * 32, path=str(skipped))
    result = validate(
        job_for(tmp_path, b"".join([*lines, lines[0]]), order=Order.PREFIX, skip=settings_of)
    )
    assert (result.lines, result.skipped) == (20, 2)
    raw = (tmp_path / "plan").read_bytes()[plan.HEADER_BYTES :]
    assert sorted(entry.line_number for entry in plan.unpack(raw)) == [1, 2, 3, *range(6, 23)]


@pytest.mark.parametrize("endpoint", [Endpoint.EMBEDDINGS, Endpoint.COMPLETIONS])
def test_only_what_is_generated_has_an_order(tmp_path: Path, endpoint: Endpoint) -> None:
    field = "input" if endpoint is Endpoint.EMBEDDINGS else "prompt"
    lines = [
        json.dumps(
            {
                "custom_id": str(number),
                "method": "POST",
                "url": endpoint,
                "body": {"model": MODEL, field: f"{number % 4}" * 1_000 + str(number)},
            }
        ).encode()
        + b"\n"
        for number in range(40)
    ]
    _, entries = ordered(tmp_path, lines, endpoint=endpoint)
    in_file_order = numbers(entries) == list(range(1, 41))
    assert in_file_order == (endpoint is Endpoint.EMBEDDINGS)


def test_long_outputs_go_first_and_those_without_a_limit_before_them(tmp_path: Path) -> None:
    limits = [10, None, 1_000, 900, 12, 3_000, 1_023]
    lines = [line(number, str(number), max_tokens=limit) for number, limit in enumerate(limits)]
    _, entries = ordered(tmp_path, lines, Order.LONG_OUTPUTS)
    assert numbers(entries) == [2, 6, 3, 4, 7, 1, 5]


def test_long_outputs_are_in_prefix_order_among_equals(tmp_path: Path) -> None:
    lines = [
        line(number, f"{number % 4}" * 2_000 + str(number), max_tokens=(10, 500)[number % 8 < 4])
        for number in range(64)
    ]
    _, entries = ordered(tmp_path, lines, Order.LONG_OUTPUTS)
    kinds = [((entry.line_number - 1) % 8 < 4, (entry.line_number - 1) % 4) for entry in entries]
    runs = [kind for kind, _ in groupby(kinds)]
    assert [is_long for is_long, _ in runs] == [True] * 4 + [False] * 4
    assert len(set(runs)) == 8


@settings(deadline=None, max_examples=30)
@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.lists(st.integers(0, 2), max_size=4)),
        min_size=1,
        max_size=40,
    ),
    st.sampled_from([Order.PREFIX, Order.LONG_OUTPUTS]),
)
def test_every_line_is_there_once_and_shares_most_with_its_neighbours(
    texts: list[tuple[str, list[int]]], order: Order
) -> None:
    lines = [
        line(number, "".join(str(part) * 400 for part in parts) + f"-{number}", model=model)
        for number, (model, parts) in enumerate(texts)
    ]
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(prefix_sample, "_ENOUGH_PAIRS", 0),
        mock.patch.object(record_sort, "RUN_RECORDS", 7),
        mock.patch.object(prefix_order, "_WRITTEN_ENTRIES", 3),
        mock.patch.object(prefix_order, "_COPIED_BYTES", 2 * plan.ENTRY_BYTES),
        mock.patch.object(prefix_order, "BLOCK_BYTES", 5_000),
        mock.patch.object(prefix_order, "GROUP_LINES", 4),
    ):
        _, entries = ordered(Path(folder), lines, order, allow_mixed_models=True)
    assert sorted(numbers(entries)) == list(range(1, len(lines) + 1))
    # Lines of a group share a prefix: none of them is of another model or begins otherwise.
    named = [(*texts[entry.line_number - 1], entry.prefix_hash) for entry in entries]
    models = [model for model, _, _ in named]
    assert models == sorted(models, key=models.index)
    for (_, prefix_hash), group in groupby(named, key=lambda one: (one[0], one[2])):
        if prefix_hash:
            members = [parts for _, parts, _ in group]
            assert len(members) <= 4
            assert len(members) == 1 or len({tuple(parts[:1]) for parts in members}) == 1


def test_records_are_sorted_whether_they_fit_or_not(tmp_path: Path) -> None:
    chance = random.Random(3)  # noqa: S311  # records
    records = [chance.randbytes(5) for _ in range(1_000)]
    for run_records in (64, 10_000):
        with mock.patch.object(record_sort, "RUN_RECORDS", run_records):
            sort = RecordSort(tmp_path, 5)
            for record in records:
                sort.add(record)
            assert list(sort.ascending()) == sorted(records)
            sort.close()
    assert list(tmp_path.iterdir()) == []


def test_a_plan_that_cannot_be_ordered_is_removed(tmp_path: Path) -> None:
    (tmp_path / "plan.grouped").mkdir()
    with pytest.raises(IsADirectoryError):
        validate(job_for(tmp_path, b"".join(documents(5, 4)), order=Order.PREFIX))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["input.jsonl", "plan.grouped"]


def test_what_is_held_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """Four times as many lines, and the peak is that of one run of the sort and of one block."""
    peaks = []
    for questions in (10, 40):
        content = b"".join(documents(50, questions, size=600))
        job = job_for(tmp_path, content, order=Order.PREFIX, run_once=True)
        with mock.patch.object(record_sort, "RUN_RECORDS", 200):
            tracemalloc.start()
            validate(job)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[1] < peaks[0] + 80_000
