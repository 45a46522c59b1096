"""Memory of the child that checks a file: what grows with its lines grows by little."""

from __future__ import annotations

import tracemalloc
from contextlib import closing
from pathlib import Path
from unittest import mock

from batchline.domain import prefixes
from batchline.domain.model import Endpoint, PlannedShard, PlannedShards
from batchline.service import duplicates, prefix_sample
from batchline.service.duplicates import CustomIds
from batchline.service.inputs import BLOCK_BYTES, InputFile
from batchline.service.prefix_sample import PrefixSample
from tests.support.allocated import Allocated, allocated


def sample_of(lines: int) -> tuple[PrefixSample, int, Allocated]:
    """A sample of every second of so many lines or so, no two of them alike; of how many."""
    content = b"".join(
        b'{"custom_id":"%d","method":"POST","url":"/v1/chat/completions","body":{"model":"m",'
        b'"messages":[{"role":"user","content":"%06d %s"}]}}\n' % (number, number, b"x" * 400)
        for number in range(lines)
    ).splitlines()
    # As if the file were short: the larger it is, the further apart are those that are looked at.
    sample = PrefixSample(Endpoint.CHAT_COMPLETIONS, file_bytes=400 * len(content[0]))
    with (
        mock.patch.object(prefix_sample, "key_of", wraps=prefixes.key_of) as looked,
        allocated() as found,
    ):
        for at in range(0, lines, 400):
            sample.look(content[at : at + 400], [0] * 400)
        looks = looked.call_count
        looked.reset_mock()  # it keeps what it was called with
    return sample, looks, found


def test_a_sampled_line_costs_what_its_prompt_is_long() -> None:
    _, looks, found = sample_of(8_000)
    assert looks > 3_000
    assert found.kept / looks < 24  # 12 of them digests, and what a buffer has in reserve


def test_to_find_that_nothing_is_shared_takes_no_object_a_line() -> None:
    peaks = []
    for lines in (4_000, 12_000):
        sample, looks, _ = sample_of(lines)
        with (
            mock.patch.object(prefix_sample, "_COMPARED_AT_ONCE", 256),
            mock.patch.object(prefix_sample, "_TRUNK_KEYS", 256),
            allocated() as found,
        ):
            assert sample.trunks() is None
        peaks.append((looks, found.peak))
    (few, of_few), (many, of_many) = peaks
    assert many > few + 3_000
    assert (of_many - of_few) / (many - few) < 24  # 8 of them the branch; a key is 48, a set 64


def test_a_spill_of_ids_costs_no_memory_for_each_partition(tmp_path: Path) -> None:
    with (
        mock.patch.object(duplicates, "SPILL_IDS", 64),
        closing(CustomIds(tmp_path, file_bytes=10**10)) as ids,
    ):
        ids.add([f"id-{number}" for number in range(64)])
        with allocated() as found:
            for spill in range(1, 101):
                ids.add([f"id-{number}" for number in range(64 * spill, 64 * (spill + 1))])
        ids.add(["id-5"])
        assert [suspect.earlier for suspect in ids.suspects(10)] == [(5,)]
    # An array that was small keeps its place. With the end of each in each spill it was 440 KB.
    assert found.kept < 1_024 * 64


def test_one_block_of_lines_is_in_memory_and_its_bytes_are_there_once(tmp_path: Path) -> None:
    line = b"x" * 599 + b"\n"
    path = tmp_path / "input"
    path.write_bytes(line * 4_000)
    with InputFile(str(path), 4_000 * len(line)) as source, allocated() as found:
        lines, in_hand = 0, 0
        for _, some in source.blocks(2**20):
            lines += len(some or ())
            in_hand = max(in_hand, tracemalloc.get_traced_memory()[0])
    assert lines == 4_000
    assert in_hand < 1.3 * BLOCK_BYTES  # 33 bytes a line more than there are in the file
    assert found.peak < 2.3 * BLOCK_BYTES  # the next one, and what comes of it


def test_a_planned_shard_is_four_bytes_and_comes_out_as_it_went_in() -> None:
    sizes = b"".join(entries.to_bytes(4, "little") for entries in (1_000, 7, 1_000, 3))
    shards = PlannedShards(models=["x", "y", "z"], counts=[2, 0, 2], sizes=sizes)
    for _ in range(2):
        assert list(shards) == [
            PlannedShard(first_entry=0, entries=1_000, model="x"),
            PlannedShard(first_entry=1_000, entries=7, model="x"),
            PlannedShard(first_entry=1_007, entries=1_000, model="z"),
            PlannedShard(first_entry=2_007, entries=3, model="z"),
        ]
    assert len(shards) == 4
    assert list(PlannedShards()) == []
