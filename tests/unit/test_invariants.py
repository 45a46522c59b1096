"""Each of the seven invariants is seen to refuse a record in which it does not hold."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from openai.types import Batch
from sqlalchemy import create_engine

from batchline.store.tables import metadata
from tests.support import invariants
from tests.support.inputs import line_id, make_lines
from tests.support.invariants import Cancelled, Created, Ended, Look, ShardRow, Story
from tests.support.scripted_backend import BackendLog, Event, Kind
from tests.support.stored import disagreements, left_over

ID = line_id(0)
FIRST, SECOND = 1, 2  # numbers of requests


def seen(
    kind: Kind, at: float, *, request: int = FIRST, identity: str = ID, read_s: float = 0.0
) -> Event:
    """An event at `at`. An arrival was received then, and read `read_s` later."""
    came = kind is Kind.ARRIVED
    return Event(
        kind=kind,
        request=request,
        at=at + read_s,
        monotonic_ns=0,
        id=identity,
        attempt=request,
        status=200 if kind is Kind.ANSWERED else 0,
        first_byte_at=at + read_s if came else 0.0,
        received_at=at if came else 0.0,
    )


def log(*events: Event) -> BackendLog:
    return BackendLog(events)


# -- 1. liveness -------------------------------------------------------------------------------


def test_a_batch_that_does_not_end_after_the_faults_is_stuck() -> None:
    statuses = {"a": "completed", "b": "finalizing"}
    (found,) = invariants.not_ended(statuses, calm_at=100, now=140.5, within_s=40)
    assert found.startswith("b is stuck: finalizing 40.5 s")
    assert not list(invariants.not_ended(statuses, calm_at=100, now=139, within_s=40))
    assert not list(invariants.not_ended({"a": "expired"}, calm_at=0, now=999, within_s=40))


# -- 2. conservation ---------------------------------------------------------------------------


def test_a_lost_line_is_a_breach() -> None:
    batch = Batch.model_validate(
        {
            "id": "b",
            "object": "batch",
            "status": "completed",
            "created_at": 1,
            "completion_window": "24h",
            "endpoint": "/v1/x",
            "input_file_id": "f",
            "in_progress_at": 1,
            "request_counts": {"total": 1, "completed": 1, "failed": 0},
        }
    )
    (found,) = invariants.unconserved(make_lines(1), batch, None, None, log())
    assert f"lost: no line for '{ID}'" in found


# -- 3. no dangling bytes, none leaked ---------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory with one file of three bytes that is in order."""
    folder = tmp_path / "blobs" / "input"
    folder.mkdir(parents=True)
    (folder / "input-1").write_bytes(b"abc")
    path = tmp_path / "batchline.sqlite3"
    engine = create_engine(f"sqlite:///{path}")
    metadata.create_all(engine)
    engine.dispose()
    change(
        tmp_path,
        "INSERT INTO project VALUES ('p', 'p', 0)",
        "INSERT INTO blob VALUES ('input-1', 'input', 3, 0)",
        "INSERT INTO blob_reference VALUES ('input-1', 'file-1')",
        "INSERT INTO file VALUES (1, 'file-1', 'p', 'batch', 'f', 3, 0, NULL, NULL)",
        "INSERT INTO file_range VALUES (1, 0, 'input-1', 0, 3, NULL, 0)",
    )
    return tmp_path


def change(data: Path, *statements: str) -> None:
    database = sqlite3.connect(data / "batchline.sqlite3")
    for statement in statements:
        database.execute(statement)
    database.commit()
    database.close()


def blob(data: Path) -> Path:
    return data / "blobs" / "input" / "input-1"


def test_a_directory_in_order_has_nothing_to_complain_of(data: Path) -> None:
    assert list(disagreements(data)) == []


@pytest.mark.parametrize(
    ("breach", "said"),
    [
        (lambda data: blob(data).write_bytes(b"ab"), "input-1: 2 bytes, and its row says 3"),
        (lambda data: blob(data).unlink(), "input-1: a row without bytes"),
        (lambda data: (data / "blobs" / "leak").touch(), "leak: bytes without a row"),
        (
            lambda data: change(data, "DELETE FROM blob_reference"),
            "input-1: needed by file-1, which does not hold it",
        ),
        (lambda data: change(data, "DELETE FROM blob_reference"), "input-1: nobody holds it"),
        (
            lambda data: change(data, "UPDATE file SET bytes = 4"),
            "file-1: 4 bytes, and its ranges 3",
        ),
        (
            lambda data: change(data, "DELETE FROM file_range"),
            "file-1: 3 bytes, and its ranges 0",
        ),
        (
            lambda data: change(data, "UPDATE file SET deleted_at = 1"),
            "input-1: held by file-1, which has ended",
        ),
    ],
)
def test_rows_and_bytes_that_do_not_fit_are_a_breach(
    data: Path, breach: Callable[[Path], object], said: str
) -> None:
    breach(data)
    assert said in list(disagreements(data))


