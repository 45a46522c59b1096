"""JSON bodies of every route that takes one: refused with a 4xx that says what is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

import pytest

from tests.hostile.target import MIB, SENTINEL, exchange, head, line, post, refusal_of, unharmed
from tests.hostile.test_files import uploaded
from tests.hostile.test_multipart import FORM, begun
from tests.support.server import ServerProcess

ORDER: Final[dict[str, Any]] = {
    "input_file_id": "file-none",
    "endpoint": "/v1/completions",
    "completion_window": "24h",
}
UPLOAD: Final[dict[str, Any]] = {
    "filename": "in.jsonl",
    "purpose": "batch",
    "bytes": 10,
    "mime_type": "application/jsonl",
}
ROUTES: Final = {
    "/v1/batches": ORDER,
    "/v1/batches/validate": ORDER,
    "/v1/uploads": UPLOAD,
    "/v1/uploads/upload_none/complete": {"part_ids": []},
}


def with_member(route: str, member: bytes) -> bytes:
    """A good body of that route with one more member, spelled by the case."""
    return json.dumps(ROUTES[route]).encode()[:-1] + b"," + member + b"}"


# Members that no JSON has, or none that can be read without a loss.
NOT_JSON: Final = {
    "brackets": b'"x":' + b"[" * 100_000,
    "closed brackets": b'"x":' + b"[" * 100_000 + b"]" * 100_000,
    "objects": b'"x":' + b'{"a":' * 100_000,
    "a number of 100,000 digits": b'"x":' + b"9" * 100_000,
    "a number beyond every float": b'"x":1e400',
    "NaN": b'"x":NaN',
    "infinity": b'"x":-Infinity',
    "half of a surrogate pair": b'"x":"\\ud800"',
    "a surrogate in UTF-8": b'"x":"\xed\xa0\x80"',
    "a NUL in a string": b'"x":"a\x00b"',
    "a NUL between members": b'\x00"x":1',
    "a byte that is no UTF-8": b'"x":"\xff"',
    "an overlong slash": b'"x":"\xc0\xaf"',
    "an open string": b'"x":"' + b"a" * 1_000,
    "a line break in a string": b'"x":"a\r\nb"',
    "a comment": b'/* */ "x":1',
}


@pytest.mark.rule("H7")
@pytest.mark.parametrize("route", list(ROUTES))
def test_a_body_that_is_no_json_is_refused_on_every_route(
    running: ServerProcess, route: str
) -> None:
    with unharmed(running):
        bodies = {name: with_member(route, member) for name, member in NOT_JSON.items()}
        bodies["a byte-order mark"] = b"\xef\xbb\xbf" + json.dumps(ROUTES[route]).encode()
        bodies["UTF-16"] = json.dumps(ROUTES[route]).encode("utf-16")
        bodies["NULs"] = b"\x00" * 1_000
        for name, body in bodies.items():
            error = refusal_of(post(running, route, body), 400)
            assert error["message"] == "We could not parse the JSON body of your request.", name
            assert (error["param"], error["code"]) == (None, None)


WRONG: Final = [
    ("/v1/batches", b'"input_file_id":"a\\u0000b"', "input_file_id", "invalid_value"),
    ("/v1/batches", b'"input_file_id":"%b"' % (b"f" * 100_000), "input_file_id", "invalid_value"),
    ("/v1/batches", b'"endpoint":"/v1/completions\\u0000"', "endpoint", "invalid_value"),
    ("/v1/batches", b'"endpoint":"../v1/completions"', "endpoint", "invalid_value"),
    ("/v1/batches", b'"completion_window":1e300', "completion_window", "invalid_type"),
    ("/v1/batches", b'"metadata":{"k":1}', "metadata.k", "invalid_type"),
    ("/v1/batches", b'"metadata":{"k":"%b"}' % (b"v" * 513), "metadata.k",
     "string_above_max_length"),
    ("/v1/batches", b'"output_expires_after":{"anchor":"created_at","seconds":1%b}' % (b"0" * 300),
     "output_expires_after.seconds", "integer_above_max_value"),
    ("/v1/batches", b'"output_expires_after":{"anchor":"created_at","seconds":-1%b}' % (b"0" * 300),
     "output_expires_after.seconds", "integer_below_min_value"),
    ("/v1/batches", b'"output_expires_after":{"anchor":"created_at","seconds":true}',
     "output_expires_after.seconds", "invalid_type"),
    ("/v1/batches", b'"%b":1' % (b"x" * 1_000), "x" * 1_000, "unknown_parameter"),
    ("/v1/uploads", b'"bytes":1%b' % (b"0" * 300), "bytes", "integer_above_max_value"),
    ("/v1/uploads", b'"bytes":-1', "bytes", "integer_below_min_value"),
    ("/v1/uploads", b'"bytes":1.5', "bytes", "invalid_type"),
    ("/v1/uploads", b'"bytes":1e300', "bytes", "integer_above_max_value"),
    ("/v1/uploads", b'"filename":"%b"' % (b"f" * 5_000), "filename", "invalid_value"),
    ("/v1/uploads", b'"filename":[]', "filename", "invalid_type"),
    ("/v1/uploads/upload_none/complete", b'"part_ids":[1]', "part_ids[0]", "invalid_type"),
    ("/v1/uploads/upload_none/complete", b'"part_ids":["a","a"]', "part_ids", "invalid_value"),
    ("/v1/uploads/upload_none/complete", b'"md5":"' + b"\\u0000" * 32 + b'"', "md5",
     "invalid_value"),
]  # fmt: skip


@pytest.mark.rule("H13")
def test_json_with_values_that_cannot_be_meant_is_refused_by_name(running: ServerProcess) -> None:
    """Each member repeats one of the good body or adds to it, and of two the last one counts."""
    with unharmed(running):
        for route, member, param, code in WRONG:
            error = refusal_of(post(running, route, with_member(route, member)), 400)
            assert (error["param"], error["code"]) == (param, code), (route, member[:60], error)


@pytest.mark.rule("H13")
def test_of_a_key_that_is_there_twice_the_last_value_counts(running: ServerProcess) -> None:
    with unharmed(running):
        first = b'{"completion_window":"1h","input_file_id":7,"endpoint":"/v1/none",'
        reply = post(running, "/v1/batches", first + json.dumps(ORDER).encode()[1:])
        assert (reply.status, reply.json["completion_window"]) == (200, "24h")
        error = refusal_of(
            post(running, "/v1/batches", with_member("/v1/batches", b'"completion_window":"1h"')),
            400,
        )
        assert (error["param"], error["code"]) == ("completion_window", "invalid_value")


@pytest.mark.rule("B9")
def test_a_nul_and_every_plane_of_unicode_come_back_as_they_were(running: ServerProcess) -> None:
    metadata = {"k\u0000\u202e\ufeff": "\u0000\u0001\u007f\u2028\U0001f4a9\U0010ffff/../"}
    with unharmed(running):
        body = json.dumps({**ORDER, "metadata": metadata}).encode()
        reply = post(running, "/v1/batches", body)
        assert (reply.status, reply.json["metadata"]) == (200, metadata)


@pytest.mark.rule("H7")
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_an_endless_body_is_refused_while_it_comes(running: ServerProcess, framing: str) -> None:
    def endless() -> Iterator[bytes]:
        piece = b'"' + SENTINEL.encode().ljust(65_533) + b'",'
        if framing == "length":
            yield head("POST", "/v1/batches", {"Content-Length": 10**18})
        else:
            yield head("POST", "/v1/batches", {"Transfer-Encoding": "chunked"})
            piece = b"%x\r\n%b\r\n" % (len(piece), piece)
        for _ in range(4_096):  # 256 MiB, if anybody took them
            yield piece

    with unharmed(running):
        error = refusal_of(exchange(running, endless()), 413)
        assert error["message"] == f"The request body is larger than {MIB} bytes."


@pytest.mark.rule("H8")
@pytest.mark.parametrize(
    "length", ["99999999999999999999", "5e3", "+5", "0x5", "5, 5", "-0", "", "5\x0b", "\u0665"]
)
def test_a_length_that_is_no_length_is_refused(running: ServerProcess, length: str) -> None:
    with unharmed(running):
        reply = exchange(running, head("POST", "/v1/batches", {"Content-Length": length}) + b"{}")
        assert refusal_of(reply, 400)["code"] is None


@pytest.mark.rule("H14")
@pytest.mark.parametrize("path", ["/v1/batches", "/v1/files", "/v1/uploads/{}/parts"])
def test_a_request_that_ends_before_its_body_is_answered(running: ServerProcess, path: str) -> None:
    """The client has closed its side and reads on, as `nc -N` does."""
    form = {**FORM, "Content-Length": 1_000}
    path = path.format(begun(running))  # of one that is there, or 404 comes before the end
    with unharmed(running):
        reply = exchange(running, head("POST", path, form) + b"--b\r\n", half_close=True)
        assert refusal_of(reply, 400)["message"] == "The request was cut short before its end."
        reply = exchange(running, head("POST", path, form)[:-9], half_close=True)
        assert refusal_of(reply, 400)["message"] == "The request was cut short before its end."


@pytest.mark.rule("H14")
def test_a_whole_request_is_answered_although_its_client_sends_no_more(
    running: ServerProcess,
) -> None:
    # Long enough to be checked that the end of what is sent is there before the answer.
    content = b"\n".join(line(str(number)) for number in range(20_000))
    body = json.dumps({**ORDER, "input_file_id": uploaded(running, content)}).encode()
    with unharmed(running):
        request = head("POST", "/v1/batches/validate", {"Content-Length": len(body)}) + body
        reply = exchange(running, request, half_close=True)
        assert (reply.status, reply.json["lines"]) == (200, 20_000)
        assert reply.headers["connection"] == "close"
        two = head("GET", "/healthz/live") * 2 + head("GET", "/healthz/live")[:-5]
        assert exchange(running, two, half_close=True).json == {"status": "alive"}
