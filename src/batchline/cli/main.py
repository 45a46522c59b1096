"""The command line: what a person types, turned into settings and handed on.

Imports of what a command needs happen inside it: `--version` answers at once, and `serve` works
where the demo's extra packages are missing.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import typer

from batchline import __version__
from batchline.domain.errors import ConfigError

EXIT_CONFIG = 2
EXIT_INTERRUPTED = 130  # before there is anything to drain

app = typer.Typer(
    name="batchline",
    help="The OpenAI Batch API for any OpenAI-compatible inference backend.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # its tracebacks show local variables, and those hold keys
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"batchline {__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[  # its callback has answered already
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show it.")
    ] = False,
) -> None:
    """The OpenAI Batch API for any OpenAI-compatible inference backend."""


@app.command()
def serve(
    upstream: Annotated[
        list[str] | None,
        typer.Option(help="A backend's base URL, with or without /v1. Repeat for more."),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="A TOML file with settings.")] = None,
    host: Annotated[
        str | None, typer.Option(help="Other machines need a key to be let in. [127.0.0.1]")
    ] = None,
    port: Annotated[int | None, typer.Option(help="0: any free one. [8484]")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="[./batchline-data]")] = None,
    insecure_no_auth: Annotated[
        bool | None,
        typer.Option(
            "--insecure-no-auth", help="Listen for other machines although there are no keys."
        ),
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Worker processes. [1]")] = None,
    cancel_grace_s: Annotated[
        float | None,
        typer.Option(help="Seconds that running requests may go on after a cancel. [10]"),
    ] = None,
    shutdown_grace_s: Annotated[
        float | None,
        typer.Option(help="Seconds that running requests may go on after SIGTERM. [10]"),
    ] = None,
) -> None:
    """Run the server in the foreground until SIGTERM or Ctrl-C.

    Without --upstream and without backends in the file it looks for Ollama, LM Studio, vLLM,
    llama.cpp and SGLang on their usual ports.
    """
    from batchline.cli.signals import at_once_until_then

    at_once_until_then(EXIT_INTERRUPTED)
    from batchline.cli.network_disk import on_this_machine
    from batchline.config.loading import load

    options = {
        "server.host": host,
        "server.port": port,
        "server.data_dir": data_dir,
        "server.insecure_no_auth": insecure_no_auth,
        "workers": workers,
        "cancel.grace_s": cancel_grace_s,
        "shutdown.grace_s": shutdown_grace_s,
    }
    settings = load(config=config, options=options, upstreams=upstream or ())
    data = on_this_machine(settings.server.data_dir)
    settings = dataclasses.replace(
        settings, server=dataclasses.replace(settings.server, data_dir=data)
    )
    if not settings.backends:
        from batchline.cli.local_backends import with_local_backends

        settings = with_local_backends(settings)
    from batchline.cli.serve import run

    raise typer.Exit(run(settings))


def _register_commands() -> None:
    # These modules import what they need when they run, not when they are imported.
    from batchline.cli import backends, backup, client, demo, keys, probe, run

    run.register(app)
    client.register(app)
    keys.register(app)
    backends.register(app)
    backup.register(app)
    probe.register(app)
    demo.register(app)


_register_commands()


def main() -> None:
    """Run the program; a wrong setting ends it with one line on stderr and exit code 2."""
    try:
        app()
    except ConfigError as exc:
        print(f"batchline: {exc.message}", file=sys.stderr)  # noqa: T201  # the command's output
        sys.exit(EXIT_CONFIG)


if __name__ == "__main__":
    main()
