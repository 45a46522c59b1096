"""Lines of the output and error file: spliced from bytes, one line each, and readable by anyone."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from typing import Any, Final

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from batchline.domain.model import Usage
from batchline.domain.results import (
    MESSAGES,
    Failure,
    error_body,
    error_code_of,
    failure_line,
    failure_tail,
    read_success,
    read_usual,
    request_id_of,
    result_line,
    usable_body,
    usage_of,
)

modest = settings(max_examples=100, deadline=None)

LINE_ID: Final = "batch_req_" + "0123456789abcdef" * 2
DEEP: Final = b"[" * 100_000
NO_USAGE: Final = Usage()

texts = st.text(max_size=12) | st.sampled_from(['"', "\\", "\n", "\u2028", "\x85", "%d", "é漢😀"])
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=10,
)
bodies = st.dictionaries(texts, values, max_size=4) | st.lists(values, max_size=4)


@st.composite
def spelled(draw: st.DrawFn, of: st.SearchStrategy[Any]) -> tuple[Any, bytes]:
    """A value, and one of the many ways to write it down."""
    value = draw(of)
    text = json.dumps(
        value,
        ensure_ascii=draw(st.booleans()),
        indent=draw(st.sampled_from([None, None, 2, "\t"])),
        separators=draw(st.sampled_from([None, (",", ":"), (" , ", " :\r\n ")])),
    )
    edge = draw(st.sampled_from(["", "", "\n", " \r\n", "\t"]))
    return value, f"{edge}{text}{edge}".encode()


# -- splices -------------------------------------------------------------------------------------


@given(spelled(texts), st.sampled_from([200, 201, 400, 500]), st.none() | texts, spelled(bodies))
@modest
def test_a_result_line_reads_back_to_what_went_in(
    custom_id: tuple[str, bytes], status: int, header: str | None, answer: tuple[Any, bytes]
) -> None:
    request_id = request_id_of(header, LINE_ID)
    body = usable_body(answer[1])
    assert body is not None
    token = custom_id[1].strip()
    made = result_line(LINE_ID, token, status, request_id, body)
    assert made.endswith(b"\n")
    assert made.count(b"\n") == 1
    assert b"\r" not in made
    assert token in made
    assert json.loads(made) == {
        "id": LINE_ID,
        "custom_id": custom_id[0],
        "response": {"status_code": status, "request_id": request_id, "body": answer[0]},
        "error": None,
    }


@pytest.mark.rule("O1")
def test_the_keys_of_a_result_line_are_the_services_in_its_order() -> None:
    assert result_line(LINE_ID, b'"a"', 200, "req_1", b'{"x": 1}') == (
        b'{"id":"batch_req_0123456789abcdef0123456789abcdef","custom_id":"a",'
        b'"response":{"status_code":200,"request_id":"req_1","body":{"x": 1}},"error":null}\n'
    )


@pytest.mark.parametrize("token", [b'"\\u0061\\/b"', b'"a\xc3\xa9"', b'"100%d %b"', b'"\\"\\\\"'])
def test_a_custom_id_goes_out_as_the_token_that_came_in(token: bytes) -> None:
    spliced = b'"custom_id":%b,"response":' % token
    assert spliced in result_line(LINE_ID, token, 200, "r", b"{}")
    assert spliced in failure_line(LINE_ID, token, Failure.WORKER_LOST)


@pytest.mark.parametrize("failure", list(Failure))
def test_a_failure_has_no_response_and_says_why(failure: Failure) -> None:
    made = failure_line(LINE_ID, b'"a"', failure)
    assert made.endswith(b"\n")
    assert made.count(b"\n") == 1
    assert list(json.loads(made)) == ["id", "custom_id", "response", "error"]
    assert json.loads(made) == {
        "id": LINE_ID,
        "custom_id": "a",
        "response": None,
        "error": {"code": str(failure), "message": MESSAGES[failure]},
    }
    assert made == b'{"id":"%b","custom_id":"a"%b' % (LINE_ID.encode(), failure_tail(failure))


def test_the_codes_of_failures_keep_their_spelling() -> None:
    """Clients compare these: the first three are the API's, the others are in the docs as ours."""
    assert list(Failure) == [
        "batch_cancelled",
        "batch_expired",
        "request_timeout",
        "upstream_unreachable",
        "invalid_upstream_response",
        "response_too_large",
        "worker_lost",
        "model_not_found",
    ]
    assert set(MESSAGES) == set(Failure)
    assert MESSAGES[Failure.BATCH_EXPIRED] == (
        "This request could not be executed before the completion window expired."
    )


