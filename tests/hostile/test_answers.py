"""Answers of a backend that no client should ever see, beside some that are only odd.

What is JSON goes into the output file byte for byte; everything else costs its own line, under a
code that says why. Either way both files stay JSON Lines, and the worker's memory stays bounded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pytest

from tests.hostile.backend import Exchange, endless, hostile_backend, raw, sending
from tests.hostile.target import MIB, QUICK_SWEEPS, SENTINEL, create, get, line, unharmed
from tests.hostile.test_files import uploaded
from tests.support.server import ServerProcess, server

MAX_ANSWER_BYTES: Final = MIB
CHUNKED: Final = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
X64K: Final = SENTINEL.encode().ljust(65_536, b"x")
CHUNK: Final = b"10000\r\n" + X64K + b"\r\n"

INVALID: Final = "invalid_upstream_response"
TOO_LARGE: Final = "response_too_large"
BROKEN: Final = "upstream_unreachable"
TIMED_OUT: Final = "request_timeout"

NOT_JSON: Final = {
    "brackets": b"[" * 100_000,
    "closed brackets": b"[" * 100_000 + b"]" * 100_000,
    "objects": b'{"a":' * 100_000,
    "NaN": b'{"logprob":NaN}',
    "infinity": b'{"logprob":-Infinity}',
    "no UTF-8": b'{"a":"\xff"}',
    "a surrogate in UTF-8": b'{"a":"\xed\xa0\x80"}',
    "half of a surrogate pair": b'{"a":"\\ud83d"}',
    "a NUL in a string": b'{"a":"\x00"}',
    "a NUL behind it": b"{}\x00",
    "a line break in a string": b'{"a":"\n"}',
    "a byte-order mark": b"\xef\xbb\xbf{}",
    "two objects": b'{}\n{"custom_id":"forged"}',
    "a forged line": b'{}},"error":null}\n{"id":"forged"',
    "UTF-16": '{"a":1}'.encode("utf-16"),
    "nothing": b"",
    "white space": b" \r\n\t",
    "a string": b'"text"',
}

FAILED: Final[dict[str, tuple[Exchange, str]]] = {
    **{name: (sending(body), INVALID) for name, body in NOT_JSON.items()},
    "endless chunks": (endless(CHUNKED, CHUNK), TOO_LARGE),
    "endless without a length": (endless(b"HTTP/1.1 200 OK\r\n\r\n", X64K), TOO_LARGE),
    "an enormous length": (
        endless(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n", X64K), TOO_LARGE),
    "an endless header": (endless(b"HTTP/1.1 200 OK\r\nA: ", X64K), INVALID),
    "endless headers": (endless(b"HTTP/1.1 200 OK\r\n", b"A: b\r\n" * 10_000), INVALID),
    "an endless status": (endless(b"HTTP/1.1 200 ", X64K), INVALID),
    "an endless chunk extension": (endless(CHUNKED + b"1;", X64K), TIMED_OUT),
    "endless early hints": (endless(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1_000), INVALID),
    "a length too long": (
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{}", then_close=True), BROKEN),
    "a length too short": (raw(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n" + b'{"a":1}'),
                           INVALID),
    "two lengths": (
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}"), INVALID),
    "a negative length": (raw(b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\n{}"), INVALID),
    "a length that is none": (raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2e0\r\n\r\n{}"), INVALID),
    "a chunk of a length that overflows": (raw(CHUNKED + b"ffffffffffffffffff\r\n{}"), INVALID),
    "a control character in a header": (
        raw(b"HTTP/1.1 200 OK\r\nA: \x00\r\nContent-Length: 2\r\n\r\n{}"), INVALID),
}  # fmt: skip

KEPT: Final = {
    "huge numbers": b'{"n":[%b,-1e999,0.%b]}' % (b"9" * 5_000, b"1" * 5_000),
    "duplicate keys": b'{"a":1,"a":2,"usage":null,"usage":{"total_tokens":"many"}}',
    "a NUL in escapes": b'{"a":"\\u0000\\u2028"}',
    "odd Unicode": '{"a":"\u2028\u2029\u0085\u202e\ufeff\U0010ffff"}'.encode(),
    "deep": b'{"a":' + b"[" * 300 + b"]" * 300 + b"}",
    "brackets in a string": b'{"a":"' + b"[{" * 100_000 + b'"}',
    "nonsense for usage": b'{"usage":{"prompt_tokens":-5,"completion_tokens":1e99}}',
    "as large as is allowed": b'{"a":"' + b"x" * (MAX_ANSWER_BYTES - 8) + b'"}',
}
# Whose bytes change on the way, in nothing that JSON sees.
SPACED: Final = {"line breaks": (b'\r\n{\r\n"a" :\r1\n}\n', b'{  "a" : 1 }')}
ERROR_IN_200: Final = "an error in a 200"
REFUSED: Final = {
    "refused with no JSON": b'{"a":NaN}',
    "refused with brackets": b"[" * 100_000,
    "refused with no UTF-8": b'{"error":"\xff"}',
}


def forged(body: bytes, status: str = "200 OK") -> Exchange:
    """A good answer under an id that would break out of its place in the line."""
    header = 'X-Request-Id: ","custom_id":"forged\r\nX-Request-Id: \u00e9\\\r\n'
    return sending(body, headers=header, status=status)


def result_lines(running: ServerProcess, file_id: str) -> dict[str, tuple[bytes, Any]]:
    """Every line of a result file, by custom_id: its bytes and what they mean."""
    lines = get(running, f"/v1/files/{file_id}/content").body.split(b"\n")
    assert lines.pop() == b""
    found = {}
    for one in lines:
        value = json.loads(one, parse_int=str)  # an integer of 5,000 digits is legal, but slow
        assert list(value) == ["id", "custom_id", "response", "error"]
        assert value["custom_id"] not in found
        found[value["custom_id"]] = (one, value)
    return found


@pytest.mark.rule("R1")
@pytest.mark.rule("R2")
@pytest.mark.rule("R3")
def test_every_hostile_answer_costs_its_line_at_most(tmp_path: Path) -> None:
    answers = {name: exchange for name, (exchange, _) in FAILED.items()}
    answers |= {name: forged(body) for name, body in KEPT.items()}
    answers |= {name: sending(body) for name, (body, _) in SPACED.items()}
    answers |= {name: forged(body, "422 No") for name, body in REFUSED.items()}
    answers[ERROR_IN_200] = sending(b'{"error":{"message":"no","code":422}}')
    with hostile_backend(answers) as url:
        backend = {"base_url": url, "max_answer_bytes": MAX_ANSWER_BYTES, "total_timeout_s": 1.5}
        settings = {
            "retention": QUICK_SWEEPS,
            "retry": {"max_attempts": 1},
            "backend": [backend],
        }
        with server(tmp_path, settings=settings) as running:
            lines = [
                line(name, b'{"model":"test-model","user":"%b"}' % name.encode())
                for name in answers
            ]
            # The budget for what answers may hold: 60 of them at once, a MiB each.
            with unharmed(running, growth_bytes=64 * MIB):
                batch = create(running, uploaded(running, b"\n".join(lines)))
            assert batch["status"] == "completed", batch
            errors = result_lines(running, batch["error_file_id"])
            output = result_lines(running, batch["output_file_id"])
    codes = {name: value["error"] and value["error"]["code"] for name, (_, value) in errors.items()}
    expected = {name: code for name, (_, code) in FAILED.items()} | dict.fromkeys(REFUSED)
    assert codes == expected | {ERROR_IN_200: None}
    assert errors[ERROR_IN_200][1]["response"]["status_code"] == "422"
    for name, body in REFUSED.items():
        response = errors[name][1]["response"]
        assert (response["status_code"], response["body"]["error"]) == (
            "422",
            {
                "message": "The backend answered with status 422 and "
                f"{len(body)} bytes that are not JSON.",
                "type": "upstream_error",
                "param": None,
                "code": None,
            },
        )
    kept = KEPT | {name: body for name, (_, body) in SPACED.items()}
    assert output.keys() == kept.keys()
    for name, body in kept.items():
        assert b'"body":%b},"error":null}' % body in output[name][0], name
        assert "forged" not in output[name][1]["response"]["request_id"]
    assert SENTINEL not in str(errors)
