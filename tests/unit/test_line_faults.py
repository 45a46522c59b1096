"""What is wrong with a bad line: code, message and param, exactly as the contract gives them."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchline.domain.line_faults import MAX_DEPTH, problem_of, quoted, too_deep
from batchline.domain.lines import LineChecker
from batchline.domain.model import Endpoint, LineProblem

modest = settings(max_examples=100, deadline=None)

CHAT: Final = Endpoint.CHAT_COMPLETIONS
ABSENT: Final = object()

KINDS: Final[list[tuple[object, str]]] = [
    (None, "null"),
    (True, "a boolean"),
    (7, "an integer"),
    (7.5, "a decimal number"),
    ("text", "a string"),
    ([], "an array"),
    ({}, "an object"),
]
NOT_TEXT: Final = [(value, kind) for value, kind in KINDS if kind != "a string"]
NOT_AN_OBJECT: Final = [(value, kind) for value, kind in KINDS if kind != "an object"]


def line(endpoint: str = CHAT, /, **changed: object) -> bytes:
    """A good line with some of its keys changed, or taken out where they are ABSENT."""
    good: dict[str, object] = {
        "custom_id": "a",
        "method": "POST",
        "url": str(endpoint),
        "body": good_body(),
    }
    return json.dumps({k: v for k, v in (good | changed).items() if v is not ABSENT}).encode()


def good_body(**changed: object) -> dict[str, Any]:
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}]} | changed
    return {key: value for key, value in body.items() if value is not ABSENT}


def problem(raw: bytes, endpoint: str = CHAT) -> LineProblem:
    """What is wrong with `raw` as line 17, which no reader takes."""
    checker = LineChecker(endpoint)
    assert checker.accept(raw) is None
    found = checker.check(raw, 17)
    assert isinstance(found, LineProblem)
    assert found == problem_of(raw, 17, endpoint)
    assert found.line_number == 17
    return found


def said(found: LineProblem) -> tuple[str, str, str | None]:
    return found.code, found.message, found.param


# -- the rules -----------------------------------------------------------------------------------


@pytest.mark.rule("V6")
@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b" ",
        b"{",
        b"not json",
        line()[:-1],
        line() + b"}",
        line() + b" " + line(),
        line().replace(b'"m"', b"'m'"),
        line().replace(b'"m"', b"NaN"),
        line().replace(b'"m"', b"Infinity"),
        line().replace(b'"m"', b"01"),
        line().replace(b'"m"', b"1."),
        line().replace(b'"m"', b"+1"),
        line().replace(b'"m",', b'"m",,'),
        line().replace(b"hello", b"\x00"),
        line().replace(b"hello", b"\t"),
        line().replace(b"hello", b"\\x41"),
        line().replace(b"hello", b"\xff"),
        line().replace(b"hello", b"\xc3"),
        line().replace(b"hello", b"\xc0\xaf"),
        line().replace(b"hello", b"\xed\xa0\x80"),
        line().replace(b"hello", b"\\ud800"),
        line().replace(b'"a"', b'"\\udc00\\ud800"'),
        b"\xef\xbb\xbf" + line(),
        line().decode().encode("utf-16"),
        pytest.param(b"[" * 100_000, id="open arrays"),
        pytest.param(b'{"a":' * 100_000, id="open objects"),
    ],
)
def test_a_line_that_is_not_json_is_named_as_such(raw: bytes) -> None:
    """JSON is the strict kind, in valid UTF-8; taking a byte-order mark off is up to the reader."""
    assert said(problem(raw)) == (
        "invalid_json_line",
        "This line is not parseable as valid JSON.",
        None,
    )


@pytest.mark.rule("V7")
@pytest.mark.parametrize(("value", "kind"), NOT_AN_OBJECT)
def test_json_that_is_no_object_is_an_invalid_request(value: object, kind: str) -> None:
    assert said(problem(json.dumps(value).encode())) == (
        "invalid_request",
        f"Invalid line: expected an object, but got {kind} instead.",
        None,
    )


@pytest.mark.rule("V8")
@pytest.mark.parametrize("key", ["custom_id", "method", "url", "body"])
def test_a_missing_key_is_named(key: str) -> None:
    assert said(problem(line(**{key: ABSENT}))) == (
        "missing_required_parameter",
        f"Missing required parameter: '{key}'.",
        key,
    )


@pytest.mark.rule("V9")
@pytest.mark.parametrize(("value", "kind"), NOT_TEXT)
@pytest.mark.parametrize("key", ["custom_id", "method", "url"])
def test_a_key_that_is_no_string_is_named(key: str, value: object, kind: str) -> None:
    assert said(problem(line(**{key: value}))) == (
        "invalid_type",
        f"Invalid type for '{key}': expected a string, but got {kind} instead.",
        key,
    )


@pytest.mark.rule("V9")
@pytest.mark.parametrize(("value", "kind"), NOT_AN_OBJECT)
def test_a_body_that_is_no_object_is_named(value: object, kind: str) -> None:
    raw = line(body=[]).replace(b'"body": []', f'"body": {json.dumps(value)}'.encode())
    assert said(problem(raw)) == (
        "invalid_type",
        f"Invalid type for 'body': expected an object, but got {kind} instead.",
        "body",
    )


@pytest.mark.rule("V9")
@pytest.mark.parametrize(("value", "kind"), NOT_TEXT)
def test_a_model_that_is_no_string_is_named(value: object, kind: str) -> None:
    assert said(problem(line(body=good_body(model=value)))) == (
        "invalid_type",
        f"Invalid type for 'model': expected a string, but got {kind} instead.",
        "body.model",
    )


@pytest.mark.rule("V9")
@pytest.mark.parametrize(
    ("raw", "key", "param"),
    [
        (line(custom_id=""), "custom_id", "custom_id"),
        (line(method=""), "method", "method"),
        (line(url=""), "url", "url"),
        (line(body=good_body(model="")), "model", "body.model"),
    ],
)
def test_an_empty_string_is_the_wrong_type(raw: bytes, key: str, param: str) -> None:
    assert said(problem(raw)) == (
        "invalid_type",
        f"Invalid type for '{key}': expected a non-empty string, but got an empty string.",
        param,
    )


def repeated(token: bytes, *, spelled: bytes | None = None) -> bytes:
    """A good line in which the member `token` is there once more, its key spelled another way."""
    raw = line(body=good_body(stream=False))
    assert raw.count(token) == 1
    return raw.replace(token, token + b", " + (spelled or token))


@pytest.mark.rule("V9")
@pytest.mark.parametrize(
    ("raw", "key", "param"),
    [
        (repeated(b'"custom_id": "a"'), "custom_id", "custom_id"),
        (
            repeated(b'"custom_id": "a"', spelled=b'"custom\\u005fid": "b"'),
            "custom_id",
            "custom_id",
        ),
        (repeated(b'"method": "POST"'), "method", "method"),
        (repeated(b'"url": "/v1/chat/completions"'), "url", "url"),
        (line()[:-1] + b', "body": {"model": "m", "messages": []}}', "body", "body"),
        (line()[:-1] + b', "\\u0062ody": {"model": "m", "messages": []}}', "body", "body"),
        (line()[:-1] + b', "body": {}}', "body", "body"),
        (repeated(b'"model": "m"'), "model", "body.model"),
        (repeated(b'"model": "m"', spelled=b'"mode\\u006C": "n"'), "model", "body.model"),
        (repeated(b'"stream": false'), "stream", "body.stream"),
        (repeated(b'"stream": false', spelled=b'"\\u0073tream": null'), "stream", "body.stream"),
    ],
)
def test_a_key_that_is_there_twice_is_refused(raw: bytes, key: str, param: str) -> None:
    """Readers disagree on which of the two counts, so a repeated one could run as another."""
    assert said(problem(raw)) == (
        "invalid_type",
        f"Invalid type for '{key}': the key must not appear more than once.",
        param,
    )


@pytest.mark.rule("V10")
@pytest.mark.parametrize("method", ["GET", "post", "POST ", "PUT"])
def test_another_method_than_post_is_refused(method: str) -> None:
    assert said(problem(line(method=method))) == (
        "invalid_value",
        f"Invalid value: '{method}'. Supported values are: 'POST'.",
        "method",
    )


@pytest.mark.rule("V11")
@pytest.mark.parametrize(
    "url",
    [
        "/v1/embeddings",
        "/chat/completions",
        "/v1/chat/completions/",
        "/V1/chat/completions",
        "v1/chat/completions",
        "https://api.openai.com/v1/chat/completions",
        "/v1/chat/completions?x=1",
    ],
)
def test_a_url_that_is_not_the_endpoint_is_refused(url: str) -> None:
    assert said(problem(line(url=url))) == (
        "invalid_url",
        "The URL provided for this request does not match the batch endpoint.",
        "url",
    )


@pytest.mark.rule("V11")
@pytest.mark.parametrize("endpoint", list(Endpoint))
def test_a_url_is_compared_with_the_batchs_own_endpoint(endpoint: Endpoint) -> None:
    for other in set(Endpoint) - {endpoint}:
        assert problem(line(url=str(other)), endpoint).code == "invalid_url"


@pytest.mark.rule("V13")
@pytest.mark.parametrize("endpoint", list(Endpoint))
def test_a_missing_model_is_named(endpoint: Endpoint) -> None:
    assert said(problem(line(endpoint, body=good_body(model=ABSENT)), endpoint)) == (
        "missing_required_parameter",
        "Missing required parameter: 'model'.",
        "body.model",
    )


@pytest.mark.rule("V14")
def test_missing_messages_are_named() -> None:
    assert said(problem(line(body=good_body(messages=ABSENT)))) == (
        "missing_required_parameter",
        "Missing required parameter: 'messages'.",
        "body.messages",
    )


@pytest.mark.rule("V14")
@pytest.mark.parametrize("endpoint", sorted(set(Endpoint) - {CHAT}))
def test_only_chat_needs_messages(endpoint: Endpoint) -> None:
    raw = line(endpoint, body=good_body(messages=ABSENT))
    assert problem_of(raw, 1, endpoint) is None


@pytest.mark.rule("V17")
@pytest.mark.parametrize(
    ("endpoint", "api"),
    [
        (Endpoint.CHAT_COMPLETIONS, "Chat Completions"),
        (Endpoint.COMPLETIONS, "Completions"),
        (Endpoint.EMBEDDINGS, "Embeddings"),
        (Endpoint.RESPONSES, "Responses"),
        (Endpoint.MODERATIONS, "Moderations"),
        (Endpoint.IMAGES_GENERATIONS, "Images"),
        (Endpoint.IMAGES_EDITS, "Images"),
        (Endpoint.VIDEOS, "Videos"),
        (Endpoint.RERANK, "Rerank"),
        (Endpoint.SCORE, "Score"),
    ],
)
def test_streaming_is_refused_in_the_name_of_the_api(endpoint: Endpoint, api: str) -> None:
    assert said(problem(line(endpoint, body=good_body(stream=True)), endpoint)) == (
        "streaming_unsupported",
        f"{api}: Streaming is not supported in the Batch API.",
        "body.stream",
    )


@pytest.mark.rule("V17")
@pytest.mark.parametrize("stream", [False, None, "true", 1, {}, [True]])
def test_only_true_streams(stream: object) -> None:
    """What else `stream` may hold is the backend's to judge."""
    assert problem_of(line(body=good_body(stream=stream)), 1, CHAT) is None


