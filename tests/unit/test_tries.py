"""What a server notes of its validations, for one that comes after its death."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

import pytest

from batchline.domain.ids import BatchId
from batchline.service.tries import Tries

ONE, TWO = BatchId("batch_one"), BatchId("batch_two")


def die_in(note: Path, *batches: BatchId) -> None:
    """A server that begins these and dies in the middle: what is behind it is the note of then."""
    tries = Tries(note)
    with ExitStack() as running:
        for batch in batches:
            running.enter_context(tries.noted(batch))
        left = note.read_bytes()
    note.write_bytes(left)


def test_servers_that_died_in_a_row_are_counted(tmp_path: Path) -> None:
    note = tmp_path / "validating.json"
    for deaths in range(3):
        assert Tries(note).deaths(ONE) == deaths
        die_in(note, TWO, ONE)
    assert [Tries(note).deaths(one) for one in (ONE, TWO)] == [3, 3]


@pytest.mark.parametrize("raised", [None, KeyboardInterrupt])
def test_an_end_of_any_kind_begins_the_count_anew(
    tmp_path: Path, raised: type[BaseException] | None
) -> None:
    note = tmp_path / "validating.json"
    die_in(note, ONE)
    tries = Tries(note)
    assert tries.deaths(ONE) == 1
    try:
        with tries.noted(ONE):
            if raised is not None:
                raise raised
    except KeyboardInterrupt:
        pass
    tries.over(ONE)
    assert tries.deaths(ONE) == Tries(note).deaths(ONE) == 0
    assert json.loads(note.read_text()) == {}


def test_what_a_server_never_began_it_does_not_count(tmp_path: Path) -> None:
    note = tmp_path / "validating.json"
    die_in(note, ONE)
    die_in(note, TWO)
    assert [Tries(note).deaths(one) for one in (ONE, TWO)] == [1, 1]


def test_between_two_tries_of_one_server_the_count_stays(tmp_path: Path) -> None:
    note = tmp_path / "validating.json"
    die_in(note, ONE)
    tries = Tries(note)
    with tries.noted(ONE):
        assert Tries(note).deaths(ONE) == 2
    assert Tries(note).deaths(ONE) == 1
    with tries.noted(ONE):
        assert Tries(note).deaths(ONE) == 2


def test_a_note_that_says_less_than_before_is_whole_and_stays_the_file_that_it_was(
    tmp_path: Path,
) -> None:
    note = tmp_path / "validating.json"
    die_in(note, *(BatchId(f"batch_{number:03}") for number in range(50)))
    tries, was = Tries(note), note.stat().st_ino
    with tries.noted(ONE):
        for number in range(50):
            tries.over(BatchId(f"batch_{number:03}"))
        assert json.loads(note.read_text()) == {ONE: 1}
    assert json.loads(note.read_text()) == {}
    # Another one in its place would be written out at once, and the event loop waits for it.
    assert note.stat().st_ino == was


def test_a_note_that_cannot_be_read_or_written_is_no_note(tmp_path: Path) -> None:
    for content in ("", "[1]", '{"batch_one":'):
        note = tmp_path / "validating.json"
        note.write_text(content)
        assert Tries(note).deaths(ONE) == 0
    missing = Tries(tmp_path / "nowhere" / "note.json")
    with missing.noted(ONE):
        assert missing.deaths(ONE) == 0
    assert Tries(None).deaths(ONE) == 0
