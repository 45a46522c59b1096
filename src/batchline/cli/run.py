"""`batchline run`: one input file through the engine, without a server.

Owns the command line. `run_directory` is where a run's state lives between two starts,
`run_engine` drives it, `run_results` writes its files.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from batchline.cli.outcome import INTERRUPTED, USAGE, CommandFailed, add
from batchline.domain.model import DAY_S

if TYPE_CHECKING:
    from batchline.config.settings import Settings

_CENTURY_S: Final = 100 * 365 * DAY_S


def register(app: typer.Typer) -> None:
    """Add the command `run` to the program's."""
    add(app, "run", run)


def run(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="The input file, JSONL.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="Where the results go.")
    ],
    errors: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where failed lines go. [OUTPUT with .errors]"),
    ] = None,
    upstream: Annotated[
        list[str] | None,
        typer.Option(help="A backend's base URL, with or without /v1. Repeat for more."),
    ] = None,
    endpoint: Annotated[
        str | None, typer.Option(help="Such as /v1/chat/completions. [the first line's url]")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="A TOML file with settings, such as backends with keys.")
    ] = None,
    run_once: Annotated[
        bool | None,
        typer.Option(
            "--run-once/--no-run-once",
            help="Send lines with the same body once. [as [projects.default] has it]",
        ),
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Worker processes. [1]")] = None,
    cancel_grace_s: Annotated[
        float | None,
        typer.Option(help="Seconds that running requests may go on after Ctrl-C. [10]"),
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin anew, whatever an earlier run left.")
    ] = False,
) -> None:
    """Run every line of INPUT and write the results, without a server.

    Ctrl-C cancels: what is done is written, every other line goes to the error file. A second
    Ctrl-C ends at once. The same command again goes on where it stopped, after either of them and
    after kill -9 or a power cut: finished lines are not sent again.

    There is no completion window, and the limits on lines and bytes of a file do not apply. Until
    all is done the state is in .OUTPUT.batchline beside the output.

    Exit codes: 0 every line succeeded, 1 some lines failed (they are in the error file), 2 wrong
    options or a bad input file: nothing was run, 130 cancelled: the files are partial.
    """
    from batchline.cli.signals import at_once_until_then

    at_once_until_then(INTERRUPTED)
    from batchline.cli import input_check
    from batchline.cli.network_disk import on_this_machine
    from batchline.cli.run_directory import RunDirectory
    from batchline.cli.run_engine import Order, go
    from batchline.config.loading import load

    error_path = errors or output.with_name(f"{output.stem}.errors{output.suffix}")
    _check_places(source, output, error_path)
    order = Order(
        source=source,
        endpoint=input_check.endpoint_of(source, endpoint, wrong=USAGE),
        output=output,
        errors=error_path,
        run_once=run_once,
    )
    options = {"workers": workers, "cancel.grace_s": cancel_grace_s}
    settings = load(config=config, options=options, upstreams=upstream or ())
    if not settings.backends:
        settings = _with_local_backends(settings)
    root = on_this_machine(output.with_name(f".{output.name}.batchline"))
    code = go(_without_limits(settings, root), RunDirectory(root), order, restart=restart)
    if code:
        raise typer.Exit(code)


def _check_places(source: Path, output: Path, errors: Path) -> None:
    places = [path.resolve() for path in (source, output, errors)]
    if len(set(places)) < len(places):
        raise CommandFailed("INPUT, --output and --errors have to be three files", exit_code=USAGE)
    for path in (output, errors):
        if not path.parent.is_dir():
            raise CommandFailed(f"{path}: there is no such directory", exit_code=USAGE)
        if path.exists() and not path.is_file():
            raise CommandFailed(f"{path}: is not a file", exit_code=USAGE)


def _with_local_backends(settings: Settings) -> Settings:
    from batchline.cli.local_backends import with_local_backends

    settings = with_local_backends(settings)
    if not settings.backends:
        raise CommandFailed("Name one with --upstream http://HOST:PORT", exit_code=USAGE)
    return settings


def _without_limits(settings: Settings, root: Path) -> Settings:
    """The settings of a run: its own directory, no window, and only lines are limited (they are
    held in memory)."""
    return dataclasses.replace(
        settings,
        windows={"24h": _CENTURY_S},
        allow_mixed_models=True,
        server=dataclasses.replace(settings.server, data_dir=root),
        limits=dataclasses.replace(
            settings.limits,
            max_file_bytes=0,
            max_batch_file_bytes=0,
            max_lines=0,
            max_embedding_inputs=0,
        ),
    )