# -- what is not a problem -----------------------------------------------------------------------


@pytest.mark.parametrize("endpoint", list(Endpoint))
def test_a_good_line_has_no_problem(endpoint: Endpoint) -> None:
    assert problem_of(line(endpoint), 1, endpoint) is None


@pytest.mark.parametrize(
    "body",
    [
        good_body(temperature="hot", n=-1),
        good_body(messages=None),
        good_body(messages=[{"role": "wizard"}]),
        good_body(nested={"model": 1, "stream": True, "custom_id": None}),
    ],
)
def test_deeper_mistakes_are_left_to_the_backend(body: dict[str, Any]) -> None:
    assert problem_of(line(body=body), 1, CHAT) is None


def test_a_key_of_no_interest_may_be_there_twice_or_be_unknown() -> None:
    raw = line(priority=1)[:-1] + b', "priority": 2, "body2": {}, "body.model": 3}'
    assert problem_of(raw, 1, CHAT) is None


# -- which problem is told -----------------------------------------------------------------------


def test_the_first_problem_in_the_order_of_the_keys_is_told() -> None:
    """Everything is wrong; what is told is put right, until nothing is left."""
    wrong: dict[str, object] = {"custom_id": 1, "method": "GET", "url": "/x", "body": []}
    params = []
    for key, value in [
        ("custom_id", "a"),
        ("method", "POST"),
        ("url", str(CHAT)),
        ("body", {"stream": True}),
        ("body", {"stream": True, "model": "m"}),
        ("body", {"stream": True, "model": "m", "messages": []}),
        ("body", {"stream": False, "model": "m", "messages": []}),
    ]:
        params.append(problem(json.dumps(wrong).encode()).param)
        wrong[key] = value
    assert params == [
        "custom_id", "method", "url", "body", "body.model", "body.messages", "body.stream",
    ]  # fmt: skip
    assert problem_of(json.dumps(wrong).encode(), 1, CHAT) is None