# -- usable answers ------------------------------------------------------------------------------


def test_a_pretty_printed_answer_becomes_one_line() -> None:
    pretty = b'\r\n{\r\n\t"a": "x\\n\\r",\n  "b": [\n    1\n  ]\n}\n'
    expected = b'{  \t"a": "x\\n\\r",   "b": [     1   ] }'
    assert usable_body(pretty) == expected
    assert read_success(pretty) == (expected, NO_USAGE)
    assert read_usual(pretty) == (expected, NO_USAGE)


@pytest.mark.parametrize(
    "raw",
    [
        b'{"a":1.00,"b":1E5,"c":12345678901234567890123,"d":"\\u00e9\\/\xc3\xa9"}',
        b'{ "k" : 1 , "k" : 2 }',
        b'[{"a":\t1}]',
        '{"a":"\u2028\u2029\x85"}'.encode(),
        b'{"n":1e999}',
    ],
)
def test_an_answer_of_one_line_goes_out_unchanged(raw: bytes) -> None:
    assert usable_body(raw) == raw
    assert read_success(raw) == (raw, NO_USAGE)
    assert read_usual(raw) in (None, (raw, NO_USAGE))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b" \n",
        b"<html>Bad Gateway</html>",
        b'{"a":1',
        b'{"a":1}}',
        b'{"a":1}{"b":2}',
        b'{"a":NaN}',
        b'{"a":-Infinity}',
        b'{"a":01}',
        b'{"a":"\xff"}',
        b'{"\xc3":1}',
        b'{"a":"\xed\xa0\x80"}',
        b'{"a":"\\ud800"}',
        b'{"a":"line\nbreak"}',
        b'{"usage":{"x":"\xff"}}',
        b'{"usage":{"x":NaN}}',
        b"\xef\xbb\xbf{}",
        b"\x1f\x8b\x08compressed",
        b"null",
        b"true",
        b"17",
        b'"text"',
        b'data: {"a":1}\n\ndata: [DONE]\n\n',
        pytest.param(DEEP, id="deep and cut"),
        pytest.param(DEEP + b"]" * len(DEEP), id="deep"),
        pytest.param(b'{"usage":' + DEEP + b"]" * len(DEEP) + b"}", id="deep usage"),
    ],
)
def test_an_answer_that_could_break_the_file_is_not_usable(raw: bytes) -> None:
    assert usable_body(raw) is None
    assert read_success(raw) is None
    assert read_usual(raw) is None


damaged = st.one_of(
    st.binary(max_size=40),
    spelled(bodies).flatmap(
        lambda body: st.tuples(
            st.just(body[1]),
            st.integers(0, len(body[1])),
            st.sampled_from([b"", b"\xff", b"\n", b"}", b",", b"\\", b"NaN", b"\x00", b'"']),
        )
    ).map(lambda parts: parts[0][: parts[1]] + parts[2] + parts[0][parts[1] :]),
)  # fmt: skip


@given(damaged)
@settings(max_examples=200, deadline=None)
def test_an_answer_is_usable_just_when_it_is_strict_json_on_one_line(raw: bytes) -> None:
    """The judge is the standard library, told to be strict."""
    body = usable_body(raw)
    try:
        value = json.loads(raw.decode(), parse_constant=_refuse)
        json.dumps(value, ensure_ascii=False).encode()  # a lone surrogate has no UTF-8
    except ValueError:
        value = None
    if isinstance(value, dict | list):
        assert body is not None
        assert json.loads(body) == value
        assert b"\n" not in body
    else:
        assert body is None
    told = read_success(raw)
    assert told == (None if body is None else (body, usage_of(body)))
    assert read_usual(raw) in (None, told)


def _refuse(constant: str) -> float:
    raise ValueError(constant)


@pytest.mark.parametrize(
    ("error", "is_usual"),
    [(b"null", True), (b"{}", False), (b'{"message":"no"}', False), (b'""', False), (b"0", False)],
)
def test_an_answer_with_an_error_is_not_the_usual_one(error: bytes, is_usual: bool) -> None:
    raw = b'{"id":"x","error":%b}' % error
    assert (read_usual(raw) is not None) is is_usual


