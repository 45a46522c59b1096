"""Rows and bytes of a data directory, compared: what is on disk, what is known, what is needed.

Reads the database of a running server beside it, so it sees one committed moment; the bytes are
looked at afterwards. Only a server that is at rest can be expected to agree.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from batchline.domain import lifecycle
from tests.support.pauses import pause

AGREE_S: Final = 30.0

_TERMINAL: Final = json.dumps(sorted(lifecycle.TERMINAL))

# Who may hold a blob: a file that is there, an upload that is pending, a batch that has not ended,
# a worker (for the segment that it has open).
_HOLDERS: Final = """
    SELECT id FROM file WHERE deleted_at IS NULL
    UNION SELECT id FROM upload WHERE status = 'pending'
    UNION SELECT id FROM batch WHERE status NOT IN (SELECT value FROM json_each(?))
"""

# Who needs a blob, and up to which byte.
_NEEDS: Final = """
    SELECT r.blob_name, f.id, r.stop FROM file_range r
        JOIN file f ON f.sequence = r.file_sequence WHERE f.deleted_at IS NULL
    UNION ALL SELECT p.blob_name, p.upload_id, p.bytes FROM upload_part p
    UNION ALL SELECT b.input_blob, b.id, b.input_bytes FROM batch b
        WHERE b.input_blob IS NOT NULL AND b.status NOT IN (SELECT value FROM json_each(?1))
    UNION ALL SELECT b.plan_blob, b.id, 0 FROM batch b
        WHERE b.plan_blob IS NOT NULL AND b.status NOT IN (SELECT value FROM json_each(?1))
    UNION ALL SELECT c.blob_name, b.id, c.stop FROM segment_commit c
        JOIN batch b ON b.sequence = c.batch_sequence
"""

# Files whose ranges are not as long as they are.
_WRONG_LENGTHS: Final = """
    SELECT f.id, f.bytes, coalesce(sum(r.stop - r.start), 0) AS found FROM file f
        LEFT JOIN file_range r ON r.file_sequence = f.sequence
        WHERE f.deleted_at IS NULL GROUP BY f.id, f.bytes HAVING found <> f.bytes
"""


def wait_until_rows_and_bytes_agree(data: Path) -> None:
    """Poll until nothing disagrees: the sweeps of a server at rest have removed what can go."""
    began = time.monotonic()
    while found := list(disagreements(data)):
        assert time.monotonic() < began + AGREE_S, "\n".join(found)
        pause(began)


def settled_lines(data: Path) -> int:
    """How many lines of all batches are committed as settled, behind a server that has died.

    Of a copy: whoever opens a database after a crash repairs it, and that is the next server's.
    """
    with tempfile.TemporaryDirectory() as copy:
        for part in data.glob("batchline.sqlite3*"):
            shutil.copy(part, copy)
        with closing(sqlite3.connect(f"{copy}/batchline.sqlite3")) as database:
            if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'shard'").fetchone():
                return 0  # it died in its first start
            (count,) = database.execute("SELECT total(completed + failed) FROM shard").fetchone()
    return int(count)


def let_expire(data: Path) -> None:
    """What has an end of its own (a batch's window, a file, an upload) is past it when a server
    starts here again: as if it had been down for so long. No server may run."""
    with closing(sqlite3.connect(data / "batchline.sqlite3")) as database:
        for table in ("batch", "file", "upload"):
            # S608: the names are those above.
            database.execute(f"UPDATE {table} SET expires_at = ?", (int(time.time()) - 1,))  # noqa: S608
        database.commit()


def needs(database: sqlite3.Connection) -> list[tuple[str, str, int]]:
    """Each blob that is needed, by whom, and up to which byte (0: that is not known here)."""
    return database.execute(_NEEDS, (_TERMINAL,)).fetchall()


def wait_until_nothing_is_left(data: Path) -> None:
    """Poll until no file, no blob and no byte is left: everything was deleted and swept."""
    began = time.monotonic()
    while found := list(left_over(data)):
        assert time.monotonic() < began + AGREE_S, "\n".join(found)
        pause(began)


def left_over(data: Path) -> Iterator[str]:
    """What is still there of files, one line each."""
    with reading(data) as database:
        files = database.execute("SELECT id FROM file WHERE deleted_at IS NULL").fetchall()
        references = database.execute("SELECT blob_name, holder FROM blob_reference").fetchall()
        rows = database.execute("SELECT name FROM blob").fetchall()
    yield from (f"{name}: a file that is not deleted" for (name,) in files)
    yield from (f"{name}: held by {holder}" for name, holder in references)
    yield from (f"{name}: a row of a blob" for (name,) in rows)
    yield from (f"{name}: {size} bytes on disk" for name, size in _on_disk(data / "blobs").items())


@contextmanager
def reading(data: Path) -> Iterator[sqlite3.Connection]:
    """One moment of the database of a server that runs or does not; nothing can be written."""
    with closing(
        sqlite3.connect(f"file:{data / 'batchline.sqlite3'}?mode=ro", uri=True)
    ) as database:
        database.execute("BEGIN")
        yield database


def disagreements(data: Path, *, exactly: bool = False) -> Iterator[str]:
    """Every way in which rows and bytes below `data` do not fit, one line each.

    A segment may have bytes behind its last commit (it was refused, or never came); not `exactly`.
    """
    with reading(data) as database:
        rows: dict[str, int] = dict(database.execute("SELECT name, bytes FROM blob"))
        references = set(database.execute("SELECT blob_name, holder FROM blob_reference"))
        holders = {holder for (holder,) in database.execute(_HOLDERS, (_TERMINAL,))}
        needed = needs(database)
        short = database.execute(_WRONG_LENGTHS).fetchall()
    yield from (f"{name}: {size} bytes, and its ranges {found}" for name, size, found in short)
    sizes = _on_disk(data / "blobs")
    yield from (f"{name}: bytes without a row" for name in sorted(sizes.keys() - rows.keys()))
    yield from (f"{name}: a row without bytes" for name in sorted(rows.keys() - sizes.keys()))
    for name in sorted(rows.keys() & sizes.keys()):
        more = name.startswith("segment-") and sizes[name] > rows[name] and not exactly
        if sizes[name] != rows[name] and not more:
            yield f"{name}: {sizes[name]} bytes, and its row says {rows[name]}"
    held = {name for name, _ in references}
    yield from (f"{name}: nobody holds it" for name in sorted(rows.keys() - held))
    for name, holder in sorted(references):
        if holder not in holders and not holder.startswith("worker:"):
            yield f"{name}: held by {holder}, which has ended"
    for name, holder, stop in needed:
        if (name, holder) not in references:
            yield f"{name}: needed by {holder}, which does not hold it"
        if sizes.get(name, -1) < stop:
            yield f"{name}: needed by {holder} up to {stop}"


def _on_disk(root: Path) -> dict[str, int]:
    sizes = {}
    for path in root.rglob("*"):
        try:
            if path.is_file():
                sizes[path.name] = path.stat().st_size
        except FileNotFoundError:  # swept while we looked
            continue
    return sizes
