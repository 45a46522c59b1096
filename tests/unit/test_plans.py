"""Plans as they are written: every entry once, grouped by model, or no file at all."""

from __future__ import annotations

import os
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchline.domain import plan
from batchline.domain.model import PlannedShard
from batchline.domain.plan import PlanEntry
from batchline.service import plans
from batchline.service.plans import PlanWriter


def entry(number: int) -> PlanEntry:
    """Entry `number` of a plan, with values that fill every field."""
    return PlanEntry(2**40 + 1_000 * number, 2**31 + number, number + 1, 2**63 + number)


def add(writer: PlanWriter, models: Sequence[int]) -> None:
    """Add an entry for each of `models`, numbered on from those that are there."""
    numbers = range(writer.entries, writer.entries + len(models))
    packed = b"".join(plan.ENTRY.pack(*entry(number)) for number in numbers)
    writer.add(packed, array("H", models))


def written(path: Path) -> list[PlanEntry]:
    raw = path.read_bytes()
    plan.check_header(raw)
    return list(plan.unpack(raw[plan.HEADER_BYTES :]))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "plan"


@pytest.fixture
def writer(path: Path) -> Iterator[PlanWriter]:
    with closing(PlanWriter(path)) as made:
        yield made


def test_entries_of_one_model_stay_in_order(writer: PlanWriter, path: Path) -> None:
    add(writer, [0, 0, 0])
    add(writer, [0, 0])
    assert [writer.entry(number) for number in (4, 0)] == [entry(4), entry(0)]
    assert list(writer.finish(["m"], 2)) == [
        PlannedShard(first_entry=0, entries=2, model="m"),
        PlannedShard(first_entry=2, entries=2, model="m"),
        PlannedShard(first_entry=4, entries=1, model="m"),
    ]
    assert written(path) == [entry(number) for number in range(5)]


def test_shards_have_one_model_each(writer: PlanWriter, path: Path) -> None:
    add(writer, [0, 1, 0])
    add(writer, [2, 1, 0])
    assert list(writer.finish(["x", "y", "z"], 2)) == [
        PlannedShard(first_entry=0, entries=2, model="x"),
        PlannedShard(first_entry=2, entries=1, model="x"),
        PlannedShard(first_entry=3, entries=2, model="y"),
        PlannedShard(first_entry=5, entries=1, model="z"),
    ]
    assert written(path) == [entry(number) for number in (0, 2, 5, 1, 4, 3)]


def test_a_finished_plan_stays_and_is_alone(path: Path) -> None:
    with closing(PlanWriter(path)) as writer:
        add(writer, [0, 1])
        writer.finish(["x", "y"], 1_000)
    assert names(path.parent) == ["plan"]
    assert written(path) == [entry(0), entry(1)]


def test_a_plan_that_was_not_finished_is_removed(path: Path) -> None:
    path.write_bytes(b"an older plan")
    with closing(PlanWriter(path)) as writer:
        add(writer, [0])
        assert written(path) == [entry(0)]
    assert names(path.parent) == []


def test_a_plan_that_cannot_be_grouped_is_removed(path: Path) -> None:
    obstacle = path.with_name("plan.grouped")
    obstacle.mkdir()
    with closing(PlanWriter(path)) as writer:
        add(writer, [0, 1])
        with pytest.raises(IsADirectoryError):
            writer.finish(["x", "y"], 1_000)
    assert names(path.parent) == ["plan.grouped"]


def test_grouping_that_fails_half_way_leaves_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoSpace(Exception):
        """Stands for whatever the second group meets."""

    with closing(PlanWriter(path)) as writer:
        add(writer, [0, 1])
        writes = iter([None])

        def write_one(fd: int, data: bytes) -> None:
            if next(writes, NoSpace) is NoSpace:
                raise NoSpace
            os.write(fd, data)

        monkeypatch.setattr(plans, "write_all", write_one)
        with pytest.raises(NoSpace):
            writer.finish(["x", "y"], 1_000)
    assert names(path.parent) == []


def test_only_the_owner_may_read_a_plan(writer: PlanWriter, path: Path) -> None:
    assert path.stat().st_mode & 0o777 == 0o600


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.lists(st.integers(0, 5), max_size=10), min_size=1, max_size=8),
    st.integers(1, 7),
    st.integers(1, 12),
)
def test_grouping_is_a_stable_sort_by_model(
    groups: list[list[int]], shard_entries: int, at_a_time: int
) -> None:
    models = [model for group in groups for model in group]
    names = [f"model-{number}" for number in range(6)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan"
        with (
            mock.patch.object(plans, "_GROUPING_ENTRIES", at_a_time),
            closing(PlanWriter(path)) as writer,
        ):
            for group in groups:
                add(writer, group)
            shards = writer.finish(names, shard_entries)
        order = sorted(range(len(models)), key=models.__getitem__)
        assert written(path) == [entry(number) for number in order]
    of_shards = [(s.model, s.first_entry + at) for s in shards for at in range(s.entries)]
    assert of_shards == [(names[models[number]], at) for at, number in enumerate(order)]
    assert all(0 < shard.entries <= shard_entries for shard in shards)
