"""`batchline keys create|list|revoke`: through the server on the data directory, or without one.

Only the server opens the database while it runs: these commands ask it at its admin socket, so
that a new key works and a revoked one ends at once. Without a server they take the directory's lock
and open the database themselves.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

if TYPE_CHECKING:
    from batchline.api.admin import Answer, Request, ShownKey
    from batchline.cli.data_directory import DataDirectory

_FAILED: Final = 1
_ANSWER_S: Final = 30.0  # a busy database is given ten by the server

keys = typer.Typer(
    name="keys",
    help="Create, list and revoke the keys that requests need.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

DataDir = Annotated[
    Path | None, typer.Option(help="The server's data directory. [./batchline-data]")
]


def register(app: typer.Typer) -> None:
    """Add the commands `keys …` to the program's."""
    app.add_typer(keys)


@keys.command()
def create(
    project: Annotated[
        str,
        typer.Option(
            help="Whose key it is. A new name makes a new project; `default` has what was"
            " there before the first key."
        ),
    ],
    data_dir: DataDir = None,
) -> None:
    """Make a key and print it, alone on standard output. It cannot be shown again.

    Once there is a key every request needs one.
    """
    from batchline.api.admin import CreateKey, KeyCreated

    match _asked(CreateKey(project), _place(data_dir)):
        case KeyCreated(key=key, secret=secret):
            typer.echo(f"{key.id} of project {key.project} ({key.project_id}).", err=True)
            typer.echo("Keep it: only its hash is stored, and it is not shown again.", err=True)
            typer.echo(secret)
        case answer:
            _give_up(answer)


@keys.command("list")
def list_keys(
    data_dir: DataDir = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Show every key, oldest first: what it is called, whose it is, how it begins."""
    from batchline.api.admin import KeysListed, ListKeys

    match _asked(ListKeys(), _existing_place(data_dir)):
        case KeysListed(keys=found):
            for line in _as_json(found) if json else _as_table(found):
                typer.echo(line)
        case answer:
            _give_up(answer)


@keys.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="key_…, as `list` shows it.")],
    data_dir: DataDir = None,
) -> None:
    """Revoke a key for good: no later request is answered for it. Batches go on."""
    from batchline.api.admin import KeyRevoked, RevokeKey

    match _asked(RevokeKey(key_id), _existing_place(data_dir)):
        case KeyRevoked(key=key):
            typer.echo(
                f"{key.id} of project {key.project} is revoked since {_when(key.revoked_at)}"
            )
        case answer:
            _give_up(answer)


# -- where and how -------------------------------------------------------------------------------


def _existing_place(data_dir: Path | None) -> Path:
    from batchline.cli.data_directory import existing

    return existing(_place(data_dir))


def _place(data_dir: Path | None) -> Path:
    from batchline.cli.network_disk import on_this_machine
    from batchline.config.loading import data_directory

    return on_this_machine(data_directory(data_dir))


def _asked(request: Request, root: Path) -> Answer:
    """The answer of the server on `root`, or of ourselves when there is no server."""
    from batchline.api import admin
    from batchline.cli.data_directory import DataDirectory, admin_socket, reached_or_taken

    try:
        found: Answer | DataDirectory | None = reached_or_taken(
            root, lambda: admin.ask(admin_socket(root), request, timeout_s=_ANSWER_S)
        )
    except OSError as exc:
        return admin.Refused(
            f"The server on {root} gave no answer ({exc.strerror or exc});"
            " see with `batchline keys list` what was done."
        )
    if found is None:
        return admin.Refused(f"A server on {root} is starting or stopping. Try again.")
    if isinstance(found, DataDirectory):
        try:
            return _done_here(request, found)
        finally:
            found.release()
    return found


def _done_here(request: Request, directory: DataDirectory) -> Answer:
    import uvloop

    from batchline import telemetry
    from batchline.api.admin import answer_to
    from batchline.service.keys import Keys
    from batchline.store.database import Database
    from batchline.store.engine import sqlite_url

    async def done() -> Answer:
        store = await Database.open(sqlite_url(directory.database))
        try:
            return await answer_to(request, await Keys.open(store))
        finally:
            await store.close()

    telemetry.configure_logging(level="warning")  # the command says itself what it did
    return uvloop.run(done())


def _give_up(answer: Answer) -> None:
    message = getattr(answer, "message", "The server answered something else.")
    typer.echo(f"batchline: {message}", err=True)
    raise typer.Exit(_FAILED)


# -- what is shown -------------------------------------------------------------------------------


def _as_table(found: list[ShownKey]) -> list[str]:
    rows = [("ID", "PROJECT", "BEGINS WITH", "CREATED", "REVOKED")]
    rows += [
        (key.id, key.project, key.prefix, _when(key.created_at), _when(key.revoked_at))
        for key in found
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _as_json(found: list[ShownKey]) -> list[str]:
    import msgspec

    return [msgspec.json.encode(key).decode() for key in found]


def _when(seconds: int | None) -> str:
    return "-" if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%SZ}"