def test_the_last_of_two_errors_counts() -> None:
    assert read_usual(b'{"error":null,"error":{}}') is None
    assert read_usual(b'{"choices":[{"error":{}}]}') is not None


# -- usage ---------------------------------------------------------------------------------------


def usage_in(body: object) -> Usage:
    """The usage that all readers find in an answer."""
    raw = json.dumps(body).encode()
    told = read_success(raw)
    assert told is not None
    assert told[1] == usage_of(raw)
    assert read_usual(raw) in (None, told)
    return told[1]


@pytest.mark.rule("L7")
def test_the_usage_of_a_chat_answer_is_mapped_to_the_batchs_names() -> None:
    usage = {
        "prompt_tokens": 100,
        "completion_tokens": 20,
        "total_tokens": 120,
        "prompt_tokens_details": {"cached_tokens": 64, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 8, "audio_tokens": 0},
    }
    assert usage_in({"usage": usage}) == Usage(
        input_tokens=100, cached_tokens=64, output_tokens=20, reasoning_tokens=8, total_tokens=120
    )


@pytest.mark.rule("L7")
def test_the_usage_of_a_responses_answer_keeps_its_names() -> None:
    usage = {
        "input_tokens": 100,
        "output_tokens": 20,
        "total_tokens": 120,
        "input_tokens_details": {"cached_tokens": 64},
        "output_tokens_details": {"reasoning_tokens": 8},
    }
    assert usage_in({"usage": usage}) == Usage(
        input_tokens=100, cached_tokens=64, output_tokens=20, reasoning_tokens=8, total_tokens=120
    )


@pytest.mark.rule("L7")
def test_embeddings_have_no_output_tokens() -> None:
    usage = {"prompt_tokens": 9, "total_tokens": 9}
    assert usage_in({"usage": usage}) == Usage(input_tokens=9, total_tokens=9)


def test_the_names_decide_whose_usage_it_is() -> None:
    """Some backends serve one API's shape at the other's path, or both at once."""
    both = {"prompt_tokens": 1, "completion_tokens": 2, "input_tokens": 30, "output_tokens": 40}
    assert usage_in({"usage": both}) == Usage(input_tokens=1, output_tokens=2)


@pytest.mark.parametrize("usage", [None, 7, "many", True, [], [1], {}, {"other": 1}])
def test_usage_of_another_type_is_unknown_and_not_a_bad_answer(usage: object) -> None:
    assert usage_in({"id": "x", "usage": usage}) == NO_USAGE


@pytest.mark.parametrize("read", [usage_of, error_code_of])
def test_what_is_too_large_to_be_meant_is_not_made_into_objects(
    read: Callable[[bytes], object],
) -> None:
    """60 MiB of `{},` would be over a gigabyte of them, and the end of the worker."""
    told = b"[" + b"{}," * 200_000 + b"{}]"
    body = b'{"usage":%b,"error":%b}' % (told, told)
    tracemalloc.start()
    try:
        assert read(body) in (NO_USAGE, None)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < len(told)


@pytest.mark.parametrize(
    "count", [None, "7", 7.5, True, -1, 10**12 + 1, 10**30, [], {"cached_tokens": 1}]
)
def test_a_count_of_the_wrong_type_counts_as_zero_and_the_others_count(count: object) -> None:
    usage = {
        "prompt_tokens": count,
        "completion_tokens": 2,
        "total_tokens": 3,
        "prompt_tokens_details": {"cached_tokens": count},
        "completion_tokens_details": count,
    }
    assert usage_in({"usage": usage}) == Usage(output_tokens=2, total_tokens=3)


def test_the_largest_count_that_is_believed() -> None:
    usage = {"prompt_tokens": 10**12, "completion_tokens": 0}
    assert usage_in({"usage": usage}) == Usage(input_tokens=10**12)


def test_an_array_has_no_usage() -> None:
    assert read_success(b'[{"usage":{"prompt_tokens":1}}]') == (
        b'[{"usage":{"prompt_tokens":1}}]',
        NO_USAGE,
    )
    assert usage_of(b"[]") == usage_of(b"not json") == usage_of(DEEP) == NO_USAGE


