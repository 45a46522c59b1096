"""What has to be true of a disk after a power cut, given what clients had been told before it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path, PurePosixPath
from typing import Any, Final

import google_crc32c
import openai
from openai.types import Batch

from tests.support.conserved import markers_by_custom_id
from tests.support.power_loss.job import GOOD, SKIPPING, Recorded
from tests.support.power_loss.told import Told
from tests.support.server import ServerProcess, conserved, content_of, wait_for
from tests.support.stored import needs

_RANGES: Final = """
    SELECT r.blob_name, r.start, r.stop
    FROM file_range r JOIN file f ON f.sequence = r.file_sequence
    WHERE f.id = ? AND f.deleted_at IS NULL ORDER BY r.position
"""
_KNOWN: Final = (  # what of `Told` has to have a row, and where
    ("files", "SELECT id FROM file WHERE deleted_at IS NULL"),
    ("uploads", "SELECT id FROM upload"),
    ("parts", "SELECT id FROM upload_part"),
    ("batches", "SELECT id FROM batch"),
)


def write_image(image: Mapping[PurePosixPath, bytes | None], root: Path) -> None:
    """Files and directories as they are in `image`, below `root`."""
    for path, content in image.items():
        if content is None:
            (root / path).mkdir()
        else:
            (root / path).write_bytes(content)


# -- without a server ------------------------------------------------------------------------------


def look(data: Path, known: Told, recorded: Recorded, ever: Mapping[str, bytes]) -> None:
    """Compare the rows of a data directory with its bytes, and both with what was told.

    `ever` has every blob of the recording whole. What is behind the last byte that somebody needs
    is nobody's.
    """
    path = data / "batchline.sqlite3"
    if known == Told():
        # Nothing was promised; the rows may even lack their tables. That a server starts is
        # `go_on`'s matter.
        return
    assert path.exists(), "the database has no name"
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert database.execute("PRAGMA foreign_key_check").fetchall() == []
        for kind, query in _KNOWN:
            there = {key for (key,) in database.execute(query)}
            missing = set(getattr(known, kind)) - there
            assert not missing, f"{kind} were acknowledged and are gone: {missing}"
        _look_at_batches(database, known)
        look_at_bytes(database, data, ever)
        for file_id, body in known.files.items():
            content = recorded.content_of(file_id)
            ranges = database.execute(_RANGES, (file_id,)).fetchall()
            found = b"".join(_piece(data, *one) for one in ranges)
            if content is not None:
                assert found == content, f"{file_id} is another file"
            assert len(found) == body["bytes"]


def look_at_bytes(database: sqlite3.Connection, data: Path, ever: Mapping[str, bytes]) -> None:
    """Whatever a row needs is there, byte for byte."""
    for blob, holder, stop in needs(database):
        _whole(data, blob, stop or len(ever[blob]), ever, f"needed by {holder}")
    for blob, start, stop, crc in database.execute(
        # What validation left out has no checksum; it is a blob of its own, compared above.
        "SELECT blob_name, start, stop, crc FROM segment_commit WHERE crc IS NOT NULL"
    ):
        assert google_crc32c.value(_piece(data, blob, start, stop)) == crc, (
            f"what was committed of {blob}, {start} to {stop}, is not what is there"
        )


def _look_at_batches(database: sqlite3.Connection, known: Told) -> None:
    for key in known.batches:
        row = database.execute(
            "SELECT status, total, completed, failed, output_file_id, error_file_id"
            " FROM batch WHERE id = ?",
            (key,),
        ).fetchone()
        status, *counts, output, error = row
        assert_goes_on(
            key,
            known,
            status,
            dict(zip(("total", "completed", "failed"), counts, strict=True)),
            (output, error),
        )


def assert_goes_on(
    key: str,
    known: Told,
    status: str,
    counts: Mapping[str, int],
    files: tuple[str | None, str | None],
) -> None:
    """A batch is now as it was last seen, or further."""
    before = known.batches[key]
    for name, seen in known.counts[key].items():
        assert counts[name] >= seen, f"{key}: {name} was {seen} and is {counts[name]}"
    if key in known.cancelled:
        assert status in ("cancelling", "cancelled"), f"{key} was cancelled and is {status}"
    if key in known.ended:
        assert status == before["status"], f"{key} had ended {before['status']} and is {status}"
        assert dict(counts) == before["request_counts"], f"{key} had ended with other counts"
        assert files == (before["output_file_id"], before["error_file_id"])


def _whole(data: Path, blob: str, stop: int, ever: Mapping[str, bytes], why: str) -> None:
    found = _piece(data, blob, 0, stop)
    assert found == ever[blob][:stop], f"{blob} is damaged or short before {stop}; {why}"


def _piece(data: Path, blob: str, start: int, stop: int) -> bytes:
    path = data / "blobs" / blob.partition("-")[0] / blob
    assert path.exists(), f"{blob} has no name on the disk"
    with path.open("rb") as file:
        file.seek(start)
        return file.read(stop - start)


# -- with a server ---------------------------------------------------------------------------------


def go_on(running: ServerProcess, known: Told, recorded: Recorded) -> dict[str, str]:
    """Let a started server bring everything to an end, and check what it then says.

    Batches that nobody was told of may be there; they have to end as well. Returns how each ended.
    """
    client = running.client()
    there = {file.id for file in client.files.list(limit=1000)}
    assert known.files.keys() <= there, f"gone: {known.files.keys() - there}"
    assert not known.deleted & there, "a deleted file is back"
    for file_id in known.files:
        expected = recorded.content_of(file_id)
        assert expected is None or content_of(client, file_id) == expected, (
            f"{file_id} is another file"
        )
    ended: dict[str, str] = {}
    listed = {batch.id: batch for batch in client.batches.list(limit=100)}
    assert known.batches.keys() <= listed.keys()
    for key in listed:
        batch = wait_for(client, key)
        body: dict[str, Any] = json.loads(batch.to_json())
        if key in known.batches:
            assert_goes_on(
                key,
                known,
                batch.status,
                body["request_counts"],
                (batch.output_file_id, batch.error_file_id),
            )
        if not recorded.deleted & {batch.output_file_id, batch.error_file_id}:
            _assert_conserved(client, batch, recorded)
        ended[key] = batch.status
    return ended


def _assert_conserved(client: openai.OpenAI, batch: Batch, recorded: Recorded) -> None:
    name = recorded.names[batch.input_file_id]
    if name != SKIPPING:
        conserved(client, batch, recorded.inputs[name])
        return
    # The line that is none is in the error file from the start, and in the counts.
    output = content_of(client, batch.output_file_id)
    error = content_of(client, batch.error_file_id)
    assert output is not None
    assert error is not None
    counts = batch.request_counts
    assert counts is not None
    assert (counts.completed, counts.failed, counts.total) == (40, 1, 41)
    assert sorted(json.loads(line)["custom_id"] for line in output.splitlines()) == sorted(
        markers_by_custom_id(GOOD)
    )
    assert [json.loads(line)["error"]["line"] for line in error.splitlines()] == [41]
