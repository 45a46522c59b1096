"""Reading request lines: the fast way and the exact way agree, and bytes come out as they were."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Final

import pytest
from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from batchline.domain.errors import BlobUnreadable
from batchline.domain.line_faults import MAX_DEPTH, problem_of
from batchline.domain.lines import (
    CheckedLine,
    LineChecker,
    custom_id_of,
    custom_id_raw_at,
    read_line,
)
from batchline.domain.model import Endpoint, LineProblem

modest = settings(max_examples=100, deadline=None)

CHAT: Final = Endpoint.CHAT_COMPLETIONS
GOOD_EMBEDDINGS: Final = (
    b'{"custom_id":"a","method":"POST","url":"/v1/embeddings","body":{"model":"m","input": %b }}'
)
GOOD: Final = (
    b'{"custom_id":"a","method":"POST","url":"/v1/chat/completions",'
    b'"body":{"model":"m","messages":[]}}'
)


# -- lines to read -------------------------------------------------------------------------------

spaces = st.sampled_from(["", "", "", " ", "\t", " \r ", "\n"])
texts = st.text(max_size=8) | st.sampled_from(['"', "\\", "\u2028", "\x00", "é 漢 😀"])


def token(text: str, *, escaped: bool) -> str:
    """`text` as a JSON string in which everything, or nothing more than needed, is escaped."""
    if not escaped:
        return json.dumps(text, ensure_ascii=False)
    units = text.encode("utf-16-be")
    return '"' + "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2)) + '"'


def tokens(text: str) -> st.SearchStrategy[str]:
    return st.booleans().map(lambda escaped: token(text, escaped=escaped))


def deep(depth: int) -> str:
    return "[" * depth + "]" * depth


# What may stand where something else belongs. Numbers out of range are not here: as `stream` they
# are the one good value that the fast way leaves to the exact one, which has a test of its own.
odd_values = st.sampled_from(
    [
        "null", "true", "false", "0", "-1.5e3", '""', '"x"', '"POST"', "[]", "{}",
        "[1,2]", '["a","b","c"]', '{"model":"m","messages":[]}', '{"stream":true}',
        "NaN", "-", "01", '"\\ud800"', '"\\x"', '"', "nul", "[1,]", "",
    ]
)  # fmt: skip
deep_values = st.integers(MAX_DEPTH - 4, MAX_DEPTH + 2).map(deep)


@st.composite
def objects(draw: st.DrawFn, members: list[tuple[str, str]]) -> str:
    """A JSON object of `members` (key, value token) with up to two changes, in some order."""
    members = list(members)
    for change in draw(st.lists(st.sampled_from(["drop", "repeat", "put", "add"]), max_size=2)):
        at = draw(st.integers(0, len(members) - 1)) if members else 0
        value = draw(odd_values | deep_values)
        if change == "add" or not members:
            members.append((draw(st.sampled_from(["stream", "input", "custom_id", "x"])), value))
        elif change == "drop":
            del members[at]
        elif change == "repeat":
            members.append((members[at][0], draw(st.sampled_from([members[at][1], value]))))
        else:
            members[at] = (members[at][0], value)
    spelled = [
        draw(spaces) + draw(tokens(key)) + draw(spaces) + ":" + draw(spaces) + value + draw(spaces)
        for key, value in draw(st.permutations(members))
    ]
    return "{" + ",".join(spelled) + "}"


@st.composite
def lines(draw: st.DrawFn, endpoint: str) -> bytes:
    """A line for `endpoint` that is good, or spoilt in its members, or damaged in its bytes."""
    body = draw(
        objects(
            [
                ("model", draw(st.sampled_from(["m", "org/model:1"]).flatmap(tokens))),
                ("messages", '[{"role":"user","content":"hello [{"}]'),
                ("input", draw(st.sampled_from(['"text"', '["a","b"]', "[[1,2],[3]]", "[ 1,2]"]))),
                ("stream", draw(st.sampled_from(["false", "null", "{}", '"x"', "123456789"]))),
            ]
        )
    )
    line = draw(
        objects(
            [
                ("custom_id", draw(texts.filter(bool).flatmap(tokens))),
                ("method", draw(tokens("POST"))),
                ("url", draw(tokens(endpoint))),
                ("body", body),
            ]
        )
    )
    raw = (draw(spaces) + line + draw(spaces)).encode()
    damage = draw(st.sampled_from([b""] * 9 + [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\x00", b"}"]))
    at = draw(st.integers(0, len(raw))) if damage else 0
    return raw[:at] + damage + raw[at:]


endpoints = st.sampled_from([*Endpoint, "/v1/audio/speech"])
cases = endpoints.flatmap(lambda endpoint: st.tuples(st.just(str(endpoint)), lines(endpoint)))


# -- LineChecker ---------------------------------------------------------------------------------


@pytest.mark.rule("V6")
@pytest.mark.rule("V9")
@given(cases)
@example((str(CHAT), GOOD))
@example((str(CHAT), GOOD.replace(b'"model":"m"', b'"model":"m","model":"m"')))
@example((str(CHAT), GOOD.replace(b'"model":"m"', b'"stream":true,"stream":false,"model":"m"')))
@example((str(CHAT), GOOD[:-1] + b',"body":{"model":"m","messages":[]}}'))
@example((str(CHAT), GOOD.replace(b'{"model":"m"', b'{"stream":1,"model":"m"') + b" "))
@example((str(CHAT), GOOD[:-1] + b',"x":"\xff"}'))
@settings(max_examples=300, deadline=None)
def test_the_fast_way_accepts_exactly_the_lines_without_a_problem(case: tuple[str, bytes]) -> None:
    endpoint, raw = case
    checker = LineChecker(endpoint)
    accepted = checker.accept(raw)
    problem = problem_of(raw, 7, endpoint)
    event("accepted" if accepted else f"refused: {problem and problem.code}")
    assert (accepted is None) is (problem is not None)
    assert checker.explain(raw, 7) == checker.check(raw, 7) == (accepted or problem)


@given(cases)
@modest
def test_what_is_kept_of_a_good_line_is_what_json_reads(case: tuple[str, bytes]) -> None:
    endpoint, raw = case
    checked = LineChecker(endpoint).check(raw, 1)
    if isinstance(checked, CheckedLine):
        line = json.loads(raw)
        assert (checked.custom_id, checked.model) == (line["custom_id"], line["body"]["model"])
        assert line["body"].get("stream") is not True


@given(endpoints.flatmap(lambda e: st.tuples(st.just(str(e)), st.lists(lines(e), max_size=5))))
@settings(max_examples=40, deadline=None)
def test_a_line_is_judged_without_regard_to_those_before_it(case: tuple[str, list[bytes]]) -> None:
    """The fast way counts keys in a list that all lines share."""
    endpoint, several = case
    checker = LineChecker(endpoint)
    for number, raw in enumerate([*several, GOOD], 1):
        assert checker.accept(raw) == LineChecker(endpoint).accept(raw)
        assert checker.check(raw, number) == LineChecker(endpoint).check(raw, number)


@given(endpoints, st.binary() | st.text().map(str.encode))
@example(CHAT, b"[" * 100_000)
@example(CHAT, b'{"body":' * 100_000)
@modest
def test_no_bytes_make_a_check_raise(endpoint: str, raw: bytes) -> None:
    assert isinstance(LineChecker(endpoint).check(raw, 3), LineProblem)


@pytest.mark.parametrize(
    "stream", [b"1e999", b"[-1e999]", b"9" * 5_000], ids=["huge", "huge inside", "5,000 digits"]
)
def test_a_good_line_that_the_fast_way_cannot_decode_is_good_all_the_same(stream: bytes) -> None:
    raw = GOOD.replace(b'"model"', b'"stream":' + stream + b',"model"')
    checker = LineChecker(CHAT)
    assert checker.accept(raw) is None
    assert checker.check(raw, 1) == CheckedLine("a", "m", 0)


def far_down(calls: int, then: Callable[[], object]) -> object:
    """The value of `then`, `calls` frames further down the stack."""
    return then() if calls == 0 else far_down(calls - 1, then)


@pytest.mark.rule("V6")
@pytest.mark.parametrize("calls", [0, 300])
@pytest.mark.parametrize("key", [b"messages", b"stream", b"x"])
def test_depth_is_judged_the_same_however_deep_the_stack_is(key: bytes, calls: int) -> None:
    """A line that passed in validation must not fail in a worker, whose stack is deeper."""

    def at(depth: int) -> bytes:  # two levels are the line and its body
        member = b'"%b":%b,' % (key, deep(depth - 2).encode())
        return GOOD.replace(b'"model"', member + b'"model"')

    checker = LineChecker(CHAT)
    for read in (checker.accept, partial(checker.explain, line_number=1)):
        assert far_down(calls, partial(read, at(MAX_DEPTH))) == CheckedLine("a", "m", 0)
    assert far_down(calls, lambda: checker.accept(at(MAX_DEPTH + 1))) is None
    refused = far_down(calls, lambda: checker.check(at(MAX_DEPTH + 1), 1))
    assert isinstance(refused, LineProblem)
    assert refused.code == "invalid_json_line"
    assert far_down(calls, lambda: read_line(at(MAX_DEPTH)).custom_id_raw) == b'"a"'


@pytest.mark.parametrize(
    ("given_input", "inputs"),
    [
        (b'"text"', 1),
        (b'["a"]', 1),
        (b'["a", "b", "c"]', 3),
        (b"[1, 2, 3]", 1),  # one input, cut into tokens already
        (b"[ \t-1, 2]", 1),
        (b"[[1, 2], [3], [4]]", 3),
        (b"[]", 0),
        (b"[1.5, 2]", 1),
        (b"[true, false]", 2),  # neither is a token
        (b"null", 1),
        (b'{"a": [1, 2]}', 1),
    ],
)
def test_the_inputs_of_an_embeddings_request_are_counted(given_input: bytes, inputs: int) -> None:
    raw = GOOD_EMBEDDINGS % given_input
    checker = LineChecker(Endpoint.EMBEDDINGS)
    assert checker.accept(raw) == checker.explain(raw, 1) == CheckedLine("a", "m", inputs)


@pytest.mark.parametrize("number", [b"1e999", b"9" * 5_000])
def test_a_number_that_python_has_no_room_for_is_the_backends_to_judge(number: bytes) -> None:
    raw = GOOD_EMBEDDINGS % number
    assert LineChecker(Endpoint.EMBEDDINGS).check(raw, 1) == CheckedLine("a", "m", 1)


def test_inputs_are_counted_for_embeddings_only() -> None:
    raw = GOOD.replace(b'"model"', b'"input":["a","b"],"model"')
    checker = LineChecker(CHAT)
    assert checker.accept(raw) == checker.explain(raw, 1) == CheckedLine("a", "m", 0)
    without = raw.replace(b"/v1/chat/completions", b"/v1/embeddings").replace(b"input", b"other")
    assert LineChecker(Endpoint.EMBEDDINGS).check(without, 1) == CheckedLine("a", "m", 1)


# -- what a worker cuts out ----------------------------------------------------------------------


@given(cases)
@example((str(CHAT), GOOD))
@modest
def test_the_parts_of_a_good_line_are_its_own_bytes(case: tuple[str, bytes]) -> None:
    endpoint, raw = case
    if problem_of(raw, 1, endpoint) is not None:
        return
    parts = read_line(raw)
    line = json.loads(raw)
    assert parts.custom_id_raw in raw
    assert parts.body in raw
    assert json.loads(parts.custom_id_raw) == line["custom_id"]
    assert json.loads(parts.body) == line["body"]
    assert parts.model == line["body"]["model"]


def test_nothing_is_spelled_anew() -> None:
    """Escapes, white space, key order, long numbers and repeated keys reach the backend as sent."""
    body = b'{ "messages" : [1.00, 1E5, 12345678901234567890123], "x":1,"x":2, "model":"\\u006d" }'
    raw = b'{"body":%b,"url":"u","method":"POST", "custom_id" : "\\u0061\\/\xc3\xa9"}' % body
    parts = read_line(raw)
    assert parts.body == body
    assert parts.custom_id_raw == b'"\\u0061\\/\xc3\xa9"'
    assert parts.model == "m"


@given(cases, st.binary(max_size=5), st.binary(max_size=5))
@example((str(CHAT), b'{ "custom_id"\t: "a" ,' + GOOD[17:]), b"[", b"]")
@example((str(CHAT), GOOD.replace(b'"a"', b'"a\\",\\"b"')), b"", b"")
@example((str(CHAT), GOOD), GOOD.replace(b'"a"', b'"before"') + b"\n", b"\n" + GOOD)
@modest
def test_a_custom_id_is_found_in_place_in_a_larger_buffer(
    case: tuple[str, bytes], before: bytes, behind: bytes
) -> None:
    endpoint, raw = case
    if problem_of(raw, 1, endpoint) is not None:
        return
    start, stop = len(before), len(before) + len(raw)
    found = custom_id_raw_at(before + raw + behind, start, stop)
    assert found == read_line(raw).custom_id_raw


def test_a_custom_id_is_not_read_past_the_end_of_its_line() -> None:
    with pytest.raises(BlobUnreadable):
        custom_id_raw_at(GOOD, 0, len(b'{"custom_id":"a"'))


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"\x00" * 40,
        GOOD[:-1],
        GOOD[1:],
        b'"prompt"',
        b'{"custom_id":"prompt"}',
        b'{"body":{"prompt":1}}',
        pytest.param(b'{"prompt":' + b"[" * 100_000, id="deep"),
    ],
)
def test_bytes_that_are_no_line_any_more_are_unreadable_and_not_quoted(damaged: bytes) -> None:
    for read in (read_line, lambda raw: custom_id_raw_at(raw, 0, len(raw))):
        if read is not read_line and damaged == GOOD[:-1]:
            continue  # the custom_id at the front is still whole
        with pytest.raises(BlobUnreadable) as caught:
            read(damaged)
        assert "prompt" not in str(caught.value)
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("raw", "custom_id"),
    [
        (GOOD, "a"),
        (b'{"custom_id":"\\u00e9","method":7}', "é"),
        (b'{"custom_id":""}', ""),
        (b'{"custom_id":7}', None),
        (b'{"custom_id":null}', None),
        (b"{}", None),
        (b"[]", None),
        (b"", None),
        (b'{"custom_id":"a"', None),
        (b'{"custom_id":"\xff"}', None),
        pytest.param(b'{"custom_id":"a","x":' + b"[" * 100_000, None, id="deep"),
    ],
)
def test_a_bad_line_still_tells_its_custom_id(raw: bytes, custom_id: str | None) -> None:
    assert custom_id_of(raw) == custom_id