# -- what a message may hold ---------------------------------------------------------------------


@pytest.mark.rule("V10")
def test_a_message_quotes_no_more_than_a_little_of_the_file() -> None:
    message = problem(line(method="x" * 1_000_000)).message
    assert message == f"Invalid value: '{'x' * 256}…'. Supported values are: 'POST'."


@given(st.text())
@modest
def test_a_quotation_is_whole_or_visibly_cut(text: str) -> None:
    shown = quoted(text)
    assert shown[0] == shown[-1] == "'"
    if len(text) <= 256:
        assert shown == f"'{text}'"
    else:
        assert shown == f"'{text[:256]}…'"


# -- depth ---------------------------------------------------------------------------------------


def nested(depth: int, core: str = "0") -> bytes:
    """JSON that is `depth` arrays and objects deep around `core`."""
    opening = "".join('{"a":' if n % 2 else "[" for n in range(depth))
    closing = "".join("]}"[n % 2] for n in reversed(range(depth)))
    return f"{opening}{core}{closing}".encode()


scalars = st.none() | st.booleans() | st.integers() | st.text(st.sampled_from('[]{}"\\a\n'))
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner) | st.dictionaries(st.text('[]{}"\\a'), inner),
    max_leaves=8,
)


def depth_of(value: object) -> int:
    match value:
        case list():
            return 1 + max(map(depth_of, value), default=0)
        case dict():
            return 1 + max(map(depth_of, value.values()), default=0)
        case _:
            return 0


@given(values, st.integers(MAX_DEPTH - 6, MAX_DEPTH + 2))
@modest
def test_depth_is_counted_outside_of_strings_only(value: object, around: int) -> None:
    raw = nested(around, json.dumps(value))
    assert too_deep(raw) is (around + depth_of(value) > MAX_DEPTH)


@pytest.mark.rule("V6")
def test_the_limit_of_depth_is_ours_and_holds_for_the_whole_line() -> None:
    """The line and its body are two levels, and the messages are the rest."""

    def at(depth: int) -> bytes:
        return line(body=good_body(messages=0)).replace(
            b'"messages": 0', b'"messages": ' + nested(depth - 2)
        )

    assert problem_of(at(MAX_DEPTH), 1, CHAT) is None
    assert LineChecker(CHAT).accept(at(MAX_DEPTH)) is not None
    assert problem(at(MAX_DEPTH + 1)).code == "invalid_json_line"
