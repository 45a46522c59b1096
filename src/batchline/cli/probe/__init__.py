"""`batchline probe`: what a backend supports, whether a close stops it, and what to set for it.

target.py       the backend: requests and closes, counted
recognition.py  which engine it is
closing.py      does a close stop a generation
probing.py      the steps, and the settings that follow
report.py       what is printed
"""

from __future__ import annotations

from typing import Annotated

import typer

from batchline.cli.outcome import FAILED, add


def register(app: typer.Typer) -> None:
    """Add the command `probe` to the program's."""
    add(app, "probe", probe)


def probe(
    url: Annotated[str, typer.Argument(metavar="URL", help="The backend, with or without /v1.")],
    model: Annotated[
        str | None, typer.Option(help="Which model to ask. [the first that it lists]")
    ] = None,
    api_key_env: Annotated[
        str | None, typer.Option(metavar="NAME", help="The variable that holds the key.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=5.0, help="Seconds for all of it.")] = 60.0,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Find out what a backend supports and what to set for it.

    Above all: whether closing a connection stops the generation behind it, which is what a cancel
    does. It sends 50 requests at most, closes twenty of them hard, and looks whether the backend
    still answers. Probe a backend that nobody else uses: other requests blur what it shows.

    Exit codes: 0 probed, 1 hard closes broke it or it serves no request, 2 a wrong option or a
    refused key, 3 no backend answers.
    """
    import asyncio
    import sys

    import msgspec

    from batchline.cli.probe import probing, report
    from batchline.cli.probe.target import Target
    from batchline.config.backends import backend_at

    backend = backend_at(url, api_key_env=api_key_env)

    async def run() -> probing.Found:
        target = Target(backend, timeout_s=timeout)
        try:
            return await probing.probe(target, model=model)
        finally:
            await target.close()

    found = asyncio.run(run())
    advice = probing.advice(found)
    if json:
        sys.stdout.write(msgspec.json.encode(report.as_shape(found, advice)).decode() + "\n")
    else:
        sys.stdout.write(report.as_text(found, advice, api_key_env=api_key_env) + "\n")
    if found.broken is not None:
        raise typer.Exit(FAILED)
