"""Rows and bytes of a data directory, compared: what is on disk, what is known, what is needed.

Reads the database of a running server beside it, so it sees one committed moment; the bytes are
looked at afterwards. Only a server that is at rest can be expected to agree.
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

from batchline.domain import lifecycle

AGREE_S: Final = 15.0
POLL_S: Final = 0.02

_TERMINAL: Final = sorted(lifecycle.TERMINAL)

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


def wait_until_rows_and_bytes_agree(data: Path) -> None:
    """Poll until nothing disagrees: the sweeps of a server at rest have removed what can go."""
    deadline = time.monotonic() + AGREE_S
    while found := list(disagreements(data)):
        assert time.monotonic() < deadline, "\n".join(found)
        time.sleep(POLL_S)


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


def disagreements(data: Path) -> Iterator[str]:
    """Every way in which rows and bytes below `data` do not fit, one line each."""
    with closing(
        sqlite3.connect(f"file:{data / 'batchline.sqlite3'}?mode=ro", uri=True)
    ) as database:
        database.execute("BEGIN")
        rows: dict[str, int] = dict(database.execute("SELECT name, bytes FROM blob"))
        references = set(database.execute("SELECT blob_name, holder FROM blob_reference"))
        terminal = "[" + ",".join(f'"{status}"' for status in _TERMINAL) + "]"
        holders = {holder for (holder,) in database.execute(_HOLDERS, (terminal,))}
        needs = database.execute(_NEEDS, (terminal,)).fetchall()
    sizes = _on_disk(data / "blobs")
    yield from (f"{name}: bytes without a row" for name in sorted(sizes.keys() - rows.keys()))
    yield from (f"{name}: a row without bytes" for name in sorted(rows.keys() - sizes.keys()))
    for name in sorted(rows.keys() & sizes.keys()):
        # A segment may have bytes behind its last commit: their commit was refused or never came.
        if sizes[name] != rows[name] and not (
            name.startswith("segment-") and sizes[name] > rows[name]
        ):
            yield f"{name}: {sizes[name]} bytes, and its row says {rows[name]}"
    held = {name for name, _ in references}
    yield from (f"{name}: nobody holds it" for name in sorted(rows.keys() - held))
    for name, holder in sorted(references):
        if holder not in holders and not holder.startswith("worker:"):
            yield f"{name}: held by {holder}, which has ended"
    for name, holder, stop in needs:
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