def test_after_deleting_everything_anything_left_is_a_breach(data: Path) -> None:
    assert list(left_over(data)) == [
        "file-1: a file that is not deleted",
        "input-1: held by file-1",
        "input-1: a row of a blob",
        "input-1: 3 bytes on disk",
    ]
    change(data, "UPDATE file SET deleted_at = 1", "DELETE FROM blob_reference", "DELETE FROM blob")
    assert list(left_over(data)) == ["input-1: 3 bytes on disk"]
    blob(data).unlink()
    assert list(left_over(data)) == []


# -- 4. cancel honoured ------------------------------------------------------------------------


def unstamped(at: float) -> Event:
    """As it is noted where the kernel does not say when bytes came."""
    return msgspec.structs.replace(seen(Kind.ARRIVED, at), received_at=0.0)


def cancelled(read_at: float | None = 11.0) -> Story:
    cancels = [Cancelled(told_at=10.0, read_at=read_at)]
    return Story(name="s", ids=[ID], cancels=cancels)


@pytest.mark.parametrize(
    "event",
    [
        seen(Kind.ARRIVED, 10.05),
        seen(Kind.ARRIVED, 10.05, read_s=0.08),
        unstamped(11.5),  # read after all that had been sent in time
    ],
)
def test_a_request_after_the_answer_to_a_cancel_is_a_breach(event: Event) -> None:
    (found,) = invariants.cancel_not_honoured(cancelled(), "cancelled", log(event))
    assert f"s: {ID} was sent after the 200 of its cancel" in found


@pytest.mark.parametrize(
    "event",
    [
        seen(Kind.ARRIVED, 9.9),
        seen(Kind.ARRIVED, 9.99, read_s=0.08),  # the backend was busy
        seen(Kind.ARRIVED, 10.01),  # within the grain of the kernel's stamps
        unstamped(10.9),
    ],
)
def test_a_request_that_was_under_way_at_the_answer_is_none(event: Event) -> None:
    assert not list(invariants.cancel_not_honoured(cancelled(), "cancelled", log(event)))


def test_another_end_after_an_accepted_cancel_is_a_breach() -> None:
    (found,) = invariants.cancel_not_honoured(cancelled(), "completed", log())
    assert "completed, and its cancel had been answered with 200" in found
    never = Story(name="s", ids=[ID])
    assert not list(invariants.cancel_not_honoured(never, "completed", log()))


@pytest.mark.parametrize("end", [None, 12.5])
def test_a_request_that_is_open_when_its_batch_is_cancelled_is_a_breach(end: float | None) -> None:
    events = [seen(Kind.ARRIVED, 9.0)] + ([] if end is None else [seen(Kind.ABORTED, end)])
    (found,) = invariants.open_after_the_end(cancelled(), 12.0, log(*events))
    assert f"{ID} was open" in found
    closed = log(seen(Kind.ARRIVED, 9.0), seen(Kind.ABORTED, 11.9))
    assert not list(invariants.open_after_the_end(cancelled(), 12.0, closed))


# -- 5. honest create --------------------------------------------------------------------------

SENT = log(seen(Kind.ARRIVED, 1.0))


@pytest.mark.parametrize(
    ("created", "listed", "ran", "said"),
    [
        (Created.ANSWERED, {}, log(), "b was answered with 200, listed is []"),
        (Created.ANSWERED, {"s": ["c"]}, log(), "b was answered with 200, listed is ['c']"),
        (Created.ANSWERED, {"s": ["b", "c"]}, log(), "one create made 2 batches"),
        (Created.REFUSED, {"s": ["c"]}, log(), "refused, and ['c'] is listed"),
        (Created.REFUSED, {}, SENT, "refused, and 1 of its lines were sent"),
        (Created.UNANSWERED, {"s": ["b", "c"]}, log(), "one create made 2 batches"),
        (Created.UNANSWERED, {}, SENT, "its lines were sent, and it is not listed"),
        (Created.UNANSWERED, {"t": ["d"]}, log(), "t: listed, and nobody created it"),
    ],
)
def test_a_create_that_is_not_what_its_answer_said_is_a_breach(
    created: Created, listed: Mapping[str, list[str]], ran: BackendLog, said: str
) -> None:
    batch_id = "b" if created is Created.ANSWERED else None
    story = Story(name="s", ids=[ID], created=created, batch_id=batch_id)
    assert said in "\n".join(invariants.dishonest_creates([story], listed, ran))


