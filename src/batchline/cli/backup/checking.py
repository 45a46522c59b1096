"""Reads a copy and holds its bytes against its rows."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import BinaryIO, Final

import google_crc32c

from batchline.cli.backup.making import read_mark
from batchline.cli.data_directory import DataDirectory, format_of
from batchline.cli.outcome import CommandFailed
from batchline.domain import plan
from batchline.domain.errors import ConfigError
from batchline.domain.ids import BlobName
from batchline.domain.model import BlobKind, BlobRange
from batchline.store.blobs import LocalBlobs
from batchline.store.schema import refuse_newer
from batchline.store.snapshot import NeededBlob, Snapshot

_CHUNK_BYTES: Final = 1024 * 1024
_SHOWN: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What was there, and how many bytes were read to compare them."""

    blobs: int
    bytes: int


def check(root: Path) -> Checked:
    """Check that the copy `root` is whole.

    Every blob that a row needs is there in its length, every range that has a checksum has those
    bytes, every plan is one, and the database is sound. An uploaded file has no checksum: of it
    only the length is known.

    Raises:
        ConfigError: `root` is no copy, or a newer Batchline made it.
        CommandFailed: it is not whole; the message has the first faults.
    """
    if read_mark(root) is None:
        raise ConfigError(f"{root} is no finished copy: it has no backup.json that can be read")
    format_of(root)
    directory = DataDirectory(root, -1)
    refuse_newer(directory.database)
    reading = _Reading(LocalBlobs(directory.blobs))
    try:
        with closing(Snapshot(directory.database)) as snapshot:
            reading.problems += [f"database: {one}" for one in snapshot.problems()]
            for blob in snapshot.needed():
                reading.blob(blob)
            for name, ranges in groupby(snapshot.ranges(), lambda one: one.blob):
                reading.ranges(name, ranges)
    except sqlite3.Error as exc:
        raise CommandFailed(f"{root}: the database cannot be read: {exc}") from exc
    if reading.problems:
        first, more = reading.problems[:_SHOWN], len(reading.problems) - _SHOWN
        listed = "\n  ".join([*first, f"… and {more} more"] if more > 0 else first)
        raise CommandFailed(f"{root} is damaged:\n  {listed}")
    return Checked(blobs=reading.blobs_seen, bytes=reading.bytes_read)


class _Reading:
    """What was found so far."""

    def __init__(self, blobs: LocalBlobs) -> None:
        self.problems: list[str] = []
        self.blobs_seen = 0
        self.bytes_read = 0
        self._blobs = blobs

    def blob(self, blob: NeededBlob) -> None:
        """It is there, as long as its row says; of a segment there may be more."""
        self.blobs_seen += 1
        path = self._blobs.path(blob.name)
        try:
            size = path.stat().st_size
            with path.open("rb") as file:
                head = file.read(plan.HEADER_BYTES)
        except OSError as exc:
            self.problems.append(f"{blob.name}: {exc.strerror}")
            return
        if size < blob.bytes or (size > blob.bytes and blob.kind is not BlobKind.SEGMENT):
            self.problems.append(f"{blob.name}: {size} bytes, and its row says {blob.bytes}")
        if blob.kind is BlobKind.PLAN:
            try:
                plan.check_header(head)
            except ValueError as exc:
                self.problems.append(f"{blob.name}: {exc}")

    def ranges(self, name: BlobName, ranges: Iterable[BlobRange]) -> None:
        """Those of one blob, in the order of its bytes."""
        try:
            with self._blobs.path(name).open("rb") as file:
                for part in ranges:
                    if part.crc is not None and self._crc(file, part) != part.crc:
                        self.problems.append(f"{name}: other bytes from {part.start} on")
        except OSError as exc:
            self.problems.append(f"{name}: {exc.strerror}")

    def _crc(self, file: BinaryIO, part: BlobRange) -> int:
        """The CRC-32C of what is there of the range."""
        file.seek(part.start)
        crc, left = 0, part.stop - part.start
        while left and (chunk := file.read(min(left, _CHUNK_BYTES))):
            crc = google_crc32c.extend(crc, chunk)
            left -= len(chunk)
            self.bytes_read += len(chunk)
        return crc
