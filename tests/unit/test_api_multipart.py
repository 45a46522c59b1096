"""The form parser on bodies cut anywhere: `docs/compatibility.md`, F1 to F4 and F12."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.types import Message

from batchline.api.file_form import receive_file
from batchline.domain.errors import InvalidRequest
from batchline.domain.model import File, Purpose
from batchline.service.files import IncomingFile

BOUNDARY = "b0undary"


class Taken(IncomingFile):
    """An upload that keeps what it is given in memory."""

    def __init__(self) -> None:
        self.content = b""
        self.finished: tuple[str, Purpose, int | None] | None = None

    async def write(self, chunk: bytes) -> None:
        self.content += chunk

    async def finish(
        self, *, filename: str, purpose: Purpose, expires_after_s: int | None = None
    ) -> File:
        self.finished = (filename, purpose, expires_after_s)
        return None  # type: ignore[return-value]  # the row is not what is tested here


def received(body: bytes, cuts: list[int]) -> Taken:
    """What an upload gets from `body` when it comes in pieces that end at `cuts`."""
    ends = sorted({0, len(body), *(cut % (len(body) + 1) for cut in cuts)})
    pieces = [body[start:stop] for start, stop in pairwise(ends)]
    messages: list[Message] = [
        {"type": "http.request", "body": piece, "more_body": True} for piece in pieces
    ]
    messages.append({"type": "http.request", "body": b"", "more_body": False})
    messages.reverse()

    async def receive() -> Message:
        return messages.pop()

    content_type = f'multipart/form-data; boundary="{BOUNDARY}"'.encode()
    headers = [(b"content-type", content_type)]
    request = Request({"type": "http", "method": "POST", "headers": headers}, receive)
    upload = Taken()
    asyncio.run(receive_file(request, upload, max_bytes=10**6))
    return upload


def form(content: bytes, *, file_first: bool) -> bytes:
    parts = [
        b'Content-Disposition: form-data; name="purpose"\r\n\r\nbatch',
        b'Content-Disposition: form-data; name="expires_after[anchor]"\r\n\r\ncreated_at',
        b'Content-Disposition: form-data; name="expires_after[seconds]"\r\n\r\n7200',
        b'content-disposition: form-data; name="file"; filename="a.jsonl"\r\n'
        b"Content-Type: application/octet-stream\r\n\r\n" + content,
    ]
    if file_first:
        parts.reverse()
    delimiter = f"--{BOUNDARY}\r\n".encode()
    return b"\r\n".join(delimiter + part for part in parts) + f"\r\n--{BOUNDARY}--\r\n".encode()


# Pieces that a parser of boundaries could trip over.
near_boundaries = st.lists(
    st.sampled_from([b"\r", b"\n", b"\r\n", b"-", b"--", b"\r\n--", b"\r\n--b0undar", b"b0", b"x"]),
    max_size=12,
).map(b"".join)


@pytest.mark.rule("F1")
@given(
    content=st.one_of(st.binary(max_size=300), near_boundaries),
    cuts=st.lists(st.integers(0, 2_000), max_size=12),
    file_first=st.booleans(),
)
@example(content=b"\r\n--b0undar\r\n--b0undar", cuts=list(range(1_000)), file_first=True)
def test_content_survives_however_the_body_is_cut(
    content: bytes, cuts: list[int], file_first: bool
) -> None:
    if f"\r\n--{BOUNDARY}".encode() in b"\r\n" + content:
        return  # no client picks a boundary that its file contains
    upload = received(form(content, file_first=file_first), cuts)
    assert upload.content == content
    assert upload.finished == ("a.jsonl", Purpose.BATCH, 7200)


@pytest.mark.rule("F12")
@given(body=st.binary(max_size=200), cuts=st.lists(st.integers(0, 200), max_size=5))
def test_no_body_does_worse_than_being_refused(body: bytes, cuts: list[int]) -> None:
    for start in (b"", f"--{BOUNDARY}\r\n".encode(), form(b"x", file_first=True)[:120]):
        with pytest.raises(InvalidRequest):
            received(start + body, cuts)


@pytest.mark.rule("F12")
@given(st.integers(0, 10_000))
def test_a_form_that_ends_early_is_refused(cut: int) -> None:
    whole = form(b'{"a":1}\n', file_first=True)
    end = len(whole) - len(b"--\r\n")
    with pytest.raises(InvalidRequest):
        received(whole[: cut % end], [])
