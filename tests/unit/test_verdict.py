"""What an answer or an error means for its line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from email.utils import formatdate

import pytest

from batchline.domain.attempts import Outcome
from batchline.domain.errors import NotSent, SentUnanswered
from batchline.domain.model import Usage
from batchline.executor import verdict
from batchline.executor.transport.contract import Answer
from batchline.executor.verdict import Verdict

NOW = 1_750_000_000.0
LINE_ID = "batch_req_" + "0" * 32
CUSTOM_ID = b'"caf\\u00e9"'
SECRET = b"what-the-user-sent"
GOOD = b'{"id":"x","usage":{"prompt_tokens":11,"completion_tokens":7,"total_tokens":18}}'


def answered(
    status: int,
    body: bytes = b"{}",
    *,
    listed: bool = False,
    headers: Mapping[str, str] | None = None,
) -> Verdict:
    """The verdict; the quick look has none or the same."""
    answer = Answer(status=status, headers=headers or {}, body=body)
    found = verdict.of_answer(
        answer, line_id=LINE_ID, custom_id_raw=CUSTOM_ID, model_is_listed=listed, now=NOW
    )
    usual = verdict.of_usual(answer, LINE_ID, CUSTOM_ID)
    assert usual in (None, (found.result, found.usage))
    assert usual is None or found.outcome is Outcome.ANSWERED
    return found


def error(code: str) -> bytes:
    return json.dumps({"error": {"message": "no", "type": "t", "code": code}}).encode()


def test_a_good_answer_is_spliced_into_the_output_line() -> None:
    found = answered(200, GOOD, headers={"x-request-id": "req-1"})
    assert found.outcome is Outcome.ANSWERED
    assert found.usage == Usage(input_tokens=11, output_tokens=7, total_tokens=18)
    assert found.answered
    assert found.result == (
        b'{"id":"%b","custom_id":%b,"response":{"status_code":200,"request_id":"req-1","body":%b},'
        b'"error":null}\n' % (LINE_ID.encode(), CUSTOM_ID, GOOD)
    )


def test_a_good_answer_needs_the_quick_look_only() -> None:
    answer = Answer(status=200, headers={}, body=GOOD)
    assert verdict.of_usual(answer, LINE_ID, CUSTOM_ID) is not None


@pytest.mark.parametrize("status", [200, 201, 299])
def test_every_2xx_with_json_is_an_answer(status: int) -> None:
    assert answered(status).outcome is Outcome.ANSWERED


@pytest.mark.parametrize(
    ("body", "status", "outcome"),
    [
        (b'{"error":{"message":"no","code":429}}', 429, Outcome.SHED),
        (b'{"error":{"message":"no","code":502},"user_id":"u"}', 502, Outcome.BROKEN),
        (b'{"error":{"message":"no","status_code":422}}', 422, Outcome.REFUSED),
        (b'{"error":{"message":"no","code":"rate_limited"}}', 500, Outcome.BROKEN),
        (b'{"error":{"code":"insufficient_quota"}}', 500, Outcome.BLOCKED),
        (b'{"error":"model crashed","usage":null}', 500, Outcome.BROKEN),
        (b'{"error":{"code":200}}', 500, Outcome.BROKEN),
    ],
)
def test_a_200_that_is_an_error_and_nothing_else_is_the_answer_that_it_names(
    body: bytes, status: int, outcome: Outcome
) -> None:
    found = answered(200, body)
    assert (found.outcome, found.reason) == (outcome, f"status {status}")
    assert found.result is not None
    response = json.loads(found.result)["response"]
    assert (response["status_code"], response["body"]) == (status, json.loads(body))


@pytest.mark.parametrize(
    "body",
    [
        b'{"id":"resp","status":"failed","error":{"code":"server_error"},"output":[]}',
        b'{"choices":[],"error":null}',
        b'{"error":null}',
        b'{"choices":[{"text":"\\"error\\""}]}',
        b'[{"error":1}]',
    ],
)
def test_a_200_with_an_error_beside_a_result_is_an_answer(body: bytes) -> None:
    assert answered(200, body).outcome is Outcome.ANSWERED


def test_a_wrong_usage_is_unknown_usage_and_no_bad_answer() -> None:
    found = answered(200, b'{"usage":"lots"}')
    assert (found.outcome, found.result is None) == (Outcome.ANSWERED, False)
    assert found.usage in (None, Usage())


@pytest.mark.parametrize(
    "body", [b"", b"<html>" + SECRET, b'{"a":"\xff"}', b"[" * 100_000], ids=len
)
def test_a_2xx_that_is_no_json_is_broken_and_shows_nothing_of_it(body: bytes) -> None:
    found = answered(200, body)
    assert found.outcome is Outcome.BROKEN
    assert found.answered
    assert found.reason == f"status 200 with {len(body)} bytes that are not JSON"
    assert found.result is not None
    line = json.loads(found.result)
    assert (line["response"], line["error"]["code"]) == (None, "invalid_upstream_response")


@pytest.mark.parametrize(
    ("status", "code", "listed", "outcome"),
    [
        (400, "invalid_value", False, Outcome.REFUSED),
        (422, "x", False, Outcome.REFUSED),
        (404, "model_not_found", False, Outcome.REFUSED),
        (404, "model_not_found", True, Outcome.AWAY),
        (404, "not_found", True, Outcome.REFUSED),
        (401, "invalid_api_key", False, Outcome.BLOCKED),
        (402, "x", False, Outcome.BLOCKED),
        (403, "x", False, Outcome.BLOCKED),
        (429, "rate_limit_exceeded", False, Outcome.SHED),
        (429, "insufficient_quota", False, Outcome.BLOCKED),
        (400, "billing_hard_limit_reached", False, Outcome.BLOCKED),
        (503, "x", False, Outcome.SHED),
        (408, "x", False, Outcome.BROKEN),
        (500, "x", False, Outcome.BROKEN),
        (502, "x", False, Outcome.BROKEN),
    ],
)
def test_whose_fault_an_error_is(status: int, code: str, listed: bool, outcome: Outcome) -> None:
    found = answered(status, error(code), listed=listed)
    assert found.outcome is outcome
    assert found.reason == f"status {status}"
    assert found.usage is None


def test_a_refusal_goes_to_the_error_file_with_its_body_as_it_came() -> None:
    body = b'{"error": {"message": "caf\xc3\xa9", "code": "x", "n": 1e400}}'
    found = answered(400, body, headers={"x-request-id": "req-1"})
    assert found.result is not None
    assert b'"status_code":400,"request_id":"req-1","body":%b' % body in found.result


def test_an_error_that_is_no_json_is_wrapped_with_its_status_and_size_only() -> None:
    found = answered(400, b"<html>" + SECRET)
    assert found.outcome is Outcome.REFUSED
    assert found.result is not None
    assert SECRET not in found.result
    assert SECRET.decode() not in found.reason
    response = json.loads(found.result)["response"]
    assert response["status_code"] == 400
    assert "400" in response["body"]["error"]["message"]


def test_without_a_request_id_the_line_still_has_one() -> None:
    found = answered(200, GOOD)
    assert found.result is not None
    assert json.loads(found.result)["response"]["request_id"]


def test_nothing_sent_leaves_the_line_as_it_was() -> None:
    found = verdict.of_error(NotSent("refused"), line_id=LINE_ID, custom_id_raw=CUSTOM_ID)
    assert found == Verdict(Outcome.NOT_SENT, "refused")


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ("timeout", "request_timeout"),
        ("reset", "upstream_unreachable"),
        ("malformed", "invalid_upstream_response"),
        ("too_large", "response_too_large"),
    ],
)
def test_sent_without_an_answer_is_broken_under_a_code_of_its_own(reason: str, code: str) -> None:
    found = verdict.of_error(
        SentUnanswered("why", reason=reason), line_id=LINE_ID, custom_id_raw=CUSTOM_ID
    )
    assert (found.outcome, found.reason, found.answered) == (Outcome.BROKEN, "why", False)
    assert found.result is not None
    line = json.loads(found.result)
    assert line["custom_id"] == "café"
    assert (line["id"], line["response"], line["error"]["code"]) == (LINE_ID, None, code)


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": formatdate(NOW + 30, usegmt=True)}, 30.0),
        ({"retry-after": formatdate(NOW - 30, usegmt=True)}, 0.0),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "²"}, None),
        ({"retry-after": "Mon, 99 Foo 99999999999 00:00:00 GMT"}, None),
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after-ms": "-5"}, 0.0),
        ({"retry-after-ms": "soon"}, None),
        ({"retry-after-ms": "nan"}, 0.0),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
    ],
)
def test_how_long_the_backend_asks_to_wait(headers: dict[str, str], wait_s: float | None) -> None:
    assert answered(429, headers=headers).retry_after_s == wait_s


PAGE = b"<html>502 Bad Gateway</html>"


@pytest.mark.parametrize("body", [PAGE, b"", b'{"message":"no healthy upstream"}', b"[1]", b"{"])
@pytest.mark.parametrize("status", [502, 504, 520, 527, 530])
def test_an_answer_without_an_error_of_the_api_may_be_a_proxys(status: int, body: bytes) -> None:
    found = answered(status, body)
    assert (found.outcome, found.page, found.cut_off) == (Outcome.BROKEN, status, True)
    assert found.answered
    assert found.result is not None


def test_a_503_is_taken_at_its_word_but_known_for_a_page() -> None:
    found = answered(503, PAGE)
    assert (found.outcome, found.page, found.cut_off) == (Outcome.SHED, 503, False)
    asked = answered(503, PAGE, headers={"retry-after": "3"})
    assert (asked.outcome, asked.page, asked.retry_after_s) == (Outcome.SHED, 0, 3.0)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (502, error("bad_gateway")),
        (503, error("overloaded")),
        (504, b'{"error":"a text"}'),
        (502, b'{"object":"error","message":"as vLLM once had it"}'),
        (500, PAGE),
        (501, PAGE),
        (404, PAGE),
        (429, PAGE),
    ],
)
def test_what_the_backend_says_itself_is_no_page(status: int, body: bytes) -> None:
    found = answered(status, body)
    assert (found.page, found.cut_off) == (0, False)
