"""A committed moment of an SQLite database as a file of its own, and what that moment needs.

For back-ups. Beside a running server it reads only, in another process: SQLite keeps the readers
and the one writer of a database with a write-ahead log out of each other's way.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from batchline.domain.ids import BlobName
from batchline.domain.model import BlobKind, BlobRange
from batchline.store.engine import BUSY_S
from batchline.store.references import WORKER_HOLDER

# Not what only a worker holds: its segment has nothing in it that anybody could ask for.
_NEEDED: Final = """
    SELECT name, kind, bytes, EXISTS (
        SELECT 1 FROM blob_reference WHERE blob_name = name AND holder LIKE :workers
    ) FROM blob WHERE EXISTS (
        SELECT 1 FROM blob_reference WHERE blob_name = name AND holder NOT LIKE :workers
    ) ORDER BY name
"""

# Of files that are still there and of batches that have not ended; the rows of others are gone.
_RANGES: Final = """
    SELECT blob_name, start, stop, crc FROM file_range
        JOIN file ON file.sequence = file_sequence WHERE deleted_at IS NULL
    UNION ALL SELECT blob_name, start, stop, crc FROM segment_commit
    {more}
    ORDER BY blob_name, start
"""
_PARTIALS: Final = "UNION ALL SELECT blob_name, start, stop, crc FROM partial_commit"


@dataclass(frozen=True, slots=True, kw_only=True)
class NeededBlob:
    """A blob that something references: its first `bytes` bytes count.

    `growing`: a worker may append to it at any time. Every other blob is never written again.
    """

    name: BlobName
    kind: BlobKind
    bytes: int
    growing: bool


def copy_database(source: Path, target: Path) -> None:
    """Write what is committed in `source` now to the new file `target`, durably.

    One committed moment, however many writes come meanwhile; none of them waits. The copy is one
    plain file without a log beside it.

    Raises:
        OSError: it cannot be written, or (ENOSPC) there is no room for it.
        sqlite3.Error: `source` is no database, or is locked.
    """
    with (
        _full_disk_named(),
        closing(sqlite3.connect(f"{source.as_uri()}?mode=rw", uri=True, timeout=BUSY_S)) as ours,
        closing(sqlite3.connect(target)) as copy,
    ):
        copy.execute("PRAGMA synchronous = OFF")  # it is synced once, below
        # In one step: with several, each write of the server would start the copy anew.
        ours.backup(copy, pages=-1)
        copy.execute("PRAGMA journal_mode = DELETE")
    fd = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def _full_disk_named() -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as exc:
        if exc.sqlite_errorcode == sqlite3.SQLITE_FULL:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from exc
        raise


class Snapshot:
    """A copy that `copy_database` made, open for reading."""

    def __init__(self, path: Path) -> None:
        """Raises sqlite3.Error where there is no database at `path`."""
        self._database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)

    def close(self) -> None:
        self._database.close()

    def schema(self) -> str:
        """The newest migration that it has."""
        return str(self._database.execute("SELECT version_num FROM alembic_version").fetchone()[0])

    def problems(self) -> list[str]:
        """What SQLite finds wrong with its own pages; nothing, as a rule."""
        found = [str(row[0]) for row in self._database.execute("PRAGMA quick_check(20)")]
        return [] if found == ["ok"] else found

    def needed(self) -> Iterator[NeededBlob]:
        """Every blob that something references, by name."""
        for name, kind, size, growing in self._database.execute(
            _NEEDED, {"workers": f"{WORKER_HOLDER}%"}
        ):
            yield NeededBlob(
                name=BlobName(name), kind=BlobKind(kind), bytes=size, growing=bool(growing)
            )

    def ranges(self) -> Iterator[BlobRange]:
        """Every range of every manifest and of every commit, in the order of the bytes."""
        # A copy may be older than the table of partials.
        has_partials = self._database.execute(
            "SELECT 1 FROM sqlite_master WHERE name = 'partial_commit'"
        ).fetchone()
        query = _RANGES.format(more=_PARTIALS if has_partials else "")
        for name, start, stop, crc in self._database.execute(query):
            yield BlobRange(blob=BlobName(name), start=start, stop=stop, crc=crc)
