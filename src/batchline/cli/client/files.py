"""`batchline files …` and `batchline models`."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print the API's objects, one JSON a line.")]
FileId = Annotated[str, typer.Argument(metavar="ID", help="The file's id: file-…")]


def list_(
    purpose: Annotated[
        str | None, typer.Option(help="Only these, such as batch or batch_output.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many, newest first.")] = 20,
    everything: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    json: Json = False,
) -> None:
    """List files, newest first."""
    from batchline.cli.client import shown
    from batchline.cli.client.server import api

    files = itertools.islice(api().files(purpose), None if everything else limit)
    if json:
        for file in files:
            shown.say(shown.as_json(file))
        return
    head = ("ID", "PURPOSE", "SIZE", "CREATED", "NAME")
    shown.say(shown.table(head, map(shown.file_row, files)))


def get(file_id: FileId, json: Json = False) -> None:
    """Show what the server knows of a file; its bytes come with `batchline results`."""
    from batchline.cli import wording
    from batchline.cli.client import shown
    from batchline.cli.client.server import api

    file = api().file(file_id)
    if json:
        shown.say(shown.as_json(file))
        return
    expires = wording.instant(file["expires_at"])
    head = ("ID", "PURPOSE", "SIZE", "CREATED", "NAME", "EXPIRES")
    shown.say(shown.table(head, [(*shown.file_row(file), expires)]))


def upload(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to send.")],
    purpose: Annotated[str, typer.Option(help="What it is for.")] = "batch",
    json: Json = False,
) -> None:
    """Upload a file and print its id."""
    from batchline.cli.client import shown
    from batchline.cli.client.server import api

    uploaded = api().upload(file, purpose=purpose)
    shown.say(shown.as_json(uploaded) if json else uploaded["id"])


def delete(
    file_ids: Annotated[
        list[str], typer.Argument(metavar="ID...", help="Ids of files; batches keep what they use.")
    ],
) -> None:
    """Delete files. The first one that the server refuses ends the command."""
    from batchline.cli.client import shown
    from batchline.cli.client.server import api

    server = api()
    for file_id in file_ids:
        server.delete_file(file_id)
        shown.say(f"{file_id} deleted")


def models(json: Json = False) -> None:
    """List the models that the server's backends have.

    Exit codes: 0 listed, 2 a wrong option, 3 no server answers.
    """
    from batchline.cli.client import shown
    from batchline.cli.client.server import api

    for model in api().models():
        shown.say(shown.as_json(model) if json else model["id"])
