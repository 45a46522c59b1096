"""Makes the copy: the database's rows first, then the bytes that those rows speak of.

    .DIR.unfinished/            renamed to DIR at the very end: a half copy never has its name
        batchline.sqlite3       one committed moment
        blobs/…                 what that moment references, segments up to their committed end
        format, backup.json     what wrote it, and when

Bytes after rows is the order that works: a blob is durable before its row is, and whoever makes a
copy has seen to it that none goes meanwhile.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Final

import msgspec

from batchline import __version__, telemetry
from batchline.cli.data_directory import FORMAT, DataDirectory
from batchline.cli.outcome import CommandFailed
from batchline.cli.whole_file import whole_file
from batchline.domain.errors import ConfigError
from batchline.domain.model import BlobKind
from batchline.durable import sync_folder
from batchline.store.blobs import LocalBlobs
from batchline.store.snapshot import NeededBlob, Snapshot, copy_database

_CHUNK_BYTES: Final = 1024 * 1024
_SYNC_BYTES: Final = 8 * _CHUNK_BYTES  # as uploads: the server's own syncs wait behind ours
_NICENESS: Final = 5  # the server goes first

# A file system that has no links, or none between these two places.
_NO_LINK: Final = frozenset(
    {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES}
)


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """`backup.json`: what made the copy, when (Unix seconds), and how much it should be."""

    version: str
    schema: str
    made_at: int
    blobs: int
    bytes: int


@dataclass(slots=True, kw_only=True)
class Made:
    """How much the copy has, and how much of it was not linked."""

    blobs: int = 0
    bytes: int = 0
    copied: int = 0


def mark_of(root: Path) -> Path:
    return root / "backup.json"


def read_mark(root: Path) -> Mark | None:
    """The mark of a whole copy; None where there is none."""
    try:
        return msgspec.json.decode(mark_of(root).read_bytes(), type=Mark)
    except (OSError, msgspec.DecodeError):
        return None


def make(source: Path, target: Path, *, ended: Callable[[], bool]) -> Made:
    """Copy the data directory `source` to `target`. The caller has seen to it that what is
    referenced stays; `ended` says that it no longer can.

    On any error and on a signal nothing is left. After kill -9 `.NAME.unfinished` is, which the
    next copy to the same place replaces.

    Raises:
        ConfigError: the copy cannot be there.
        CommandFailed: it could not be made.
    """
    telemetry.arm(os.environ.get("BATCHLINE_PROBES", ""))
    target = _checked_target(source.resolve(), target)
    os.nice(_NICENESS)
    unfinished = target.with_name(f".{target.name}.unfinished")
    with _ending_in_order(), _only_one(unfinished):
        try:
            made = _Copy(source.resolve(), unfinished, ended).whole()
            telemetry.probe("backup.finished")
            unfinished.rename(target)
            sync_folder(target.parent)
            telemetry.probe("backup.named")
        except OSError as exc:
            _drop(unfinished)
            what = "no space left" if exc.errno in (errno.ENOSPC, errno.EDQUOT) else exc.strerror
            raise CommandFailed(f"{target}: {what}; nothing was left there") from exc
        except BaseException:
            _drop(unfinished)
            raise
    return made


def _checked_target(source: Path, target: Path) -> Path:
    """`target`, resolved.

    Raises:
        ConfigError: it has something in it, or is inside the data directory.
    """
    target = target.resolve()
    if target.is_relative_to(source):
        raise ConfigError(f"{target} is inside the data directory {source}: choose another place")
    if not target.parent.is_dir():
        raise ConfigError(f"{target}: there is no directory {target.parent}")
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ConfigError(f"{target} exists and is not an empty directory")
    return target


@contextmanager
def _only_one(unfinished: Path) -> Iterator[None]:
    """The empty folder `unfinished`, locked; what a killed copy left in it goes."""
    try:
        unfinished.mkdir(mode=0o700, exist_ok=True)
        fd = os.open(unfinished, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as exc:
        raise ConfigError(f"{unfinished}: {exc.strerror}") from exc
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            raise ConfigError(f"{unfinished}: another copy is being made there") from exc
        for left in unfinished.iterdir():
            _drop(left)
        yield
    finally:
        os.close(fd)


def _drop(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _ending_in_order() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block as Ctrl-C does, so that nothing is left."""

    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  # signal's own shape
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass(slots=True)
class _Copy:
    """One copy under way from `source` to `root`; both are data directories."""

    source: Path
    root: Path
    ended: Callable[[], bool]
    made: Made = field(default_factory=Made)
    _earlier: LocalBlobs | None = None

    def whole(self) -> Made:
        self._earlier = self._newest_beside()
        copy = DataDirectory(self.root, -1)
        telemetry.probe("backup.began")
        schema = self._rows(copy)
        telemetry.probe("backup.rows")
        self._bytes(copy)
        telemetry.probe("backup.bytes")
        with whole_file(copy.format) as file:
            file.write(b"%d\n" % FORMAT)
        mark = Mark(
            version=__version__,
            schema=schema,
            made_at=int(time.time()),
            blobs=self.made.blobs,
            bytes=self.made.bytes,
        )
        with whole_file(mark_of(self.root)) as file:
            file.write(msgspec.json.encode(mark) + b"\n")
        return self.made

    def _rows(self, copy: DataDirectory) -> str:
        try:
            copy_database(DataDirectory(self.source, -1).database, copy.database)
        except sqlite3.Error as exc:
            raise CommandFailed(f"the database in {self.source} cannot be copied: {exc}") from exc
        with closing(Snapshot(copy.database)) as snapshot:
            return snapshot.schema()

    def _bytes(self, copy: DataDirectory) -> None:
        theirs = LocalBlobs(DataDirectory(self.source, -1).blobs)
        ours = LocalBlobs(copy.blobs)
        with closing(Snapshot(copy.database)) as snapshot:
            for blob in snapshot.needed():
                self._one(theirs, ours, blob)
                telemetry.probe("backup.blob")
        for kind in BlobKind:
            sync_folder(copy.blobs / kind.value)
        sync_folder(self.root)

    def _one(self, theirs: LocalBlobs, ours: LocalBlobs, blob: NeededBlob) -> None:
        source, target = theirs.path(blob.name), ours.path(blob.name)
        try:
            if source.stat().st_size < blob.bytes:
                raise self._damaged(blob)
            if blob.growing or not (_linked(source, target) or self._linked_beside(blob, target)):
                _copied(source, target, blob.bytes)
                self.made.copied += blob.bytes
        except FileNotFoundError as exc:
            raise self._damaged(blob) from exc
        self.made.blobs += 1
        self.made.bytes += blob.bytes

    def _damaged(self, blob: NeededBlob) -> CommandFailed:
        if self.ended():
            return CommandFailed("the server ended meanwhile, and the next one deleted: try again")
        return CommandFailed(
            f"{self.source} is damaged: {blob.name} is missing or short. Nothing was copied;"
            " delete the files that have it, and try again"
        )

    def _newest_beside(self) -> LocalBlobs | None:
        """The blobs of the newest whole copy in the same folder."""
        newest = max(
            (
                (mark.made_at, folder.name)
                for folder in self.root.parent.iterdir()
                if folder != self.root and (mark := read_mark(folder)) is not None
            ),
            default=None,
        )
        if newest is None:
            return None
        return LocalBlobs(DataDirectory(self.root.parent / newest[1], -1).blobs)

    def _linked_beside(self, blob: NeededBlob, target: Path) -> bool:
        """Whether the earlier copy has all of it: names are never used twice, and what is written
        is never changed."""
        if self._earlier is None:
            return False
        source = self._earlier.path(blob.name)
        with suppress(FileNotFoundError):
            return source.stat().st_size >= blob.bytes and _linked(source, target)
        return False


def _linked(source: Path, target: Path) -> bool:
    try:
        target.hardlink_to(source)
    except OSError as exc:
        if exc.errno in _NO_LINK:
            return False
        raise
    return True


def _copied(source: Path, target: Path, size: int) -> None:
    """Write the first `size` bytes of `source` to the new file `target`, durably."""
    with (
        source.open("rb", buffering=0) as reading,
        target.open("xb", buffering=0) as writing,
    ):
        left = unsynced = size
        while left:
            chunk = reading.read(min(left, _CHUNK_BYTES))
            if not chunk:
                raise FileNotFoundError(errno.ENOENT, "it became shorter", str(source))
            view = memoryview(chunk)
            while view:
                view = view[writing.write(view) :]
            left -= len(chunk)
            if unsynced - left >= _SYNC_BYTES:
                os.fsync(writing.fileno())
                unsynced = left
        os.fsync(writing.fileno())
