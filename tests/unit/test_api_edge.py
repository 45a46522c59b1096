"""Pure decisions of the edge: hosts, origins, filenames in headers, what looks like JSONL."""

from __future__ import annotations

import re
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchline.api.edge import is_loopback
from batchline.api.files import disposition
from batchline.domain.errors import InvalidRequest
from batchline.service.file_rules import HEAD_BYTES, check_begins_like_jsonl


@pytest.mark.rule("H10")
@pytest.mark.parametrize(
    "host", ["localhost", "localhost:1", "127.0.0.1", "127.0.0.1:80", "127.1.2.3", "[::1]:1"]
)
def test_loopback_hosts(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.rule("H10")
@pytest.mark.parametrize(
    "host",
    [
        *("", ":80", "example.com", "localhost.evil.com", "127.0.0.1.evil.com", "127.1"),
        *("2130706433", "10.0.0.1", "[::]", "[::1", "[::1]x", "[evil]", "::1"),
        "0.0.0.0",  # noqa: S104  # a Host header, not an address to bind
    ],
)
def test_hosts_that_are_not_loopback(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.rule("H10")
@given(st.text(max_size=40))
def test_no_host_header_raises(host: str) -> None:
    is_loopback(host)


@pytest.mark.rule("F15")
@given(st.text(st.characters(codec="utf-8"), max_size=60))
def test_a_filename_comes_back_from_its_header(filename: str) -> None:
    header = disposition(filename)
    assert header.isascii()
    assert header.isprintable()
    begin, extended, encoded = header.partition("; filename*=UTF-8''")
    quoted = begin.removeprefix('attachment; filename="').removesuffix('"')
    plain = re.sub(r"\\(.)", r"\1", quoted)
    assert unquote(encoded) == filename if extended else plain == filename


@pytest.mark.rule("F9")
@pytest.mark.parametrize(
    ("filename", "head", "is_whole"),
    [
        ("a.jsonl", b'{"a":1}\n{broken', True),
        ("a.jsonl", b'\xef\xbb\xbf{"a":1}', True),
        ("a.jsonl", b'\n \r\n{"a":1}\r\n', True),
        ("a.JSONL", b"7\n", True),
        ("upload", b'{"a":1}', True),
        ("a.jsonl", b'{"long":"' + b"x" * HEAD_BYTES, False),
    ],
)
def test_what_begins_like_jsonl_is_taken(filename: str, head: bytes, is_whole: bool) -> None:
    check_begins_like_jsonl(filename, head, is_whole=is_whole)


@pytest.mark.rule("F9")
@pytest.mark.parametrize(
    ("filename", "head", "is_whole"),
    [
        ("a.jsonl", b"", True),
        ("a.jsonl", b"\n\n", True),
        ("a.jsonl", b'{"a":1', True),
        ("a.jsonl", b'{"a":1 x\n{"a":1}\n', True),
        ("a.jsonl", b'{"a":"\xff"}\n', True),
        ("a.jsonl", b"x" * HEAD_BYTES, False),
        ("a.json", b'{"a":1}', True),
        ("jsonl", b"7\n", True),
        ("a.", b'{"a":1}', True),
    ],
)
def test_what_does_not_is_refused(filename: str, head: bytes, is_whole: bool) -> None:
    with pytest.raises(InvalidRequest, match=r"Must be \.jsonl"):
        check_begins_like_jsonl(filename, head, is_whole=is_whole)
