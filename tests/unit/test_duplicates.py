"""Suspected duplicates: found in every partition and spill, and only suspected."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchline.service import duplicates
from batchline.service.duplicates import CustomIds, Suspect

LARGE = 10**9  # of a file whose ids go into many partitions


class Clashing(str):
    """An id whose hash is that of every other such id."""

    __slots__ = ()

    def __hash__(self) -> int:
        return 7

    def __eq__(self, other: object) -> bool:
        return str.__eq__(self, other)


def open_files() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


@pytest.fixture
def ids(tmp_path: Path) -> Iterator[CustomIds]:
    with closing(CustomIds(tmp_path, file_bytes=1_000)) as made:
        yield made


def test_ids_that_are_there_once_are_not_suspected(ids: CustomIds) -> None:
    ids.add(["a", "b", "c"])
    ids.add(["d"])
    assert ids.suspects(10) == []
    assert ids.added == 4


def test_a_repeated_id_is_suspected_with_the_entries_before_it(ids: CustomIds) -> None:
    ids.add(["a", "b"])
    ids.add(["a", "c", "b", "a"])
    assert ids.suspects(10) == [Suspect(2, (0,)), Suspect(4, (1,)), Suspect(5, (0, 2))]
    assert ids.suspects(2) == [Suspect(2, (0,)), Suspect(4, (1,))]


def test_different_ids_of_one_hash_are_suspected_too(ids: CustomIds) -> None:
    """Whoever asks compares the ids: this is why entries are given and not a verdict."""
    ids.add([Clashing("a"), Clashing("b")])
    assert ids.suspects(10) == [Suspect(1, (0,))]


def test_a_suspect_is_compared_with_the_last_few_entries_only(ids: CustomIds) -> None:
    ids.add(["a"] * 10_000)
    assert ids.suspects(20_000)[-1] == Suspect(9_999, tuple(range(9_991, 9_999)))


def test_repeats_are_counted_when_they_are_spilled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates, "SPILL_IDS", 4)
    with closing(CustomIds(tmp_path, file_bytes=LARGE)) as ids:
        ids.add(["a", "b", "a"])
        assert ids.repeats == 0
        ids.add(["a"])
        assert ids.repeats == 2


def test_the_scratch_file_has_no_name_and_goes_with_its_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates, "SPILL_IDS", 1)
    before = open_files()
    ids = CustomIds(tmp_path, file_bytes=LARGE)
    ids.add(["a", "b"])
    assert open_files() == before + 1
    assert [*tmp_path.iterdir()] == []
    ids.close()
    ids.close()
    assert open_files() == before


def expected(ids: Sequence[str]) -> list[Suspect]:
    suspects = []
    for entry, custom_id in enumerate(ids):
        earlier = tuple(at for at in range(entry) if ids[at] == custom_id)
        if earlier:
            suspects.append(Suspect(entry, earlier[-8:]))
    return suspects


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 40).map(str), max_size=12), max_size=12),
    st.sampled_from([0, 10_000_000, LARGE]),
    st.integers(1, 60),
)
def test_suspects_are_the_same_however_ids_are_spread_and_spilled(
    groups: list[list[str]], file_bytes: int, spill_ids: int
) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(duplicates, "SPILL_IDS", spill_ids),
        closing(CustomIds(Path(folder), file_bytes=file_bytes)) as ids,
    ):
        for group in groups:
            ids.add(group)
        every = [custom_id for group in groups for custom_id in group]
        assert ids.suspects(1_000) == expected(every)
        assert ids.suspects(3) == expected(every)[:3]
        assert ids.repeats <= len(every) - len(set(every))
