"""What the commands print of batches, files and models."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from batchline.cli import wording
from batchline.cli.client.api import Api, Shape
from batchline.cli.client.estimate import left_of
from batchline.cli.outcome import CommandFailed

_LABEL: Final = 14
# Names and metadata are whatever somebody sent: no terminal is to do what they say.
_CONTROLS: Final = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))}
_MANY: Final = 20  # problems of a refused file that are shown


def say(text: str) -> None:
    sys.stdout.write(text + "\n")


def as_json(shape: object) -> str:
    """One line; a list of objects is printed as such lines, which is what jq and friends take."""
    return msgspec.json.encode(shape).decode()


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    every = [head, *([cell.translate(_CONTROLS) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in every) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in every
    )


def batch_row(batch: Shape) -> tuple[str, ...]:
    counts = batch["request_counts"]
    finished = counts["completed"] + counts["failed"]
    return (
        batch["id"],
        batch["status"],
        f"{finished}/{counts['total']}",
        str(counts["failed"]),
        batch.get("model") or "-",
        wording.instant(batch["created_at"]),
    )


def file_row(file: Shape) -> tuple[str, ...]:
    created = wording.instant(file["created_at"])
    return (
        file["id"],
        file["purpose"],
        wording.size(file["bytes"]),
        created,
        file["filename"],
    )


def whole_batch(batch: Shape, progress: Shape | None) -> str:
    """Everything that a person asks of a batch, one fact a line. `progress` None: not known."""
    counts = batch["request_counts"]
    facts = [
        ("batch", batch["id"]),
        ("status", batch["status"]),
        *(() if progress is None else _going(progress)),
        ("endpoint", batch["endpoint"]),
        ("model", batch.get("model") or "-"),
        ("lines", f"{counts['total']}"),
        ("succeeded", f"{counts['completed']}"),
        ("failed", f"{counts['failed']}"),
        ("created", wording.instant(batch["created_at"])),
        ("window", f"{batch['completion_window']}, until {wording.instant(batch['expires_at'])}"),
        *_instants(batch),
        ("input file", batch["input_file_id"]),
        ("output file", batch["output_file_id"] or "-"),
        ("error file", batch["error_file_id"] or "-"),
        *(("metadata", f"{key} = {text}") for key, text in (batch["metadata"] or {}).items()),
        *(("problem", problem) for problem in problems(batch)),
    ]
    return "\n".join(f"{label:<{_LABEL}}{text.translate(_CONTROLS)}" for label, text in facts)


def _going(progress: Shape) -> list[tuple[str, str]]:
    """What it waits for, how fast it goes, how long it takes."""
    facts = [("waits for", wait["message"]) for wait in progress["waiting"]]
    if progress["rate_per_s"] is not None:
        facts.append(("rate", wording.rate(progress["rate_per_s"])))
    left = left_of(progress)
    if left is not None:
        facts.append(("done in", wording.time_left(left).replace(" left", "", 1)))
    return facts


def _instants(batch: Shape) -> list[tuple[str, str]]:
    names = ("in_progress", "finalizing", "cancelling")
    ends = ("completed", "failed", "expired", "cancelled")
    return [
        (name.replace("_", " "), wording.instant(at))
        for name in (*names, *ends)
        if (at := batch.get(f"{name}_at")) is not None
    ]


def problems(batch: Shape) -> list[str]:
    """Why its input file was refused, line by line."""
    found = (batch.get("errors") or {}).get("data", [])
    said = [_problem(one) for one in found[:_MANY]]
    return said + ([f"and {len(found) - _MANY} more"] if len(found) > _MANY else [])


def _problem(problem: Shape) -> str:
    where = "" if problem["line"] is None else f"line {problem['line']}: "
    return f"{where}{problem['code']}: {problem['message']}".translate(_CONTROLS)


def ended(api: Api, batch: Shape) -> str:
    """How a batch ended, in a few lines, with what to type next."""
    counts = batch["request_counts"]
    status, total = batch["status"], counts["total"]
    succeeded = f"{counts['completed']} of {total} lines succeeded, {counts['failed']} failed"
    lines = [f"{batch['id']} {status}: {succeeded}"]
    if status in ("cancelled", "expired") and total:
        word = "cancelled" if status == "cancelled" else "expired"
        lines.append(f"  {not_run(api, batch)} {word} (each has a line in the error file)")
    lines += [f"  {problem}" for problem in problems(batch)]
    if batch["output_file_id"]:
        lines.append(f"  batchline results {batch['id']} -o out.jsonl")
    if batch["error_file_id"]:
        lines.append(f"  batchline results {batch['id']} --errors -o errors.jsonl")
    return "\n".join(lines)


class _Error(msgspec.Struct):
    code: str | None = None


class _ErrorLine(msgspec.Struct):
    error: _Error | None = None


_NOT_RUN: Final = frozenset({"batch_cancelled", "batch_expired"})


def not_run(api: Api, batch: Shape) -> int:
    """How many lines of the error file say that their request has no result: counted there, so
    that it is what one can download.

    Raises:
        CommandFailed: the file holds something else than result lines.
    """
    if batch["error_file_id"] is None:
        return 0
    decode = msgspec.json.Decoder(_ErrorLine).decode
    count = 0
    try:
        with api.content(batch["error_file_id"]) as download:
            for line in _lines(download.chunks):
                error = decode(line).error
                count += error is not None and error.code in _NOT_RUN
    except msgspec.DecodeError as exc:
        raise CommandFailed(f"the error file {batch['error_file_id']} is damaged: {exc}") from exc
    return count


def _lines(chunks: Iterable[bytes]) -> Iterable[bytes]:
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from whole
    if rest:
        yield rest
