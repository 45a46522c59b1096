"""Whatever comes, in whatever pieces: an answer, or a reason, and no connection that is used again
after it was spoiled."""

from __future__ import annotations

import asyncio
import gzip
import socket
from collections.abc import Sequence
from itertools import pairwise

import pytest
import uvloop
from hypothesis import example, given, settings
from hypothesis import strategies as st

from batchline.domain.errors import SentUnanswered
from batchline.executor.transport.connection import Connection, Dead
from batchline.executor.transport.contract import Answer
from batchline.executor.transport.known_heads import KnownHeads
from tests.contract.transport.raw_server import http

LIMIT = 5_000
REASONS = {"reset", "malformed", "too_large"}

bodies = st.binary(max_size=2_000)
statuses = st.integers(200, 599).filter(lambda status: status not in (204, 304))


@st.composite
def framed(draw: st.DrawFn) -> tuple[bytes, Answer, bool]:
    """An answer as it may be on the wire, what it means, and whether the connection lives on."""
    body, status = draw(bodies), draw(statuses)
    coding = draw(st.sampled_from(["", "gzip"])) if body else ""
    sent = gzip.compress(body) if coding else body
    head = f"HTTP/1.1 {status} {draw(st.sampled_from(['OK', '', 'Slow Down']))}\r\n"
    head += draw(st.sampled_from(["", "Server: x\r\n", "x-request-id: r\r\n", "A:\r\nB: c, d\r\n"]))
    keeps = draw(st.booleans())
    head += "" if keeps else "Connection: close\r\n"
    head += f"Content-Encoding: {coding}\r\n" if coding else ""
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * draw(st.integers(0, 2))
    if draw(st.booleans()):
        wire = f"{head}Content-Length: {len(sent)}\r\n\r\n".encode() + sent
    else:
        wire = f"{head}Transfer-Encoding: chunked\r\n\r\n".encode()
        at = 0
        while at < len(sent):
            size = draw(st.integers(1, len(sent) - at))
            wire += b"%x\r\n%b\r\n" % (size, sent[at : at + size])
            at += size
        wire += b"0\r\n\r\n"
    kept = {"x-request-id": "r"} if "x-request-id" in head else {}
    return interim + wire, Answer(status=status, headers=kept, body=body), keeps


def pieces(wire: bytes, cuts: Sequence[int]) -> list[bytes]:
    places = sorted({cut % (len(wire) + 1) for cut in cuts} | {0, len(wire)})
    return [wire[a:b] for a, b in pairwise(places) if a < b]


async def fed(parts: Sequence[bytes], *, then_end: bool) -> tuple[Answer | str, bool]:
    """What an exchange comes to when these bytes come, and whether its connection is kept."""
    ours, theirs = socket.socketpair()
    with theirs:
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: Connection(limit_bytes=LIMIT), sock=ours
        )
        waiting = connection.begin(b"POST / HTTP/1.1\r\n\r\n", b"{}")
        for part in parts:
            connection.data_received(part)
        if then_end:
            theirs.close()
            await connection.closed()
        if not waiting.done():
            connection.fail("it waits for more", reason="reset")
        try:
            found: Answer | str = await waiting
        except SentUnanswered as exc:
            found = exc.reason
        keeps = connection.end()
        connection.abort()
        await connection.closed()
    return found, keeps


@settings(max_examples=150, deadline=None)
@given(framed(), st.lists(st.integers(0, 10_000), max_size=30))
def test_an_answer_in_any_pieces_is_the_same_answer(
    case: tuple[bytes, Answer, bool], cuts: list[int]
) -> None:
    wire, answer, keeps = case
    assert uvloop.run(fed(pieces(wire, cuts), then_end=False)) == (answer, keeps)


@settings(max_examples=150, deadline=None)
@given(framed(), st.lists(st.integers(0, 10_000), max_size=5), st.integers(1, 10_000))
def test_a_part_of_an_answer_is_none(
    case: tuple[bytes, Answer, bool], cuts: list[int], missing: int
) -> None:
    wire = case[0]
    short = wire[: -1 - missing % len(wire)]
    found, keeps = uvloop.run(fed(pieces(short, cuts), then_end=True))
    assert found == "reset"
    assert not keeps


# To the parser nothing is wrong with a second answer, or with the beginning of one.
following = st.one_of(
    st.binary(min_size=1, max_size=50),
    st.tuples(framed(), st.integers(1, 10_000)).map(lambda x: x[0][0][: x[1]]),
)


