"""`batchline audit`: of a batch on a server, or of files that are here."""

from __future__ import annotations

import http
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from batchline.cli.outcome import FAILED, USAGE, CommandFailed

if TYPE_CHECKING:
    from batchline.cli.audit.auditing import AuditJob
    from batchline.cli.audit.report import Problem
    from batchline.cli.client.api import Api

_TERMINAL: Final = frozenset({"completed", "failed", "expired", "cancelled"})

ResultFile = Annotated[Path | None, typer.Option(metavar="FILE", help="A file that is here.")]


def audit(
    batch_id: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="The batch's id; without, files.")
    ] = None,
    input: Annotated[  # noqa: A002  # the option's name
        Path | None, typer.Option(metavar="FILE", help="The input, where it is here.")
    ] = None,
    output: ResultFile = None,
    errors: ResultFile = None,
    batch: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The Batch object, as `show --json`.")
    ] = None,
    show: Annotated[int, typer.Option(min=0, help="How many problems to name.")] = 20,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check that a batch's files hold each line of its input exactly once.

    Of a batch that has ended on the server, which gives its files; or, without ID, of files that
    are here: --input, --output, --errors, and --batch for the counts.

    Exit codes: 0 sound, 1 problems were found, 2 a wrong option or a file that cannot be read, 3 no
    server answers.
    """
    from batchline.cli.audit.auditing import AuditJob, audit
    from batchline.cli.client import shown

    if batch_id is None:
        if input is None:
            raise CommandFailed("name a batch, or files with --input FILE", exit_code=USAGE)
        job = AuditJob(
            input=input,
            output=output,
            errors=errors,
            batch=None if batch is None else _batch_object(batch),
            show=show,
        )
        report = audit(job)
    else:
        if output or errors or batch:
            raise CommandFailed(
                "--output, --errors and --batch are for an audit without ID", exit_code=USAGE
            )
        with tempfile.TemporaryDirectory(prefix="batchline-audit-") as folder:
            report = audit(_fetched(batch_id, input, Path(folder), show=show))
    shown.say(report.as_json() if json else report.said())
    if not report.sound:
        raise typer.Exit(FAILED)


def _batch_object(path: Path) -> dict[str, Any]:
    import msgspec

    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except OSError as exc:
        raise CommandFailed(f"{path}: {exc.strerror}", exit_code=USAGE) from exc
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise CommandFailed(f"{path}: is not a Batch object", exit_code=USAGE) from exc


@dataclass(frozen=True, slots=True)
class _Fetched:
    path: Path
    damage: tuple[Problem, ...] = ()


def _fetched(batch_id: str, source: Path | None, folder: Path, *, show: int) -> AuditJob:
    """The job of a batch that has ended, its files below `folder`.

    Raises:
        CommandFailed: it has not ended, or its input is not there any more and not here.
    """
    from batchline.cli.audit.auditing import AuditJob
    from batchline.cli.client.server import api

    server = api()
    batch = server.batch(batch_id)
    if batch["status"] not in _TERMINAL:
        raise CommandFailed(f"{batch_id} has not ended: it is {batch['status']}")
    if source is None:
        source = _input(server, batch["input_file_id"], folder / "input.jsonl")
    output = _results(server, batch["output_file_id"], "output", folder)
    errors = _results(server, batch["error_file_id"], "errors", folder)
    receipt = server.receipt(batch_id) or {}
    return AuditJob(
        input=source,
        output=None if output is None else output.path,
        errors=None if errors is None else errors.path,
        batch=batch,
        damage=tuple(one for file in (output, errors) if file is not None for one in file.damage),
        show=show,
        calls_saved=receipt.get("calls_saved", 0),
    )


def _input(server: Api, file_id: str, target: Path) -> Path:
    from batchline.cli.client.api import Refused

    try:
        with server.content(file_id) as download, target.open("wb") as file:
            for chunk in download.chunks:
                file.write(chunk)
    except Refused as exc:
        raise CommandFailed(
            f"the input {file_id} cannot be had from the server ({exc.message.rstrip('.')});"
            " give it with --input FILE"
        ) from exc
    return target


def _results(server: Api, file_id: str | None, kind: str, folder: Path) -> _Fetched | None:
    """A file of results, as far as the server can give it: it sends no damaged bytes.

    What is damaged, and what is behind it, has no result then, and the audit names those lines.
    """
    from batchline.cli.audit.report import problem
    from batchline.cli.client.api import Refused

    if file_id is None:
        return None
    target = folder / f"{kind}.jsonl"
    size = server.file(file_id)["bytes"]
    received = bytearray()  # behind the last line that came whole
    written = 0
    with target.open("wb") as file:
        try:
            with server.content(file_id) as download:
                for chunk in download.chunks:
                    received += chunk
                    whole = received.rfind(b"\n") + 1
                    file.write(received[:whole])
                    written += whole
                    del received[:whole]
        except CommandFailed as exc:
            if isinstance(exc, Refused) and exc.status < http.HTTPStatus.INTERNAL_SERVER_ERROR:
                raise
            server.file(file_id)  # a server that went away says nothing about its files
            message = f"the server could give {written} of {size} bytes: the rest is damaged"
            return _Fetched(target, (problem(kind, 0, "damaged", message),))
        file.write(received)
    return _Fetched(target)
