"""`batchline backends list|drain|undrain`: asked of the server on the data directory."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from batchline.cli.outcome import UNREACHABLE, CommandFailed, add, ended_well

if TYPE_CHECKING:
    from batchline.api.admin_backends import ListBackends, SetDrained, ShownBackend

_ANSWER_S: Final = 30.0
_LOOK_S: Final = 0.2  # how often a drain looks whether it is over

backends = typer.Typer(
    name="backends",
    help="Show the backends, take one out for maintenance, take it back.",
    no_args_is_help=False,
    pretty_exceptions_enable=False,
)

DataDir = Annotated[
    Path | None, typer.Option(help="The server's data directory. [./batchline-data]")
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="As `batchline backends` shows it.")]


def register(app: typer.Typer) -> None:
    """Add the commands `backends …` to the program's."""
    backends.callback(invoke_without_command=True)(_bare)
    add(backends, "list", list_backends)
    add(backends, "drain", drain)
    add(backends, "undrain", undrain)
    app.add_typer(backends)


def _bare(context: typer.Context, data_dir: DataDir = None) -> None:
    """Show the backends, take one out for maintenance, take it back."""
    if context.invoked_subcommand is None:
        ended_well(list_backends)(data_dir=data_dir, json=False)


def list_backends(
    data_dir: DataDir = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Show every backend: its state, what is in flight of what may be, and why lines wait."""
    from batchline.api.admin_backends import ListBackends

    found = _asked(ListBackends(), data_dir)
    for line in _as_json(found) if json else _as_table(found):
        typer.echo(line)


def drain(
    name: Name,
    data_dir: DataDir = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Stay until nothing of ours runs there.")
    ] = True,
) -> None:
    """Send nothing more to a backend; requests that run there run to their end.

    It stays so until `undrain`, also over restarts of the server. Lines go to other backends of
    their model, or wait. Ctrl-C ends the waiting, not the drain.
    """
    from batchline.api.admin_backends import ListBackends, SetDrained

    (one,) = _asked(SetDrained(name, drained=True), data_dir)
    if not wait and not one.quiet:
        typer.echo(f"{name} is draining")
        return
    shown = -1
    while not one.quiet:
        if one.in_flight != shown:
            shown = one.in_flight
            typer.echo(f"{name}: {shown} in flight", err=True)
        time.sleep(_LOOK_S)
        found = [one for one in _asked(ListBackends(), data_dir) if one.name == name]
        if not found or not found[0].drained:
            raise CommandFailed(f"{name} is not drained any more: somebody took it back")
        (one,) = found
    typer.echo(f"{name} is quiet: nothing of this server runs there")


def undrain(name: Name, data_dir: DataDir = None) -> None:
    """Send to a drained backend again."""
    from batchline.api.admin_backends import SetDrained

    _asked(SetDrained(name, drained=False), data_dir)
    typer.echo(f"{name} is taken back")


def _asked(request: ListBackends | SetDrained, data_dir: Path | None) -> list[ShownBackend]:
    """What the server says.

    Raises:
        CommandFailed: there is none, or it did not do it.
    """
    from batchline.api import admin
    from batchline.api.admin_backends import BackendsListed
    from batchline.cli.data_directory import admin_socket, existing
    from batchline.cli.network_disk import on_this_machine
    from batchline.config.loading import data_directory

    root = existing(on_this_machine(data_directory(data_dir)))
    try:
        answer = admin.ask(admin_socket(root), request, timeout_s=_ANSWER_S)
    except OSError as exc:
        raise CommandFailed(
            f"the server on {root} gave no answer ({exc.strerror or exc}); `batchline backends`"
            " shows what was done. If it is of an older version, restart it with this one"
        ) from exc
    match answer:
        case None:
            raise CommandFailed(f"no server runs on {root}", exit_code=UNREACHABLE)
        case BackendsListed(backends=found):
            return found
        case _:
            message = getattr(answer, "message", "The server answered something else.")
            raise CommandFailed(message)


def _as_table(found: list[ShownBackend]) -> list[str]:
    rows = [("NAME", "STATE", "IN FLIGHT", "PERMITS", "WEIGHT", "CIRCUIT", "WAITS FOR IT")]
    rows += [
        (
            one.name,
            one.state,
            str(one.in_flight),
            f"{one.permits} of {one.max_in_flight}",
            f"{one.weight:g}",
            one.circuit,
            one.reason or "-",
        )
        for one in found
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _as_json(found: list[ShownBackend]) -> list[str]:
    import msgspec

    return [msgspec.json.encode(one).decode() for one in found]