@pytest.mark.parametrize(
    ("created", "listed"),
    [
        (Created.ANSWERED, {"s": ["b"]}),
        (Created.REFUSED, {}),
        (Created.UNANSWERED, {}),
        (Created.UNANSWERED, {"s": ["b"]}),
    ],
)
def test_an_honest_create_is_none(created: Created, listed: Mapping[str, list[str]]) -> None:
    batch_id = "b" if created is Created.ANSWERED else None
    story = Story(name="s", ids=[ID], created=created, batch_id=batch_id)
    ran = SENT if listed else log()
    assert not list(invariants.dishonest_creates([story], listed, ran))


# -- 6. single holder --------------------------------------------------------------------------


def twice(end: Event | None) -> BackendLog:
    events = [seen(Kind.ARRIVED, 1.0), seen(Kind.ARRIVED, 2.0, request=SECOND)]
    return log(*events, *([] if end is None else [end]))


def test_two_attempts_at_once_are_a_breach_unless_somebody_was_killed() -> None:
    for end in (None, seen(Kind.ANSWERED, 2.5), seen(Kind.ABORTED, 2.1)):
        (found,) = invariants.sent_twice_at_once(twice(end), [0.5, 2.5])
        assert "attempt 2 came at 2.000 while attempt 1 of 1.000 was open" in found
        assert not list(invariants.sent_twice_at_once(twice(end), [1.5]))
    over = seen(Kind.ANSWERED, 1.9)
    assert not list(invariants.sent_twice_at_once(twice(over), []))


ROW = ShardRow(epoch=4, settled=b"\x81", completed=2, failed=0)


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (replace(ROW, epoch=3), "epoch 3 after 4"),
        (replace(ROW, settled=b"\x01"), "a settled line is not settled any more"),
        (replace(ROW, completed=1), "its counts fell"),
    ],
)
def test_a_shard_whose_row_goes_back_is_a_breach(after: ShardRow, said: str) -> None:
    (found,) = invariants.fallen_back({("b", 0): ROW}, {("b", 0): after})
    assert said in found


def test_a_shard_that_goes_on_is_none() -> None:
    after = {("b", 0): replace(ROW, epoch=5, settled=b"\xff", completed=8), ("c", 0): ROW}
    assert not list(invariants.fallen_back({("b", 0): ROW}, after))


# -- 7. terminal immutable, and what is before it ----------------------------------------------


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (Look(status="validating", total=5, completed=3), "validating after in_progress"),
        (Look(status="in_progress", total=5, completed=2), "completed 2 after 3"),
        (Look(status="in_progress", total=4, completed=3), "total 4 after 5"),
    ],
)
def test_a_look_behind_an_earlier_one_is_a_breach(after: Look, said: str) -> None:
    before = Look(status="in_progress", total=5, completed=3)
    assert list(invariants.stepped_back(before, after)) == [said]


@pytest.mark.parametrize("status", ["completed", "cancelled", "expired", "failed"])
def test_nothing_comes_after_an_end(status: str) -> None:
    for other in ("in_progress", "finalizing", "cancelling", "completed", "cancelled"):
        found = list(invariants.stepped_back(Look(status=status), Look(status=other)))
        assert bool(found) == (other != status)


def test_a_batch_may_skip_what_nobody_looked_at() -> None:
    before, after = Look(status="validating"), Look(status="cancelled", total=5, completed=2)
    assert not list(invariants.stepped_back(before, after))


def test_an_ended_batch_that_changes_is_a_breach() -> None:
    first = Ended(body="{}", output="a", errors="b")
    assert not list(invariants.changed_after_the_end(first, first))
    assert not list(invariants.changed_after_the_end(first, replace(first, output=None)))
    for last in (
        replace(first, body="{1}"),
        replace(first, output="x"),
        replace(first, errors="x"),
    ):
        assert len(list(invariants.changed_after_the_end(first, last))) == 1
