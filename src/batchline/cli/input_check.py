"""An input file, looked at before anything is sent: by the server's own validation, in-process."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from batchline.cli.outcome import FAILED, USAGE, CommandFailed
from batchline.domain.errors import BlobUnreadable, StorageFull, StoreUnavailable
from batchline.domain.model import Endpoint, LineProblem
from batchline.service.inputs import InputFile
from batchline.service.skipped import SkipSettings
from batchline.service.validation import ValidationJob, validate

_UNLIMITED: Final = 2**62
_FIRST_LINE_BYTES: Final = 64 * 1024 * 1024


class _Url(msgspec.Struct):
    url: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedInput:
    """A file that a server may take, as far as can be said without it.

    `skipped` lines are bad; the first of their problems are in `problems`.
    """

    lines: int
    model: str | None
    skipped: int = 0
    problems: Sequence[LineProblem] = ()


def check(path: Path, endpoint: str, *, skip_invalid: bool = False) -> CheckedInput:
    """Check every line of `path`; with `skip_invalid` one good line is enough.

    Limits and several models are left to the server: its settings decide about those.

    Raises:
        CommandFailed: something is wrong; the message has each problem with its line.
    """
    with tempfile.TemporaryDirectory(prefix="batchline-check-") as scratch:
        job = ValidationJob(
            input_path=str(path),
            input_bytes=size_of(path),
            plan_path=str(Path(scratch, "plan")),
            endpoint=endpoint,
            max_file_bytes=_UNLIMITED,
            max_lines=_UNLIMITED,
            max_line_bytes=_UNLIMITED,
            max_embedding_inputs=None,
            allow_mixed_models=True,
            skip=(
                SkipSettings(batch_id="", path=str(Path(scratch, "skipped")))
                if skip_invalid
                else None
            ),
        )
        try:
            result = validate(job)
        except (BlobUnreadable, StorageFull, StoreUnavailable) as exc:
            raise CommandFailed(f"{path}: {exc.message}") from exc
    if result.problems:
        raise CommandFailed(refusal(str(path), result.problems))
    return CheckedInput(
        lines=result.lines,
        model=result.model,
        skipped=result.skipped,
        problems=result.skipped_problems,
    )


def refusal(name: str, problems: Sequence[LineProblem]) -> str:
    """What is wrong with a file: one line a problem, as compilers say it."""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return "\n".join([f"{name}: {count}", *(said(name, problem) for problem in problems)])


def said(name: str, problem: LineProblem) -> str:
    where = name if problem.line_number is None else f"{name}:{problem.line_number}"
    param = f" (at {problem.param})" if problem.param else ""
    return f"{where}: {problem.code}: {problem.message}{param}"


def endpoint_of(path: Path, wanted: str | None, *, wrong: int = FAILED) -> str:
    """The endpoint of a file: `wanted`, or else what its first line names.

    Raises:
        CommandFailed: it is none of ours (exit code USAGE), or the file cannot be read (`wrong`).
    """
    known = [one.value for one in Endpoint]
    if wanted is not None:
        if wanted not in known:
            raise CommandFailed(
                f"--endpoint {wanted}: expected one of {', '.join(known)}", exit_code=USAGE
            )
        return wanted
    named = _first_url(path, wrong)
    # A first line that says nothing useful is validation's to name, with its number.
    return named if named in known else Endpoint.CHAT_COMPLETIONS.value


def size_of(path: Path, *, wrong: int = FAILED) -> int:
    """The bytes of a file that can be read.

    Raises:
        CommandFailed: there is no such file.
    """
    try:
        if not path.is_file():
            why = "is not a file" if path.exists() else "no such file"
            raise CommandFailed(f"{path}: {why}", exit_code=wrong)
        return path.stat().st_size
    except OSError as exc:
        raise CommandFailed(f"{path}: {exc.strerror}", exit_code=wrong) from exc


def _first_url(path: Path, wrong: int) -> str:
    try:
        with InputFile(str(path), size_of(path, wrong=wrong)) as source:
            for _, lines in source.blocks(_FIRST_LINE_BYTES):
                for line in lines or ():
                    if line.strip():
                        return msgspec.json.decode(line, type=_Url).url
    except BlobUnreadable as exc:
        raise CommandFailed(f"{path}: {exc.message}", exit_code=wrong) from exc
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    return ""
