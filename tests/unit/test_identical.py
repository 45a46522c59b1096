"""Which requests of a batch are one, and how a plan has them together."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchline.domain import plan
from batchline.domain.identical import DIGEST_BYTES, digest_of
from batchline.domain.model import Endpoint
from batchline.domain.plan import FOLLOWS, Order, PlanEntry
from batchline.service import identical, record_sort
from batchline.service.validation import ValidationResult, validate
from tests.support.inputs import MODEL
from tests.support.validating import job_for

CHAT = Endpoint.CHAT_COMPLETIONS


def raw(body: str, custom_id: str = "a", endpoint: str = CHAT) -> bytes:
    return (
        f'{{"custom_id":"{custom_id}","method":"POST","url":"{endpoint}","body":{body}}}'
    ).encode()


def digest(body: str, custom_id: str = "a", endpoint: str = CHAT) -> bytes | None:
    return digest_of(raw(body, custom_id, endpoint), endpoint)


@pytest.mark.rule("X11")
@pytest.mark.parametrize(
    "spelled",
    [
        '{"model":"m","messages":[{"role":"user","content":"é/"}],"temperature":0}',
        '{ "temperature" : 0 , "messages":[{"content":"é/","role":"user"}], "model":"m"}',
        r'{"model":"\u006d","messages":[{"role":"user","content":"\u00e9\/"}],"temperature":0}',
    ],
)
def test_spelling_makes_no_difference(spelled: str) -> None:
    one = digest('{"model":"m","messages":[{"role":"user","content":"é/"}],"temperature":0}')
    assert one is not None
    assert len(one) == DIGEST_BYTES
    assert digest(spelled, "b") == one


@pytest.mark.rule("X11")
def test_anything_else_does() -> None:
    bodies = [
        '{"model":"m","messages":["a"],"temperature":0}',
        '{"model":"m","messages":["a"],"temperature":0.0}',
        '{"model":"m","messages":["a"],"temperature":0,"user":"x"}',
        '{"model":"m","messages":["a "],"temperature":0}',
        '{"model":"m","messages":["A"],"temperature":0}',
        '{"model":"m","messages":["a"],"temperature":0,"seed":18446744073709551617}',
        '{"model":"m","messages":["a"],"temperature":0,"seed":18446744073709551618}',
        '{"model":"m","messages":["a"],"temperature":0,"top_p":1}',
        '{"model":"m","messages":["a"],"temperature":0,"top_p":1.0}',
        '{"model":"m","messages":["a"],"temperature":0,"top_p":1.00}',
        '{"model":"m","messages":["a"],"temperature":0,"top_p":"1.00"}',
    ]
    digests = {digest(body) for body in bodies}
    assert None not in digests
    assert len(digests) == len(bodies)


@pytest.mark.rule("X11")
@pytest.mark.parametrize(
    ("endpoint", "body", "eligible"),
    [
        (CHAT, {"temperature": 0}, True),
        (CHAT, {"temperature": 0.0}, True),
        (CHAT, {"temperature": -0.0, "n": 1, "best_of": None}, True),
        (CHAT, {"seed": 7, "temperature": 1}, True),
        (CHAT, {}, False),
        (CHAT, {"temperature": 1e-9}, False),
        (CHAT, {"temperature": False}, False),
        (CHAT, {"temperature": "0"}, False),
        (CHAT, {"temperature": None, "seed": None}, False),
        (CHAT, {"seed": "7"}, False),
        (CHAT, {"seed": True}, False),
        (CHAT, {"temperature": 0, "n": 2}, False),
        (CHAT, {"seed": 1, "best_of": 3}, False),
        (Endpoint.COMPLETIONS, {"temperature": 0}, True),
        (Endpoint.RESPONSES, {"temperature": 0, "tools": [{"type": "function"}]}, True),
        (Endpoint.RESPONSES, {"temperature": 0, "tools": [{"type": "web_search"}]}, False),
        (Endpoint.RESPONSES, {"temperature": 0, "tools": 1}, False),
        (Endpoint.RESPONSES, {"temperature": 0, "background": True}, False),
        (Endpoint.RESPONSES, {"temperature": 0, "conversation": "c"}, False),
        (Endpoint.EMBEDDINGS, {}, True),
        (Endpoint.RERANK, {}, True),
        (Endpoint.SCORE, {}, True),
        (Endpoint.MODERATIONS, {}, True),
        (Endpoint.IMAGES_GENERATIONS, {"seed": 1}, True),
        (Endpoint.IMAGES_GENERATIONS, {}, False),
        (Endpoint.VIDEOS, {"seed": 1}, False),
    ],
)
def test_only_what_one_answer_is_enough_for(
    endpoint: str, body: dict[str, object], eligible: bool
) -> None:
    found = digest(json.dumps({"model": "m", "messages": [], **body}), endpoint=endpoint)
    assert (found is not None) == eligible


@pytest.mark.rule("X11")
@pytest.mark.parametrize(
    "body",
    [
        '{"model":"m","messages":[],"seed":1,"seed":1}',
        r'{"model":"m","messages":[{"a":1,"\u0061":2}],"temperature":0}',
        '{"model":"m","messages":[[{"a":1,"a":1}]],"temperature":0}',
    ],
)
def test_a_body_with_a_key_that_is_there_twice_runs_by_itself(body: str) -> None:
    assert digest(body) is None


def test_what_cannot_be_read_runs_by_itself() -> None:
    assert digest_of(b"", CHAT) is None
    assert digest("[]") is None
    assert digest('{"temperature":0,"a":' + "[" * 5_000 + "]" * 5_000 + "}") is None


# -- the plan --------------------------------------------------------------------------------------


def line(number: int, text: str, *, model: str = MODEL, **body: Any) -> bytes:
    messages = [{"role": "user", "content": text}]
    more = {"model": model, "messages": messages, "temperature": 0, **body}
    return raw(json.dumps(more), f"line-{number}") + b"\n"


def planned(
    folder: Path, lines: Sequence[bytes], **changes: Any
) -> tuple[ValidationResult, list[PlanEntry]]:
    result = validate(job_for(folder, b"".join(lines), run_once=True, **changes))
    assert not result.problems
    assert sorted(path.name for path in folder.iterdir()) == ["input.jsonl", "plan"]
    content = (folder / "plan").read_bytes()
    entries = list(plan.unpack(content[plan.HEADER_BYTES :]))
    assert plan.check_header(content) == (FOLLOWS in [entry.prefix_hash for entry in entries])
    return result, entries


def groups(entries: Sequence[PlanEntry]) -> list[list[int]]:
    """Line numbers, those that follow behind the one that they follow."""
    found: list[list[int]] = []
    for entry in entries:
        if entry.prefix_hash == FOLLOWS:
            found[-1].append(entry.line_number)
        else:
            found.append([entry.line_number])
    return found


@pytest.mark.rule("X11")
def test_identical_lines_follow_the_first_and_the_rest_keeps_its_order(tmp_path: Path) -> None:
    lines = [line(number, text) for number, text in enumerate("abcabcad")]
    result, entries = planned(tmp_path, lines)
    assert groups(entries) == [[1, 4, 7], [2, 5], [3, 6], [8]]
    assert result.lines == 8


def test_a_file_without_identical_lines_has_the_plan_that_it_had(tmp_path: Path) -> None:
    lines = [line(number, str(number)) for number in range(50)]
    _, entries = planned(tmp_path, lines)
    with_it = (tmp_path / "plan").read_bytes()
    validate(job_for(tmp_path, b"".join(lines)))
    assert (tmp_path / "plan").read_bytes() == with_it
    assert groups(entries) == [[number] for number in range(1, 51)]


def test_without_being_asked_for_lines_run_each(tmp_path: Path) -> None:
    validate(job_for(tmp_path, b"".join([line(1, "a"), line(2, "a")])))
    content = (tmp_path / "plan").read_bytes()
    assert [entry.prefix_hash for entry in plan.unpack(content[plan.HEADER_BYTES :])] == [0, 0]


@pytest.mark.rule("X11")
def test_no_group_is_torn_by_the_end_of_a_shard_or_larger_than_one(tmp_path: Path) -> None:
    lines = [line(number, text) for number, text in enumerate("ab" + "c" * 4 + "d" * 11 + "ef")]
    result, entries = planned(tmp_path, lines, shard_entries=5)
    spans = [(shard.first_entry, shard.entries) for shard in result.shards]
    assert spans == [(0, 2), (2, 4), (6, 5), (11, 5), (16, 3)]
    assert [len(group) for group in groups(entries)] == [1, 1, 4, 5, 5, 1, 1, 1]


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.tuples(st.sampled_from("xy"), st.integers(0, 6), st.booleans()), min_size=1, max_size=40
    ),
    st.integers(1, 6),
    st.sampled_from(list(Order)),
)
def test_every_line_is_there_once_behind_one_like_it(
    made: list[tuple[str, int, bool]], shard_entries: int, order: Order
) -> None:
    def same(one: tuple[str, int, bool]) -> object:
        return (one[0], one[1])

    lines = [
        line(number, f"{text}" * 300, model=model, temperature=0 if eligible else 1)
        for number, (model, text, eligible) in enumerate(made)
    ]
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(record_sort, "RUN_RECORDS", 7),
        mock.patch.object(identical, "_AT_ONCE", 3),
        mock.patch.object(identical, "BLOCK_BYTES", 900),
    ):
        result, entries = planned(
            Path(folder),
            lines,
            allow_mixed_models=True,
            shard_entries=shard_entries,
            order=order,
        )
    found = groups(entries)
    assert sorted(number for group in found for number in group) == list(range(1, len(lines) + 1))
    for group in found:
        kinds = [made[number - 1] for number in group]
        assert len(set(map(same, kinds))) == 1
        assert len(group) == 1 or all(eligible for _, _, eligible in kinds)
    # As few calls as the size of shards allows.
    counted = Counter(same(one) for one in made if one[2])
    wanted = sum(-(-count // shard_entries) for count in counted.values())
    assert len(found) == wanted + sum(not eligible for _, _, eligible in made)
    at = 0
    for shard in result.shards:
        mine = entries[at : at + shard.entries]
        assert shard.first_entry == at
        assert 0 < shard.entries <= shard_entries
        assert mine[0].prefix_hash != FOLLOWS
        assert {made[entry.line_number - 1][0] for entry in mine} == {shard.model}
        at += shard.entries
    assert at == len(entries)
