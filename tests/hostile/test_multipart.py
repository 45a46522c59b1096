"""Forms that are broken, that lie about their length, or whose file has an odd name."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Final
from urllib.parse import unquote

import pytest

from tests.hostile.target import (
    MIB,
    SENTINEL,
    exchange,
    get,
    head,
    line,
    post,
    refusal_of,
    unharmed,
)
from tests.support.server import ServerProcess

MAX_FILE_BYTES: Final = 64 * MIB  # more than any process may grow by
FORM: Final = {"Content-Type": "multipart/form-data; boundary=b"}
CONTENT: Final = line("one") + b"\n"
PURPOSE: Final = b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
MALFORMED: Final = "The multipart form could not be parsed: it is malformed or cut short."


def file_part(filename: bytes, content: bytes = CONTENT, *, name: bytes = b"file") -> bytes:
    return b'--b\r\nContent-Disposition: form-data; name="%b"; filename="%b"\r\n\r\n%b\r\n' % (
        name,
        filename,
        content,
    )


FILE: Final = file_part(b"in.jsonl")
WHOLE: Final = PURPOSE + FILE + b"--b--\r\n"


def files(running: ServerProcess) -> int:
    return len(get(running, "/v1/files").json["data"])


def begun(running: ServerProcess) -> str:
    """The id of an upload in parts."""
    order = {"filename": "a.jsonl", "purpose": "batch", "bytes": 10, "mime_type": "x"}
    upload: str = post(running, "/v1/uploads", json.dumps(order).encode()).json["id"]
    return upload


def test_a_form_that_is_cut_anywhere_is_refused_and_leaves_nothing(running: ServerProcess) -> None:
    """The server cannot know that more was meant to come: the length is that of what was sent."""
    there, blobs = files(running), running.blob_sizes()
    with unharmed(running):
        for stop in range(len(WHOLE) - 3):
            error = refusal_of(post(running, "/v1/files", WHOLE[:stop], FORM), 400)
            assert error["message"] == MALFORMED, WHOLE[:stop]
    assert (files(running), running.blob_sizes()) == (there, blobs)


def test_a_part_of_an_upload_that_is_cut_anywhere_leaves_nothing(running: ServerProcess) -> None:
    parts = f"/v1/uploads/{begun(running)}/parts"
    whole = file_part(b"blob", name=b"data") + b"--b--\r\n"
    blobs = running.blob_sizes()
    with unharmed(running):
        for stop in range(0, len(whole) - 3, 7):
            reply = post(running, parts, whole[:stop], FORM)
            assert refusal_of(reply, 400)["message"] == MALFORMED
    assert running.blob_sizes() == blobs


def repeated(piece: bytes, start: bytes, size: int = 512 * MIB) -> Iterator[bytes]:
    """A request whose body begins with `start` and never ends."""
    yield head("POST", "/v1/files", {**FORM, "Transfer-Encoding": "chunked"})
    yield b"%x\r\n%b\r\n" % (len(start), start)
    for _ in range(size // len(piece)):
        yield b"%x\r\n%b\r\n" % (len(piece), piece)


X64K: Final = SENTINEL.encode().ljust(65_536, b"x")
DISPOSITION: Final = b'--b\r\nContent-Disposition: form-data; name="'
# What never ends, and how the body gets there.
ENDLESS: Final[Mapping[str, tuple[bytes, bytes, str]]] = {
    "file": (PURPOSE + FILE[:-2], X64K, "File is too large."),
    "field": (DISPOSITION + b'purpose"\r\n\r\n', X64K, "The form field 'purpose' is too long."),
    "unknown field": (DISPOSITION + b'x"\r\n\r\n', X64K, "The form field 'x' is too long."),
    "field name": (DISPOSITION, X64K, MALFORMED),
    "header name": (b"--b\r\n", X64K, MALFORMED),
    "header value": (b"--b\r\nX: ", X64K, MALFORMED),
    "headers": (b"--b\r\n", b"X: y\r\n" * 10_000, MALFORMED),
    "parts": (b"", (DISPOSITION + b'x"\r\n\r\ny\r\n') * 1_000,
              "Too many form fields: at most 32 are read."),
    "preamble": (b"", X64K, MALFORMED),
    "what follows the form": (WHOLE, X64K, "File is too large."),
    "almost boundaries": (PURPOSE + FILE[:-2], b"\r\n--a\r\n--" * 6_000, "File is too large."),
}  # fmt: skip


@pytest.mark.rule("F12")
@pytest.mark.parametrize("what", list(ENDLESS))
def test_whatever_has_no_end_is_refused_while_it_comes(running: ServerProcess, what: str) -> None:
    start, piece, message = ENDLESS[what]
    there, blobs = files(running), running.blob_sizes()
    with unharmed(running):
        reply = exchange(running, repeated(piece, start or piece))
        assert refusal_of(reply, 400)["message"] == message
    assert (files(running), running.blob_sizes()) == (there, blobs)


@pytest.mark.rule("F12")
@pytest.mark.parametrize("boundary", ["", '""', "b" * 300, "\xff", '"b\\"', "b; boundary=c"])
def test_an_odd_boundary_is_refused(running: ServerProcess, boundary: str) -> None:
    there = files(running)
    with unharmed(running):
        form = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        refusal_of(post(running, "/v1/files", WHOLE.replace(b"--b", b"--x"), form), 400)
    assert files(running) == there


@pytest.mark.rule("H8")
def test_what_is_beyond_the_announced_length_is_no_part_of_the_form(running: ServerProcess) -> None:
    there = files(running)
    with unharmed(running):
        short = post(running, "/v1/files", WHOLE, {**FORM, "Content-Length": len(WHOLE) - 20})
        assert refusal_of(short, 400)["message"] == MALFORMED
        more = post(running, "/v1/files", WHOLE + b"GET", {**FORM, "Content-Length": len(WHOLE)})
        assert more.status == 200
    assert files(running) == there + 1


# The name as it is sent, and as it comes back.
NAMES: Final = {
    "../../../../etc/passwd.jsonl": "../../../../etc/passwd.jsonl",
    "/etc/cron.d/x.jsonl": "/etc/cron.d/x.jsonl",
    "C:\\Windows\\x.jsonl": "x.jsonl",
    "%2e%2e%2fx.jsonl": "%2e%2e%2fx.jsonl",
    "nul\x00.jsonl": "nul_.jsonl",
    "line%0D%0AX-Smuggled: 1.jsonl": "line__X-Smuggled: 1.jsonl",
    "\u202egnp.jsonl": "\u202egnp.jsonl",
    "\U0001f4a9\u0301\u200d.jsonl": "\U0001f4a9\u0301\u200d.jsonl",
    "\x9b31m.jsonl": "_31m.jsonl",
    "$(id) `id` ; rm -rf ~ | x.jsonl": "$(id) `id` ; rm -rf ~ | x.jsonl",
    ".jsonl": ".jsonl",
    "n" * 4_000 + ".jsonl": "n" * 4_000 + ".jsonl",
}


@pytest.mark.rule("F4")
def test_a_filename_is_a_label_and_never_a_path_or_a_header(running: ServerProcess) -> None:
    root = running.directory
    before = {path for path in root.rglob("*") if "blobs" not in path.parts}
    with unharmed(running):
        for sent, kept in NAMES.items():
            form = PURPOSE + file_part(sent.encode()) + b"--b--\r\n"
            reply = post(running, "/v1/files", form, FORM)
            assert (reply.status, reply.json["filename"]) == (200, kept), (sent, reply)
            download = get(running, f"/v1/files/{reply.json['id']}/content")
            assert download.body == CONTENT
            assert "x-smuggled" not in download.headers
            disposition = download.headers["content-disposition"]
            if not kept.isascii():
                assert unquote(disposition.partition("UTF-8''")[2]) == kept
    assert {path for path in root.rglob("*") if "blobs" not in path.parts} == before


@pytest.mark.rule("F4")
@pytest.mark.parametrize(
    ("raw", "kept"),
    [
        (b"caf\xe9.jsonl", "caf\ufffd.jsonl"),
        (b"\xed\xa0\x80.jsonl", "\ufffd\ufffd\ufffd.jsonl"),
        (b"\xc0\xae\xc0\xae/x.jsonl", "\ufffd\ufffd\ufffd\ufffd/x.jsonl"),
    ],
    ids=["Latin-1", "surrogate", "overlong dots"],
)
def test_what_is_no_utf_8_in_a_filename_is_replaced(
    running: ServerProcess, raw: bytes, kept: str
) -> None:
    with unharmed(running):
        reply = post(running, "/v1/files", PURPOSE + file_part(raw) + b"--b--\r\n", FORM)
        assert (reply.status, reply.json["filename"]) == (200, kept)


@pytest.mark.rule("F14")
@pytest.mark.parametrize(
    "path",
    [
        *("..", "%2e%2e", "../../etc/passwd", "%2e%2e%2f%2e%2e%2fetc%2fpasswd"),
        *("..%5c..%5cx", "%00", "a" * 10_000),
    ],
)
def test_an_id_is_never_a_path(running: ServerProcess, path: str) -> None:
    with unharmed(running):
        for target in (f"/v1/files/{path}", f"/v1/files/{path}/content", f"/v1/batches/{path}"):
            reply = get(running, target)
            assert reply.status in (400, 404), reply
            assert reply.error["type"] == "invalid_request_error"
