"""The requests of a shard: always the file's, in any order, and few system calls in its own."""

from __future__ import annotations

import json
import os
import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchline.domain import lines, plan
from batchline.domain.lines import RequestLine
from batchline.executor.requests import Requests


def line_of(number: int, size: int = 0) -> bytes:
    body = json.dumps({"model": "m", "n": number, "x": "x" * size})
    return b'{"custom_id": "c-%d", "body": %b}' % (number, body.encode())


@dataclass(frozen=True)
class Shard:
    """Lines in a file, and the plan's entries of them in some order."""

    file: BinaryIO
    lines: Sequence[bytes]
    entries: bytes
    order: Sequence[int]

    def requests(self, *, send_as: str | None = None) -> Requests:
        return Requests(self.file.fileno(), self.entries, send_as=send_as)

    def expected(self, index: int) -> RequestLine:
        line = self.lines[self.order[index]]
        custom_id, body = line.removeprefix(b'{"custom_id": ').removesuffix(b"}").split(b", ", 1)
        return RequestLine(custom_id, body.removeprefix(b'"body": '))

    def damage(self, number: int) -> None:
        at = plan.ENTRY.unpack_from(self.entries, number * plan.ENTRY_BYTES)[0]
        self.file.seek(at)
        self.file.write(b"[")
        self.file.flush()


@contextmanager
def shard_of(
    lines: Sequence[bytes], order: Sequence[int] | None = None, between: bytes = b"\n"
) -> Iterator[Shard]:
    spans, at = [], 0
    for line in lines:
        spans.append((at, len(line)))
        at += len(line) + len(between)
    order = range(len(lines)) if order is None else order
    entries = b"".join(plan.ENTRY.pack(*spans[n], n + 1, 0) for n in order)
    with tempfile.TemporaryFile() as file:
        file.write(between.join([*lines, b""]))
        file.flush()
        yield Shard(file, lines, entries, order)


@dataclass
class Work:
    """What was asked of the system, and what was cut up."""

    reads: int = 0
    lines: int = 0


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    done = Work()
    pread, read_lines = os.pread, lines.read_lines

    def counted_pread(fd: int, length: int, offset: int) -> bytes:
        done.reads += 1
        return pread(fd, length, offset)

    def counted_lines(raw: bytes) -> list[RequestLine]:
        cut = read_lines(raw)
        done.lines += len(cut)
        return cut

    monkeypatch.setattr(os, "pread", counted_pread)
    monkeypatch.setattr("batchline.executor.requests.read_lines", counted_lines)
    return done


@given(
    sizes=st.lists(st.one_of(st.integers(0, 50), st.integers(0, 70_000)), min_size=1, max_size=40),
    seed=st.integers(0, 2**32),
    shuffled=st.booleans(),
    between=st.sampled_from([b"\n", b"\r\n", b"\n\n", b"\n" + b" " * 30 + b"\n"]),
    peeks=st.booleans(),
)
def test_what_is_read_is_what_the_file_holds(
    sizes: list[int], seed: int, shuffled: bool, between: bytes, peeks: bool
) -> None:
    rng = random.Random(seed)  # noqa: S311  # a seed of the test's
    order = list(range(len(sizes)))
    if shuffled:
        rng.shuffle(order)
    with shard_of([line_of(n, size) for n, size in enumerate(sizes)], order, between) as shard:
        reader = shard.requests()
        asked = list(range(len(sizes)))
        if rng.random() < 0.5:
            asked = rng.choices(asked, k=2 * len(asked))  # some again, some never
        for index in asked:
            if peeks:
                assert reader.peek(index) == shard.expected(index)
            assert reader.read(index) == shard.expected(index)


@pytest.mark.parametrize("between", [b"\n", b"\r\n", b"\n\n"])
def test_neighbours_cost_few_reads(work: Work, between: bytes) -> None:
    with shard_of([line_of(n, 550) for n in range(1_000)], between=between) as shard:
        reader = shard.requests()
        for index in range(1_000):
            assert reader.read(index) is not None
        assert work.reads <= 15
        assert work.lines == 1_000


def test_lanes_that_take_turns_at_distant_places_have_little_cut_up_in_vain(work: Work) -> None:
    with shard_of([line_of(n, 50) for n in range(900)]) as shard:
        reader = shard.requests()
        for at in range(300):
            for place in (0, 300, 600):
                assert reader.read(place + at) == shard.expected(place + at)
        assert work.lines <= 2 * 900
        assert work.reads <= 900


def test_an_order_that_is_not_the_files_reads_only_what_is_asked_for(work: Work) -> None:
    with shard_of([line_of(n, 500) for n in range(100)], list(range(99, -1, -1))) as shard:
        reader = shard.requests()
        for index in range(100):
            assert reader.read(index) == shard.expected(index)
        assert (work.reads, work.lines) == (100, 0)


def test_a_line_that_is_tried_again_does_not_cost_the_others_their_block(work: Work) -> None:
    with shard_of([line_of(n, 50) for n in range(1_000)]) as shard:
        reader = shard.requests()
        for index in range(1_000):
            assert reader.read(index) is not None
            if index % 10 == 0 and index:
                assert reader.read(index - 5) == shard.expected(index - 5)
        assert work.lines == 1_000
        assert work.reads <= 15 + 100


def test_a_line_that_was_peeked_at_is_read_once(work: Work) -> None:
    with shard_of([line_of(n) for n in range(10)]) as shard:
        reader = shard.requests()
        for index in range(10):
            assert reader.peek(index) == reader.read(index) == shard.expected(index)
        assert work.reads == 1


def test_of_lines_that_are_damaged_the_others_are_read() -> None:
    with shard_of([line_of(n) for n in range(40)]) as shard:
        shard.damage(7)
        shard.damage(25)
        reader = shard.requests()
        for index in range(40):
            expected = None if index in (7, 25) else shard.expected(index)
            assert reader.read(index) == expected


def test_a_file_that_ends_early_is_read_up_to_there() -> None:
    with shard_of([line_of(n) for n in range(40)]) as shard:
        cut_at = plan.ENTRY.unpack_from(shard.entries, 30 * plan.ENTRY_BYTES)[0] + 5
        os.truncate(shard.file.fileno(), cut_at)
        reader = shard.requests()
        for index in range(40):
            assert reader.read(index) == (shard.expected(index) if index < 30 else None)


def test_long_lines_are_not_read_ahead(work: Work) -> None:
    with shard_of([line_of(n, 70_000) for n in range(3)]) as shard:
        assert shard.requests().read(0) == shard.expected(0)
        assert (work.reads, work.lines) == (1, 0)


def test_an_alias_goes_out_under_the_backends_name() -> None:
    with shard_of([line_of(n) for n in range(3)]) as shard:
        reader = shard.requests(send_as="real")
        for index in (0, 2, 1, 1):
            request = reader.read(index)
            assert request is not None
            assert request.model == "real"