@settings(max_examples=150, deadline=None)
@given(framed(), following, st.lists(st.integers(0, 10_000), max_size=5))
@example(
    (http(b"{}"), Answer(status=200, headers={}, body=b"{}"), True),
    b"HTTP/1.1 200 OK\r\nx-request-id: another\r\n",
    [],
)
def test_what_follows_an_answer_spoils_the_connection_and_not_the_answer(
    case: tuple[bytes, Answer, bool], more: bytes, cuts: list[int]
) -> None:
    wire, answer, _ = case
    if not more.strip(b"\r\n"):
        return  # empty lines between two answers are none
    found, keeps = uvloop.run(fed(pieces(wire + more, cuts), then_end=False))
    assert found == answer
    assert not keeps


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=500),
        st.tuples(framed(), st.integers(0, 10_000), st.binary(min_size=1, max_size=8)).map(
            lambda x: (w := x[0][0])[: x[1] % len(w)] + x[2] + w[x[1] % len(w) + len(x[2]) :]
        ),
    ),
    st.lists(st.integers(0, 10_000), max_size=5),
)
def test_garbage_is_a_reason_or_an_answer_and_nothing_else(wire: bytes, cuts: list[int]) -> None:
    found, _ = uvloop.run(fed(pieces(wire, cuts), then_end=True))
    assert isinstance(found, Answer) or found in REASONS


class NoneKnown(KnownHeads):
    """The parser reads every head."""

    __slots__ = ()

    def answer(self, data: bytes) -> None:
        pass


class AllLearnt(KnownHeads):
    """Every head that can be known is, from its second coming on."""

    __slots__ = ("known",)

    def __init__(self) -> None:
        super().__init__(LIMIT)
        self.known = 0

    def answer(self, data: bytes) -> Answer | None:
        answer = super().answer(data)
        self.known += answer is not None
        return answer

    def note(self, data: bytes, answer: Answer) -> None:
        self._strange = 0
        super().note(data, answer)


# Beginnings, the name of the length's header, and what may follow it.
_STARTS = [
    *[b""] * 4,
    b"server: x\r\nretry-after: 3\r\n",
    b"Content-Encoding: gzip\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Connection: close\r\n",
    b"x: content-length: 1\r\n",
    b"content-length: 3\r\n",
]
_NAMES = [*[b"content-length: "] * 4, b"Content-Length:", b"content-length:\t", b"y: "]
_RESTS = [
    *[b"\r\n\r\n"] * 4,
    b"\r\nx-request-id: r\r\n\r\n",
    b"\r\nconnection: close\r\n\r\n",
    b"\r\ncontent-encoding: gzip\r\n\r\n",
    b"\r\ncontent-length: 3\r\n\r\n",
    b" \r\n\r\n",
    b"\n\n",
]
_STATUSES = [*[b"200 OK"] * 6, b"429 Slow", b"103 Early\r\n\r\nHTTP/1.1 200 OK"]
_BODIES = [b"", b"{}", b"abc", gzip.compress(b"zip"), b"3\r\nabc\r\n0\r\n\r\n"]
_BODIES += [b"x" * LIMIT, b"x" * (LIMIT + 1)]


@st.composite
def alike(draw: st.DrawFn) -> list[bytes]:
    """Answers of one server, which have most of their heads in common. Some cannot count."""
    start, name = draw(st.sampled_from(_STARTS)), draw(st.sampled_from(_NAMES))
    rests = draw(st.lists(st.sampled_from(_RESTS), min_size=1, max_size=2))
    wires = []
    for _ in range(draw(st.integers(2, 8))):
        body = draw(st.one_of(st.sampled_from(_BODIES), st.binary(max_size=30)))
        off, wide = draw(
            st.sampled_from([*[(0, 1)] * 8, (-1, 1), (1, 1), (0, 3), (0, 18), (0, 25)])
        )
        digits = b"%0*d" % (wide, max(0, len(body) + off))
        digits = draw(st.sampled_from([*[digits] * 9, b"", b"+" + digits, digits + b" "]))
        status, rest = draw(st.sampled_from(_STATUSES)), draw(st.sampled_from(rests))
        more = draw(st.sampled_from([*[b""] * 9, b"\r\n", b"HTTP/1.1 200 OK\r\n\r\n", b"{"]))
        wires.append(b"HTTP/1.1 %b\r\n" % status + start + name + digits + rest + body + more)
    return wires


async def told(wires: Sequence[bytes], heads: KnownHeads) -> list[tuple[object, ...]]:
    """What becomes of exchanges one after the other, on one connection as long as it is kept."""
    found: list[tuple[object, ...]] = []
    connection: Connection | None = None
    theirs: socket.socket | None = None
    for wire in wires:
        if connection is None or theirs is None:
            ours, theirs = socket.socketpair()
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: Connection(limit_bytes=LIMIT, known_heads=heads), sock=ours
            )
        waiting = connection.begin(b"POST / HTTP/1.1\r\n\r\n", b"{}")
        assert not connection.has_head
        connection.data_received(wire)
        if not waiting.done():
            connection.fail("it waits for more", reason="reset")
        error = waiting.exception()
        answer = waiting.result() if error is None else None
        keeps = connection.end()
        found.append((getattr(error, "reason", None), answer, keeps, connection.answers))
        if not keeps:
            connection.abort()
            await connection.closed()
            theirs.close()
            connection = theirs = None
    if connection is not None and theirs is not None:
        connection.abort()
        await connection.closed()
        theirs.close()
    return found


