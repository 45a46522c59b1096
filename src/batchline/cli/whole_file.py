"""Files that appear with everything in them or not at all, and names that last."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from batchline.cli.outcome import CommandFailed
from batchline.durable import sync_folder


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which takes `path`'s place when the block ends without an error.

    Written as `PATH.part` beside it, synced, renamed; on an error the part goes and what was at
    `path` stays. What is there and is no regular file (a pipe, /dev/null) is written in place.

    Raises:
        CommandFailed: it cannot be written.
    """
    target = path.resolve()  # where a link points to, so that the link stays
    in_place = target.exists() and not target.is_file()
    part = target if in_place else target.with_name(target.name + ".part")
    try:
        with part.open("wb") as file:
            try:
                yield file
                file.flush()
                if not in_place:
                    os.fsync(file.fileno())
            except BaseException:  # Ctrl-C too: no part stays
                if not in_place:
                    part.unlink(missing_ok=True)
                raise
        if not in_place:
            part.replace(target)
            sync_folder(target.parent)
    except BrokenPipeError:
        raise
    except OSError as exc:
        raise CommandFailed(f"{path}: {exc.strerror}") from exc


def make_folder(folder: Path, *, mode: int = 0o777) -> None:
    """Make `folder` and the parents that are missing; what is in it can last from here on.

    `mode`, less the umask, is what `folder` itself gets when it is made here.

    Raises:
        OSError: it cannot be made, or its name not be made to last.
    """
    if folder.is_dir():
        # Whoever made it may have ended before its name was on disk. Where that is not ours to
        # sync (its parent may be another file system, or closed to us), it was not ours to make.
        with suppress(OSError):
            sync_folder(folder.parent)
        return
    make_folder(folder.parent)
    folder.mkdir(mode=mode, exist_ok=True)
    sync_folder(folder.parent)
