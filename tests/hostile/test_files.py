"""What is inside an input file: a problem with its line, or bytes that reach the backend unchanged.

Nothing but an answer of the scripted backend tells legal bytes from refused ones, so each legal
line is compared with what the backend got, by its hash.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.hostile.conftest import MAX_LINE_BYTES
from tests.hostile.target import (
    MIB,
    QUICK_SWEEPS,
    SENTINEL,
    create,
    exchange,
    get,
    head,
    line,
    problems,
    unharmed,
)
from tests.support.scripted_backend import backend_process
from tests.support.server import ServerProcess, server

BOUNDARY: Final = "hostile-boundary"
OPENING: Final = (
    f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n'
).encode()
CLOSING: Final = f"\r\n--{BOUNDARY}--\r\n".encode()
NOT_JSON: Final = ("invalid_json_line", None)
BOM: Final = b"\xef\xbb\xbf"


def uploaded(running: ServerProcess, content: bytes | Iterable[bytes]) -> str:
    """The id of a file of these bytes, sent in chunks and without a length."""
    pieces = [content] if isinstance(content, bytes) else content

    def request() -> Iterator[bytes]:
        yield head(
            "POST",
            "/v1/files",
            {
                "Content-Type": f"multipart/form-data; boundary={BOUNDARY}",
                "Transfer-Encoding": "chunked",
            },
        )
        for piece in (OPENING, *pieces, CLOSING):
            yield b"%x\r\n%b\r\n" % (len(piece), piece)
        yield b"0\r\n\r\n"

    reply = exchange(running, request())
    assert reply.status == 200, reply
    file_id: str = reply.json["id"]
    return file_id


def endless(start: bytes, piece: bytes, size: int) -> Iterator[bytes]:
    """`start`, and `piece` until about `size` bytes have come."""
    yield start
    for _ in range(size // len(piece)):
        yield piece


# Line, and the problem that it is; every one of them has a good line before and behind it.
BAD_LINES: Final = {
    "brackets": (b"[" * 100_000, NOT_JSON),
    "closed brackets": (b"[" * 100_000 + b"]" * 100_000, NOT_JSON),
    "brackets in the body": (line("x", b'{"a":' * 100_000 + b"1" + b"}" * 100_000), NOT_JSON),
    "deeper than is allowed": (line("x", b'{"model":"m","a":%b%b}' % (b"[" * 511, b"]" * 511)),
                               NOT_JSON),
    "NaN": (line("x", b'{"model":"m","a":NaN}'), NOT_JSON),
    "infinity": (line("x", b'{"model":"m","a":-Infinity}'), NOT_JSON),
    "half of a surrogate pair": (line("x", b'{"model":"m","a":"\\udc00"}'), NOT_JSON),
    "a surrogate in UTF-8": (line("x", b'{"model":"m","a":"\xed\xa0\x80"}'), NOT_JSON),
    "no UTF-8": (line("x", b'{"model":"m","a":"\xff"}'), NOT_JSON),
    "Latin-1": (line("x", b'{"model":"m","a":"caf\xe9"}'), NOT_JSON),
    "an overlong NUL": (line("x", b'{"model":"m","a":"\xc0\x80"}'), NOT_JSON),
    "a NUL in a string": (line("x", b'{"model":"m","a":"\x00"}'), NOT_JSON),
    "a NUL behind the line": (line("x") + b"\x00", NOT_JSON),
    "NULs": (b"\x00" * 100, NOT_JSON),
    "a second byte-order mark": (BOM + line("x"), NOT_JSON),
    "UTF-16": (line("x").decode().encode("utf-16-le").replace(b"\n", b""), NOT_JSON),
    "an escape": (line("x", b'{"model":"m","a":"\\x41"}'), NOT_JSON),
    "two objects": (line("x") + line("y"), NOT_JSON),
    "a carriage return in a string": (line("x", b'{"model":"m","a":"\r"}'), NOT_JSON),
    "a custom_id of megabytes": (line("x" * MAX_LINE_BYTES), ("invalid_request", None)),
    "a custom_id of nothing": (line(""), ("invalid_type", "custom_id")),
    "a custom_id twice": (b'{"custom_id":"z",' + line("z")[1:], ("invalid_type", "custom_id")),
    "a custom_id twice, once in escapes": (b'{"c\\u0075stom_id":"z",' + line("z")[1:],
                                           ("invalid_type", "custom_id")),
    "a body twice": (line("x")[:-1] + b',"body":{"model":"m"}}', ("invalid_type", "body")),
    "a model twice": (line("x", b'{"model":"m","model":"test-model"}'),
                      ("invalid_type", "body.model")),
    "streaming hidden behind a second key": (
        line("x", b'{"model":"m","stream":true,"stream":false}'), ("invalid_type", "body.stream")),
    "a huge number for a model": (line("x", b'{"model":%b}' % (b"9" * 5_000)),
                                  ("invalid_type", "body.model")),
    "an array": (b"[%b]" % line("x"), ("invalid_request", None)),
    "a path for a URL": (line("x").replace(b"/v1/", b"/v1/../v1/"), ("invalid_url", "url")),
    "a NUL in the URL": (line("x").replace(b"completions", b"completions\\u0000"),
                         ("invalid_url", "url")),
}  # fmt: skip


@pytest.mark.rule("V6")
@pytest.mark.rule("V9")
@pytest.mark.rule("V22")
def test_every_bad_line_is_named_with_its_line_and_its_reason(running: ServerProcess) -> None:
    lines, expected = [line("good")], []
    for raw, (code, param) in BAD_LINES.values():
        assert b"\n" not in raw
        expected.append((len(lines) + 1, code, param))
        lines += [raw, line(f"good-{len(lines)}")]
    with unharmed(running, growth_bytes=40 * MIB):
        found = create(running, uploaded(running, b"\n".join(lines)))
        named = dict(zip([number for number, _, _ in expected], BAD_LINES, strict=True))
        assert [(named.get(one[0] or 0), *one) for one in problems(found)] == [
            (named[number], number, code, param) for number, code, param in expected
        ]
        for one in found["errors"]["data"]:
            assert len(one["message"]) < 1_000  # what it quotes is cut


LEGAL_BODIES: Final = {
    "huge numbers": b'{"model":"test-model","n":[%b,-1e999,1E-999,0.%b]}' % (
        b"9" * 5_000, b"1" * 5_000),
    "duplicate keys": b'{"n":1,"model":"test-model","n":2,"o":{"p":1,"p":{"p":2}}}',
    "as deep as is allowed": b'{"model":"test-model","a":%b%b}' % (b"[" * 510, b"]" * 510),
    "brackets in a string": b'{"model":"test-model","a":"' + b"[{" * 50_000 + b'"}',
    "a NUL in escapes": b'{"model":"test-model","a":"\\u0000\\u001f\\/"}',
    "a whole surrogate pair": b'{"model":"test-model","a":"\\ud83d\\ude00"}',
    "odd Unicode": '{"model":"test-model","a":"\u2028\u202e\ufeff\ufffe\U0010ffff"}'.encode(),
    "spaces everywhere": b' { \t"model"\t:\t"test-model" , "a" : [ 1 , 2 ] } ',
}  # fmt: skip


@pytest.mark.rule("V23")
async def test_legal_bytes_reach_the_backend_as_they_are(tmp_path: Path) -> None:
    async with backend_process() as backend:
        settings = {"retention": QUICK_SWEEPS}
        with server(tmp_path, backend.base_url, settings=settings) as running:
            lines = [line(f"{name} \U0001f600", body) for name, body in LEGAL_BODIES.items()]
            for start in (b"", BOM, BOM + b"\r\n \t\r\n"):
                for ending in (b"\n", b"\r\n"):
                    with unharmed(running):
                        batch = create(running, uploaded(running, start + ending.join(lines)))
                    assert (batch["status"], batch["error_file_id"]) == ("completed", None), batch
                    output = get(running, f"/v1/files/{batch['output_file_id']}/content").body
                    ids = {json.loads(one)["custom_id"] for one in output.splitlines()}
                    assert ids == {f"{name} \U0001f600" for name in LEGAL_BODIES}
                    arrived = {one.sha256 for one in (await backend.log()).arrivals}
                    sent = {body.strip() for body in LEGAL_BODIES.values()}
                    assert arrived == {hashlib.sha256(body).hexdigest() for body in sent}
                    await backend.clear()


@pytest.mark.rule("V22")
@pytest.mark.parametrize("where", ["alone", "before a good line", "behind a good line"])
def test_a_line_of_256_mb_is_a_problem_and_is_never_held(
    running: ServerProcess, where: str
) -> None:
    opening = b'{"custom_id":"endless","method":"POST","url":"/v1/completions","body":{"model":"'
    huge = endless(opening, SENTINEL.encode().ljust(MIB, b"x"), 256 * MIB)
    before = [line("one"), b"\n"] if where == "behind a good line" else []
    behind = [b"\n", line("one")] if where == "before a good line" else []
    with unharmed(running):
        found = create(running, uploaded(running, (*before, *huge, *behind)))
        number = 2 if before else 1
        assert problems(found) == [(number, "invalid_request", None)]
        assert found["errors"]["data"][0]["message"] == (
            f"This line is longer than the maximum of {MAX_LINE_BYTES} bytes."
        )
