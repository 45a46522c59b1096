"""Memory of the child that checks a file: what grows with its lines grows by little."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from unittest import mock

from batchline.domain import prefixes
from batchline.domain.model import Endpoint, PlannedShard, PlannedShards
from batchline.service import duplicates, prefix_sample
from batchline.service.duplicates import CustomIds
from batchline.service.prefix_sample import PrefixSample
from tests.support.allocated import allocated
from tests.support.inputs import make_lines


def test_a_sampled_line_costs_what_its_prompt_is_long() -> None:
    lines = make_lines(20_000, padding=400).splitlines()
    # As if the file were short: every second line or so is looked at.
    sample = PrefixSample(Endpoint.CHAT_COMPLETIONS, file_bytes=400 * len(lines[0]))
    with (
        mock.patch.object(prefix_sample, "key_of", wraps=prefixes.key_of) as looked,
        allocated() as found,
    ):
        for at in range(0, len(lines), 400):
            sample.look(lines[at : at + 400], [0] * 400)
        looks = looked.call_count
        looked.reset_mock()  # it keeps what it was called with
    assert looks > 5_000
    assert found.kept / looks < 80  # 16 of them digests; a whole key has 128


def test_a_spill_of_ids_costs_four_bytes_a_partition(tmp_path: Path) -> None:
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
    assert found.kept < 100 * 1_024 * 5


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
