"""`batchline submit`, `list`, `show`, `watch`, `cancel`, `results`."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from batchline.cli.outcome import FAILED, USAGE, CommandFailed

if TYPE_CHECKING:
    from batchline.cli.client.api import Api

BatchId = Annotated[str, typer.Argument(metavar="ID", help="The batch's id: batch_…")]
Json = Annotated[bool, typer.Option("--json", help="Print the API's objects, one JSON a line.")]

_STDOUT: Final = Path("-")


def submit(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The input file, JSONL.")],
    endpoint: Annotated[
        str | None, typer.Option(help="Such as /v1/chat/completions. [the first line's url]")
    ] = None,
    window: Annotated[str, typer.Option(help="The completion window.")] = "24h",
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Repeat for more.")
    ] = None,
    skip_invalid: Annotated[
        bool, typer.Option("--skip-invalid", help="Run the good lines, whatever the others are.")
    ] = False,
    run_once: Annotated[
        bool | None,
        typer.Option(
            "--run-once/--no-run-once",
            help="Send identical requests once, for all their lines. [as the project has it]",
            show_default=False,
        ),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Stay until it has ended.")] = False,
    json: Json = False,
) -> None:
    """Check FILE, upload it and create a batch of it.

    The check is the server's own validation, run here: when a line is wrong nothing is sent, and
    every problem is named with its line. With --skip-invalid the good lines run, and the others go
    to the batch's error file. Prints the batch's id, alone on the last line of stdout
    unless --watch or --json is given.

    Exit codes: 0 created (with --watch: completed), 1 the file or the batch failed, 2 a wrong
    option, 3 no server answers.
    """
    from batchline.cli import input_check, wording
    from batchline.cli.client import shown
    from batchline.cli.client.server import api

    pairs = _metadata(metadata or [])
    wanted = input_check.endpoint_of(file, endpoint)
    checked = input_check.check(file, wanted, skip_invalid=skip_invalid)
    server = api()
    uploaded = server.upload(file, purpose="batch")
    order: dict[str, object] = {
        "input_file_id": uploaded["id"],
        "endpoint": wanted,
        "completion_window": window,
        "metadata": pairs or None,
    }
    # Not sent where they say nothing: other servers of the Batch API do not know them.
    if skip_invalid:
        order["invalid_lines"] = "skip"
    if run_once is not None:
        order["identical_requests"] = "run_once" if run_once else "run_each"
    batch = server.create_batch(order)
    for problem in checked.problems:
        typer.echo(f"skipped {input_check.said(str(file), problem)}", err=True)
    if checked.skipped > len(checked.problems):
        more = checked.skipped - len(checked.problems)
        typer.echo(f"and {wording.lines(more)} more", err=True)
    typer.echo(f"{file}: {wording.lines(checked.lines)} for {wanted}", err=True)
    if watch:
        typer.echo(f"batch {batch['id']}", err=True)
        _watched(server, batch["id"], json=json)
    else:
        shown.say(shown.as_json(batch) if json else batch["id"])


def list_(
    limit: Annotated[int, typer.Option(min=1, help="How many, newest first.")] = 20,
    everything: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    json: Json = False,
) -> None:
    """List batches, newest first.

    Exit codes: 0 listed, 2 a wrong option, 3 no server answers.
    """
    from batchline.cli.client import shown
    from batchline.cli.client.server import api

    batches = itertools.islice(api().batches(), None if everything else limit)
    if json:
        for batch in batches:
            shown.say(shown.as_json(batch))
        return
    head = ("ID", "STATUS", "DONE", "FAILED", "MODEL", "CREATED")
    shown.say(shown.table(head, map(shown.batch_row, batches)))


def show(batch_id: BatchId, json: Json = False) -> None:
    """Show a batch, and what it waits for when it does.

    Exit codes: 0 shown, 1 there is none, 2 a wrong option, 3 no server answers.
    """
    from batchline.cli.client import shown
    from batchline.cli.client.server import api

    server = api()
    batch = server.batch(batch_id)
    if json:
        shown.say(shown.as_json(batch))
        return
    shown.say(shown.whole_batch(batch, server.progress(batch_id)))


def watch(batch_id: BatchId, json: Json = False) -> None:
    """Show a batch's progress until it has ended, then how it ended.

    The bar, the rate, the time left and what it waits for go to stderr. A server that restarts
    meanwhile is waited for. Ctrl-C ends the watching, not the batch.

    Exit codes: 0 completed, 1 it ended otherwise or there is none, 2 a wrong option, 3 no server
    answers, 130 Ctrl-C.
    """
    from batchline.cli.client.server import api

    _watched(api(), batch_id, json=json)


def cancel(
    batch_id: BatchId,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Stay until it is cancelled.")
    ] = True,
    json: Json = False,
) -> None:
    """Cancel a batch and say what was finished and what was not.

    When the server has answered, no further request of the batch is sent. Requests that run may
    still finish for the cancel grace; what is finished is in the output file, every other line in
    the error file.

    Exit codes: 0 cancelled (--no-wait: accepted), 1 it had ended before or there is none, 2 a
    wrong option, 3 no server answers.
    """
    from batchline.cli.client import shown
    from batchline.cli.client.following import follow
    from batchline.cli.client.server import api

    server = api()
    batch = server.cancel(batch_id)
    if wait:
        batch = follow(server, batch_id)
    if json:
        shown.say(shown.as_json(batch))
        return
    if not wait:
        shown.say(f"{batch['id']} {batch['status']}: no further request of it is sent")
        return
    shown.say(shown.ended(server, batch))
    receipt = server.receipt(batch_id) or {}
    for name, value in receipt.items():
        if isinstance(value, str | int | float) and name not in ("object", "id"):
            shown.say(f"  {name.replace('_', ' ')}: {value}")
    for one in receipt.get("backends") or ():
        ran = "an unknown number" if one["in_flight"] is None else one["in_flight"]
        stopped = one["proof"] if one["quiet"] else "may still run"
        shown.say(f"  at {one['name']}: {ran} in flight, {one['cancel']}: {stopped}")


def results(
    batch_id: BatchId,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="Where to; - is stdout.")
    ],
    errors: Annotated[bool, typer.Option("--errors", help="The error file instead.")] = False,
) -> None:
    """Fetch a batch's output file, or its error file, once it has ended.

    FILE appears when all of it is there, or not at all.

    Exit codes: 0 fetched, 1 there is nothing to fetch, 2 a wrong option, 3 no server answers or
    the connection broke.
    """
    from batchline.cli.client.server import api
    from batchline.cli.whole_file import whole_file

    server = api()
    batch = server.batch(batch_id)
    kind = "error" if errors else "output"
    file_id = batch[f"{kind}_file_id"]
    if file_id is None:
        raise CommandFailed(f"{batch_id} is {batch['status']} and has no {kind} file")
    with server.content(file_id) as download:
        if output == _STDOUT:
            for chunk in download.chunks:
                sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
            return
        with whole_file(output) as file:
            for chunk in download.chunks:
                file.write(chunk)


def _watched(server: Api, batch_id: str, *, json: bool) -> None:
    """Follow a batch to its end and print how it ended.

    Raises:
        typer.Exit: it did not complete.
    """
    from batchline.cli.client import shown
    from batchline.cli.client.following import follow

    batch = follow(server, batch_id)
    shown.say(shown.as_json(batch) if json else shown.ended(server, batch))
    if batch["status"] != "completed":
        raise typer.Exit(FAILED)


def _metadata(pairs: list[str]) -> dict[str, str]:
    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise CommandFailed(f"--metadata {pair}: expected KEY=VALUE", exit_code=USAGE)
        found[key] = value
    return found