@settings(max_examples=200, deadline=None)
@given(alike())
def test_a_known_head_is_read_as_the_parser_reads_it(wires: list[bytes]) -> None:
    found = uvloop.run(told(wires, AllLearnt()))
    assert found == uvloop.run(told(wires, NoneKnown(LIMIT)))


@pytest.mark.parametrize(
    "odd",
    [
        b"content-length: +2\r\n\r\n{}",
        b"content-length:  2\r\n\r\n{}",
        b"content-length: \r\n\r\n",
        b"content-length: 0002\r\n\r\n{}",
        b"content-length: %025d\r\n\r\n{}" % 2,
        b"content-length: 1\r\n\r\n{}",
        b"content-length: 3\r\n\r\n{}",
        b"content-length: 2\r\nconnection: close\r\n\r\n{}",
        b"content-length: 2\r\n\r\n{}HTTP/1.1 200 OK\r\n",
        b"content-length: %d\r\n\r\n%b" % (LIMIT + 1, b"x" * (LIMIT + 1)),
    ],
)
def test_what_differs_from_a_known_head_is_the_parsers(odd: bytes) -> None:
    start = b"HTTP/1.1 200 OK\r\n"
    wires = [start + b"content-length: 2\r\n\r\n{}", start + odd]
    found = uvloop.run(told(wires, AllLearnt()))
    assert found == uvloop.run(told(wires, NoneKnown(LIMIT)))
    assert found[0][2]  # it was kept, and so can the second be known


@pytest.mark.parametrize(
    "heads",
    [
        (b"content-length: 2\r\nx-request-id: a", b"content-length: 2\r\nx-request-id: b"),
        (b"connection: close\r\ncontent-length: 2", b"connection: close\r\ncontent-length: 2"),
    ],
    ids=["another behind the length", "one that ends its connection"],
)
def test_what_the_parser_would_tell_apart_is_not_known(heads: tuple[bytes, bytes]) -> None:
    """As long as each other, and no less whole."""
    wires = [b"HTTP/1.1 200 OK\r\n%b\r\n\r\n{}" % head for head in heads]
    found = uvloop.run(told(wires, AllLearnt()))
    assert found == uvloop.run(told(wires, NoneKnown(LIMIT)))


def test_a_head_that_codes_the_body_is_never_known() -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n%b"
    wires = [head % (len(body), body) for body in (b"", gzip.compress(b"zip"))]
    found = uvloop.run(told(wires, AllLearnt()))
    assert [isinstance(one[1], Answer) and one[1].body for one in found] == [b"", b"zip"]


def test_the_answers_of_a_server_are_known_but_for_their_length() -> None:
    heads = AllLearnt()
    wires = [
        b"HTTP/1.1 200 OK\r\ndate: today\r\ncontent-length: %d\r\nx-request-id: r\r\n\r\n%b"
        % (len(body), body)
        for body in (b"{}", b"", b"x" * 1_000, b"1234567890")
    ]
    found = uvloop.run(told(wires, heads))
    assert heads.known == 3
    assert [answer for _, answer, _, _ in found] == [
        Answer(200, {"x-request-id": "r"}, wire.partition(b"\r\n\r\n")[2]) for wire in wires
    ]


def test_a_connection_that_is_being_closed_takes_no_request() -> None:
    """Between an answer that nobody asked for and the end of the connection is a loop step."""

    async def begin() -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: Connection(limit_bytes=LIMIT), sock=ours
            )
            connection.data_received(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
            assert not connection.lost
            with pytest.raises(Dead):
                connection.begin(b"POST / HTTP/1.1\r\n\r\n", b"{}")
            await connection.closed()

    uvloop.run(begin())


def test_a_body_that_there_is_no_memory_for_is_a_fault_of_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As the general transport has it: the worker ends, and its line is under suspicion."""

    def refuse(self: Connection, *_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Connection, "on_body", refuse)
    with pytest.raises(MemoryError):
        uvloop.run(fed([http(b"{}")], then_end=False))


def test_a_head_without_end_is_given_up() -> None:
    lines = [b"HTTP/1.1 200 OK\r\n", *(b"X-%d: %b\r\n" % (n, b"x" * 1000) for n in range(100))]
    assert uvloop.run(fed(lines, then_end=False)) == ("malformed", False)
