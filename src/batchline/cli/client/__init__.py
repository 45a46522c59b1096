"""The commands that talk to a server: the one that `OPENAI_BASE_URL` names, with `OPENAI_API_KEY`.

batches.py    submit, list, show, watch, cancel, results (and audit, in a package of its own)
files.py      files …, models
api.py        HTTP
following.py  looking at a batch until it has ended
waiting.py    why it does not go on
shown.py      what is printed
"""

from __future__ import annotations

import typer

from batchline.cli.audit import command
from batchline.cli.client import batches, files
from batchline.cli.outcome import add


def register(app: typer.Typer) -> None:
    """Add the commands to the program's."""
    add(app, "submit", batches.submit)
    add(app, "list", batches.list_)
    add(app, "show", batches.show)
    add(app, "watch", batches.watch)
    add(app, "cancel", batches.cancel)
    add(app, "results", batches.results)
    add(app, "audit", command.audit)
    add(app, "models", files.models)
    group = typer.Typer(
        no_args_is_help=True,
        help="List, show, upload and delete files. Exit codes: 0 done, 1 refused, 2 a wrong"
        " option, 3 no server answers.",
    )
    add(group, "list", files.list_)
    add(group, "get", files.get)
    add(group, "upload", files.upload)
    add(group, "delete", files.delete)
    app.add_typer(group, name="files")
