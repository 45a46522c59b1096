"""The lines of requests that never ran: one for each clear bit, byte for byte, or no file."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import compress
from pathlib import Path

import google_crc32c
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchline.domain import bitmap, ids, partials, plan
from batchline.domain.errors import BlobUnreadable
from batchline.domain.model import Endpoint
from batchline.domain.results import Failure, failure_line
from batchline.service import leftovers
from batchline.service.inputs import BLOCK_BYTES
from batchline.service.leftovers import LeftoversJob, LeftoversResult, Unfinished, write_leftovers
from batchline.service.partials import PartialsRange
from batchline.service.validation import ValidationJob, ValidationResult, validate
from tests.support.inputs import AWKWARD, make_lines

BATCH = ids.batch_id(1_750_000_000, bytes(range(ids.RANDOM_BYTES)))
SHARD = 4


def open_files() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


def validated(folder: Path, content: bytes) -> ValidationResult:
    """Make `input` and `plan` in `folder`, with shards of SHARD entries."""
    source = folder / "input"
    source.write_bytes(content)
    result = validate(
        ValidationJob(
            input_path=str(source),
            input_bytes=len(content),
            plan_path=str(folder / "plan"),
            endpoint=Endpoint.CHAT_COMPLETIONS,
            max_file_bytes=2**40,
            max_lines=2**40,
            max_line_bytes=2**40,
            allow_mixed_models=True,
            shard_entries=SHARD,
        )
    )
    assert not result.problems
    return result


def job_for(folder: Path, shards: Sequence[Unfinished]) -> LeftoversJob:
    return LeftoversJob(
        batch_id=BATCH,
        input_path=str(folder / "input"),
        input_bytes=(folder / "input").stat().st_size,
        plan_path=str(folder / "plan"),
        shards=shards,
        failure=Failure.BATCH_CANCELLED,
        output_path=str(folder / "lines"),
    )


def unfinished(result: ValidationResult, settled: Sequence[bool]) -> list[Unfinished]:
    """The shards of a plan whose entries are settled or not."""
    shards = []
    for shard in result.shards:
        bits = bitmap.empty(shard.entries)
        for at in range(shard.entries):
            if settled[shard.first_entry + at]:
                bitmap.mark(bits, at)
        shards.append(
            Unfinished(first_entry=shard.first_entry, entries=shard.entries, settled=bytes(bits))
        )
    return shards


def expected(folder: Path, settled: Sequence[bool], failure: Failure) -> list[bytes]:
    """The lines that should come out, made one by one."""
    content = (folder / "input").read_bytes()
    raw = (folder / "plan").read_bytes()[plan.HEADER_BYTES :]
    entries = compress(plan.unpack(raw), [not done for done in settled])
    made = []
    for entry in entries:
        text = content[entry.offset : entry.offset + entry.length].decode()
        token = text[text.index('"custom_id": ') :].removeprefix('"custom_id": ')
        _, end = json.JSONDecoder().raw_decode(token)
        made.append(
            failure_line(ids.line_id(BATCH, entry.line_number), token[:end].encode(), failure)
        )
    return made


@pytest.mark.parametrize("failure", [Failure.BATCH_CANCELLED, Failure.BATCH_EXPIRED])
def test_each_line_without_a_result_gets_one(tmp_path: Path, failure: Failure) -> None:
    result = validated(tmp_path, make_lines(10, awkward=True, crlf=True, blank_every=3, bom=True))
    settled = [number in {0, 5, 6, 9} for number in range(10)]
    job = replace(job_for(tmp_path, unfinished(result, settled)), failure=failure)
    lines = expected(tmp_path, settled, failure)
    written = b"".join(lines)
    assert write_leftovers(job) == LeftoversResult(
        lines=6, bytes=len(written), crc=google_crc32c.value(written)
    )
    assert (tmp_path / "lines").read_bytes() == b"".join(lines)
    first = json.loads(lines[0])
    assert first["custom_id"] == "line-0000001" + AWKWARD
    assert (first["response"], first["error"]["code"]) == (None, failure.value)


def test_what_is_settled_in_all_makes_an_empty_file(tmp_path: Path) -> None:
    result = validated(tmp_path, make_lines(5))
    job = job_for(tmp_path, unfinished(result, [True] * 5))
    assert write_leftovers(job) == LeftoversResult(lines=0, bytes=0, crc=0)
    assert (tmp_path / "lines").read_bytes() == b""


def test_shards_that_are_not_asked_for_are_left_out(tmp_path: Path) -> None:
    """The store names only shards that have an unsettled line."""
    result = validated(tmp_path, make_lines(3 * SHARD))
    _, second, _ = unfinished(result, [False] * (3 * SHARD))
    assert write_leftovers(job_for(tmp_path, [second])).lines == SHARD
    lines = (tmp_path / "lines").read_bytes().splitlines(keepends=True)
    settled = [number // SHARD != 1 for number in range(3 * SHARD)]
    assert lines == expected(tmp_path, settled, Failure.BATCH_CANCELLED)


def test_a_custom_id_is_found_wherever_it_is_in_its_line(tmp_path: Path) -> None:
    start = make_lines(1).index(b'"method"')
    line = make_lines(1).strip()
    last = b"{" + line[start:-1] + rb', "custom_id": "a\u0062\"}"}'
    validated(tmp_path, last + b"\n")
    job = job_for(tmp_path, [Unfinished(first_entry=0, entries=1, settled=b"\0")])
    assert write_leftovers(job).lines == 1
    token = rb'"a\u0062\"}"'
    assert (tmp_path / "lines").read_bytes() == failure_line(
        ids.line_id(BATCH, 1), token, Failure.BATCH_CANCELLED
    )


def test_lines_longer_than_a_block_and_far_apart_are_read(tmp_path: Path) -> None:
    """The lines of one model of two: the plan's neighbours are not the file's."""
    content = b"".join(
        make_lines(
            1,
            start=number,
            model="rare" if number % 20 == 0 else "often",
            padding=BLOCK_BYTES + 10 if number in {0, 20, 21} else 0,
        )
        for number in range(60)
    )
    settled = [False] * 60
    job = job_for(tmp_path, unfinished(validated(tmp_path, content), settled))
    assert write_leftovers(job).lines == 60
    lines = expected(tmp_path, settled, Failure.BATCH_CANCELLED)
    assert (tmp_path / "lines").read_bytes() == b"".join(lines)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.booleans(), st.sampled_from("xyz"), st.integers(0, 300)), min_size=1),
    st.integers(0, 10),
)
def test_any_bits_of_any_plan_give_just_their_lines(
    drawn: list[tuple[bool, str, int]], sparse: int
) -> None:
    content = b"".join(
        make_lines(1, start=number, model=model, padding=padding, awkward=True)
        for number, (_, model, padding) in enumerate(drawn)
    )
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(leftovers, "_SPARSE", sparse)  # read as blocks, line by line, or both
        patch.setattr(leftovers, "BLOCK_BYTES", 700)
        folder = Path(name)
        settled = [done for done, _, _ in drawn]
        write_leftovers(job_for(folder, unfinished(validated(folder, content), settled)))
        lines = expected(folder, settled, Failure.BATCH_CANCELLED)
        assert (folder / "lines").read_bytes() == b"".join(lines)


def test_what_was_at_the_place_of_the_lines_is_replaced(tmp_path: Path) -> None:
    result = validated(tmp_path, make_lines(1))
    (tmp_path / "lines").write_bytes(b"x" * 10_000)
    made = write_leftovers(job_for(tmp_path, unfinished(result, [False])))
    assert (tmp_path / "lines").stat().st_size == made.bytes < 10_000


# -- damage ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", ["input", "plan"])
@pytest.mark.parametrize("loss", ["gone", "short", "empty", "zeros"])
def test_a_damaged_file_leaves_no_lines(tmp_path: Path, lost: str, loss: str) -> None:
    result = validated(tmp_path, make_lines(10))
    job = job_for(tmp_path, unfinished(result, [False] * 10))
    damaged = tmp_path / lost
    content = damaged.read_bytes()
    if loss == "gone":
        damaged.unlink()
    else:
        damaged.write_bytes(
            {"short": content[:-1], "empty": b"", "zeros": bytes(len(content))}[loss]
        )
    with pytest.raises(BlobUnreadable):
        write_leftovers(job)
    assert not (tmp_path / "lines").exists()


def test_a_line_that_is_no_request_any_more_leaves_no_lines(tmp_path: Path) -> None:
    """Lines before it were written already, and no descriptor is left open."""
    content = make_lines(10)
    result = validated(tmp_path, content)
    last = content.rindex(b'{"custom_id"')
    (tmp_path / "input").write_bytes(content[:last] + b"?" * (len(content) - last))
    before = open_files()
    with pytest.raises(BlobUnreadable):
        write_leftovers(job_for(tmp_path, unfinished(result, [False] * 10)))
    assert not (tmp_path / "lines").exists()
    assert open_files() == before


def test_a_plan_of_another_version_is_not_read(tmp_path: Path) -> None:
    result = validated(tmp_path, make_lines(1))
    path = tmp_path / "plan"
    path.write_bytes(path.read_bytes().replace(plan.MAGIC, plan.MAGIC[:-1] + b"\x03"))
    with pytest.raises(BlobUnreadable, match="not a plan"):
        write_leftovers(job_for(tmp_path, unfinished(result, [False])))


# -- what was cut off ------------------------------------------------------------------------------


def kept(folder: Path, name: str, *records: tuple[int, bytes]) -> PartialsRange:
    """Records in a segment of their own, with something before and behind them."""
    data = b"".join(partials.record(number, body) for number, body in records)
    (folder / name).write_bytes(b"before" + data + b"behind")
    return PartialsRange(
        path=str(folder / name), start=6, stop=6 + len(data), crc=google_crc32c.value(data)
    )


def with_partials(folder: Path, settled: Sequence[bool], bodies: dict[int, bytes]) -> bytes:
    """The lines that should come out, by line numbers from 1."""
    made = []
    for line in expected(folder, settled, Failure.BATCH_CANCELLED):
        body = bodies.get(ids.line_number(json.loads(line)["id"]))
        made.append(line if body is None else line[:-2] + b',"partial":' + body + b"}\n")
    return b"".join(made)


def test_what_came_of_a_line_is_the_last_member_of_its_error_line(tmp_path: Path) -> None:
    settled = [number == 4 for number in range(10)]
    result = validated(tmp_path, make_lines(10, awkward=True))
    long = b'{"text":"%b"}' % (b"y" * (2 * BLOCK_BYTES))
    ranges = [
        kept(tmp_path, "s1", (1, b'{"old":1}'), (5, b'{"settled":1}'), (10, b'{"b":1}')),
        kept(tmp_path, "s2", (2, long), (1, b'{"a":1}')),
    ]
    job = replace(job_for(tmp_path, unfinished(result, settled)), partials=ranges)
    wanted = with_partials(tmp_path, settled, {1: b'{"a":1}', 2: long, 10: b'{"b":1}'})
    assert write_leftovers(job) == LeftoversResult(
        lines=9, bytes=len(wanted), crc=google_crc32c.value(wanted)
    )
    assert (tmp_path / "lines").read_bytes() == wanted


@pytest.mark.parametrize("loss", ["gone", "short", "changed", "no records", "half a record"])
def test_records_that_cannot_be_read_cost_no_line(tmp_path: Path, loss: str) -> None:
    settled = [False] * 6
    result = validated(tmp_path, make_lines(6))
    good = kept(tmp_path, "s1", (1, b'{"a":1}'))
    bad = kept(tmp_path, "s2", (2, b'{"b":1}'), (3, b'{"c":1}'))
    segment = tmp_path / "s2"
    match loss:
        case "gone":
            segment.unlink()
        case "short":
            os.truncate(segment, bad.stop - 1)
        case "changed":
            segment.write_bytes(segment.read_bytes().replace(b'"b"', b'"x"'))
        case "no records":
            segment.write_bytes(b"\n" * bad.stop)
            bad = replace(bad, crc=None)
        case _:
            bad = replace(bad, stop=bad.stop - 1, crc=None)
    before = open_files()
    shards = unfinished(result, settled)
    job = replace(job_for(tmp_path, shards), partials=[bad, good])
    wanted = with_partials(tmp_path, settled, {1: b'{"a":1}'})
    made = write_leftovers(job)
    assert made == LeftoversResult(
        lines=6, bytes=len(wanted), crc=google_crc32c.value(wanted), lost_partials=1
    )
    assert (tmp_path / "lines").read_bytes() == wanted
    assert open_files() == before