details = st.none() | st.dictionaries(
    st.sampled_from(["cached_tokens", "reasoning_tokens", "audio_tokens"]),
    st.integers(-1, 99) | st.sampled_from([None, 1.0, True]),
)
usages = st.dictionaries(
    st.sampled_from(["prompt_tokens", "completion_tokens", "total_tokens"])
    | st.sampled_from(["input_tokens", "output_tokens"]),
    st.integers(0, 99) | st.sampled_from([-1, None, "7", True, 10**12, 10**13, 10**20]),
).flatmap(
    lambda counts: st.fixed_dictionaries(
        {key: st.just(value) for key, value in counts.items()},
        optional={
            f"{side}_tokens_details": details
            for side in ("prompt", "completion", "input", "output")
        },
    )
)


@given(usages | values)
@example({"prompt_tokens": 5.0})
@example({"completion_tokens": 5, "input_tokens": 3.0})
@modest
def test_the_quick_reader_and_the_patient_one_agree_on_every_usage(usage: object) -> None:
    found = usage_in({"usage": usage, "choices": []})
    assert all(0 <= getattr(found, name) <= 10**12 for name in Usage.__struct_fields__)


# -- error answers -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"error":{"code":"model_not_found","type":"invalid_request_error"}}', "model_not_found"),
        (b'{"error":{"code":null,"type":"NotFoundError"}}', "NotFoundError"),
        (b'{"error":{"code":404,"type":"NotFoundError"}}', "NotFoundError"),
        # vLLM 0.32.0, of a model that it does not serve.
        (
            (
                b'{"error":{"message":"The model `other` does not exist. Valid aliases: tiny.",'
                b'"type":"NotFoundError","param":"model","code":404}}'
            ),
            "model_not_found",
        ),
        # Ollama, of a model that was deleted (from its sources); another thing may be missing too.
        (
            (
                b'{"error":{"message":"model \\"other\\" not found, try pulling it first",'
                b'"type":"not_found_error","param":null,"code":null}}'
            ),
            "model_not_found",
        ),
        (
            b'{"error":{"message":"file not found","type":"not_found_error","code":null}}',
            "not_found_error",
        ),
        # llama.cpp b11549: a prompt that is too long, and while it loads.
        (
            (
                b'{"error":{"code":400,"message":"request (5018 tokens) exceeds the available'
                b' context size (2048 tokens), try increasing it",'
                b'"type":"exceed_context_size_error",'
                b'"n_prompt_tokens":5018,"n_ctx":2048}}'
            ),
            "exceed_context_size_error",
        ),
        (
            b'{"error":{"message":"Loading model","type":"unavailable_error","code":503}}',
            "unavailable_error",
        ),
        (b'{"error":{"type":"insufficient_quota"}}', "insufficient_quota"),
        (b'{"error":{"code":404}}', None),
        (b'{"error":{}}', None),
        (b'{"error":"no such model"}', None),
        (b'{"error":null}', None),
        (b'{"error":[{"code":"x"}]}', None),
        (b'{"detail":"Not Found"}', None),
        (b'[{"error":{"code":"x"}}]', None),
        (b"<html>", None),
        (b"", None),
        (b'{"error":{"code":"\xff"}}', None),
        pytest.param(b'{"error":' + DEEP, None, id="deep"),
    ],
)
def test_an_error_answer_tells_its_code_or_else_its_type(body: bytes, code: str | None) -> None:
    assert error_code_of(body) == code


@pytest.mark.parametrize(("status", "size"), [(500, 0), (404, 1_234)])
def test_an_answer_that_is_no_json_is_replaced_by_its_status_and_size(
    status: int, size: int
) -> None:
    body = error_body(status, size)
    assert usable_body(body) == body
    message = f"The backend answered with status {status} and {size} bytes that are not JSON."
    assert json.loads(body) == {
        "error": {"message": message, "type": "upstream_error", "param": None, "code": None}
    }


# -- request ids ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        "req_0123",
        "5b1f3c1e-0000-4000-8000-000000000000",
        "!#$%&'()*+,-./:;<=>?@[]^`{|}~",
        "x" * 128,
    ],
)
def test_a_presentable_request_id_is_the_backends(header: str) -> None:
    assert request_id_of(header, LINE_ID) == header


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        " ",
        "two words",
        'quo"te',
        "back\\slash",
        "line\n",
        "\ttab",
        "é",
        "\x7f",
        "x" * 129,
    ],
)
def test_any_other_is_replaced_by_the_hex_of_the_line_id(header: str | None) -> None:
    assert request_id_of(header, LINE_ID) == "0123456789abcdef" * 2
