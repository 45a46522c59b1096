"""`batchline backup DIR`: a data directory as it was at one moment, copied while a server works.

Owns the command line and who is asked to keep still. `making` makes the copy, `checking` reads it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from batchline.cli.outcome import CommandFailed, add

if TYPE_CHECKING:
    from collections.abc import Callable

_ANSWER_S: Final = 30.0


def register(app: typer.Typer) -> None:
    """Add the command `backup` to the program's."""
    add(app, "backup", backup)


def backup(
    target: Annotated[
        Path, typer.Argument(metavar="DIR", help="The copy: a directory that is not there yet.")
    ],
    data_dir: Annotated[
        Path | None, typer.Option(help="The server's data directory. [./batchline-data]")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Make none: read the copy DIR and check every byte.")
    ] = False,
) -> None:
    """Copy the data directory to DIR, whether a server works on it or not.

    DIR is there whole or not at all. Files on the same file system are linked and take no room;
    elsewhere, what the newest copy beside DIR has already is linked from there.
    """
    from batchline.cli.backup import checking, making
    from batchline.cli.data_directory import existing
    from batchline.cli.network_disk import on_this_machine
    from batchline.cli.wording import size
    from batchline.config.loading import data_directory

    os.umask(0o077)  # whoever may read the copy may read every prompt and answer
    if verify:
        checked = checking.check(target)
        typer.echo(f"{target} is whole: {checked.blobs} blobs, {size(checked.bytes)} read")
        return
    root = existing(on_this_machine(data_directory(data_dir)))
    with _kept_still(root) as ended:
        made = making.make(root, target, ended=ended)
    typer.echo(
        f"{target}: {made.blobs} blobs, {size(made.bytes)}, of which {size(made.copied)} copied"
    )


@contextmanager
def _kept_still(root: Path) -> Iterator[Callable[[], bool]]:
    """Nothing that is referenced goes for the length of the block, unless the function that it
    gives says that the server ended.

    Raises:
        CommandFailed: nobody can be asked.
    """
    from batchline.api import admin
    from batchline.cli.data_directory import DataDirectory, admin_socket, reached_or_taken

    try:
        found = reached_or_taken(
            root, lambda: admin.Hold.at(admin_socket(root), timeout_s=_ANSWER_S)
        )
    except OSError as exc:
        raise CommandFailed(
            f"the server on {root} gave no answer ({exc.strerror or exc}); if it is of an older"
            " version, restart it with this one"
        ) from exc
    match found:
        case None:
            raise CommandFailed(
                f"{root} is in use: a server is starting or stopping, or another command is at"
                " work. Try again."
            )
        case DataDirectory():
            try:
                yield lambda: False
            finally:
                found.release()
        case hold:
            try:
                yield lambda: hold.is_lost
            finally:
                hold.close()
