"""The audit of one batch from files on disk: conservation, shapes, places, counts and usage."""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Final

from batchline.cli.audit.ledger import Ledger, Place
from batchline.cli.audit.lines import FileKind, ResultLine, misplaced, read_result
from batchline.cli.audit.report import FileFacts, Problem, Problems, Report, problem
from batchline.cli.outcome import USAGE, CommandFailed
from batchline.domain.lines import custom_id_of
from batchline.domain.model import Usage

_BOM: Final = b"\xef\xbb\xbf"

_FEW: Final = 100  # repeated ids; more of them are no clash of hashes

_MESSAGES: Final = {
    "lost": "this line of the input has no result",
    "foreign": "no line of the input has this custom_id",
    "doubled": "one result too many for this custom_id",
    "repeated_id": "the id of an earlier line",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditJob:
    """The files of a batch, None for one that does not exist.

    `batch` is the API's Batch object; without it counts, usage and status are not compared.
    `damage` are problems that are known already; `show` is how many are named. Where `calls_saved`
    lines have the result of another line's call, the batch's usage may be less than the lines'.
    """

    input: Path
    output: Path | None
    errors: Path | None
    batch: Mapping[str, Any] | None = None
    damage: tuple[Problem, ...] = ()
    show: int = 20
    calls_saved: int = 0


def audit(job: AuditJob) -> Report:
    """Read each file once, then compare; once more as far as problems have to be named.

    Raises:
        CommandFailed: a file cannot be read, or there is no room for scratch files.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="batchline-audit-") as scratch:
            return _Audit(job, Path(scratch)).run()
    except OSError as exc:
        named = f"{exc.filename}: " if exc.filename else ""
        raise CommandFailed(f"{named}{exc.strerror}", exit_code=USAGE) from exc


class _Audit:
    def __init__(self, job: AuditJob, scratch: Path) -> None:
        self._job = job
        self._scratch = scratch
        self._problems = Problems(job.show)
        for one in job.damage:
            self._problems.add(one)
        self._status = None if job.batch is None else str(job.batch.get("status"))
        self._facts: dict[str, FileFacts] = {}
        self._ends: Counter[str] = Counter()
        self._usage = Usage()
        self._input_lines = 0

    def run(self) -> Report:
        paths = {"input": self._job.input, "output": self._job.output, "errors": self._job.errors}
        present = {name: path for name, path in paths.items() if path is not None}
        size = sum(path.stat().st_size for path in present.values())
        with (
            closing(Ledger(self._scratch, total_bytes=size)) as custom_ids,
            closing(Ledger(self._scratch, total_bytes=size)) as line_ids,
        ):
            custom_ids.begin("input")
            self._facts["input"] = self._read_input(self._job.input, custom_ids)
            for kind in ("output", "errors"):
                custom_ids.begin(kind)
                line_ids.begin(kind)
                if (path := paths[kind]) is not None:
                    kinds: dict[str, FileKind] = {"output": "output", "errors": "errors"}
                    self._facts[kind] = self._read_results(path, kinds[kind], custom_ids, line_ids)
            if self._ran():
                for found, place in custom_ids.unequal():
                    self._note(found, place)
            self._note_repeated(line_ids.repeated(), present)
        self._compare_with_batch()
        return Report(
            status=self._status,
            files=self._facts,
            lines={
                name: self._ends[name]
                for name in ("succeeded", "failed", "batch_cancelled", "batch_expired")
            },
            usage={
                "input_tokens": self._usage.input_tokens,
                "output_tokens": self._usage.output_tokens,
                "total_tokens": self._usage.total_tokens,
            },
            problems=dict(self._problems.counted),
            first=self._named(present),
        )

    def _ran(self) -> bool:
        """Whether every line has to be in a file: a file that was refused never ran."""
        batch = self._job.batch
        return batch is None or batch.get("in_progress_at") is not None

    def _note(self, kind: str, place: Place) -> None:
        self._problems.add(problem(place.file, place.line, kind, _MESSAGES[kind]))

    def _note_repeated(
        self, suspects: Iterator[tuple[Place, Sequence[Place]]], present: Mapping[str, Path]
    ) -> None:
        """Note the lines whose id an earlier line has. A few may only have its hash: look."""
        few = list(islice(suspects, _FEW))
        wanted = {place for place, earlier in few for place in (place, *earlier)}
        ids = self._read_lines(wanted, present, _id_of)
        for place, earlier in few:
            if ids[place] in [ids[one] for one in earlier]:
                self._note("repeated_id", place)
        for place, _ in suspects:
            self._note("repeated_id", place)

    # -- one pass over each file ---------------------------------------------------------------

    def _read_input(self, path: Path, custom_ids: Ledger) -> FileFacts:
        digest, size, number = hashlib.sha256(), 0, 0
        for number, raw in _lines(path):
            digest.update(raw)
            size += len(raw)
            line = raw.removeprefix(_BOM) if number == 1 else raw
            if not line or line.isspace():
                custom_ids.skip()
                continue
            self._input_lines += 1
            custom_ids.add([custom_id_of(line)])
        return FileFacts(lines=number, bytes=size, sha256=digest.hexdigest())

    def _read_results(
        self, path: Path, kind: FileKind, custom_ids: Ledger, line_ids: Ledger
    ) -> FileFacts:
        digest, size, number, raw = hashlib.sha256(), 0, 0, b"\n"
        for number, raw in _lines(path):
            digest.update(raw)
            size += len(raw)
            line = read_result(raw.removesuffix(b"\n"))
            if isinstance(line, str):
                named = custom_id_of(raw)
                self._problems.add(problem(kind, number, "malformed", line, named))
                line_ids.skip()
                if named is None:
                    custom_ids.skip()
                else:
                    custom_ids.add([named])  # else its input line would seem to be lost as well
                continue
            custom_ids.add([line.custom_id])
            line_ids.add([line.id])
            self._count(line, kind)
            if why := misplaced(line, kind, self._status):
                self._problems.add(problem(kind, number, "misplaced", why, line.custom_id))
        if not raw.endswith(b"\n"):
            message = "the last line does not end with a newline"
            self._problems.add(problem(kind, number, "malformed", message))
        if number == 0:
            self._problems.add(problem(kind, 0, "malformed", "a file without a line"))
        return FileFacts(lines=number, bytes=size, sha256=digest.hexdigest())

    def _count(self, line: ResultLine, kind: FileKind) -> None:
        if kind == "output":
            self._ends["succeeded"] += 1
            self._usage += line.usage()
        else:
            self._ends[line.not_run or "failed"] += 1

    # -- the batch object ----------------------------------------------------------------------

    def _compare_with_batch(self) -> None:
        batch = self._job.batch
        if batch is None:
            return
        counts: Mapping[str, Any] = batch.get("request_counts") or {}
        self._equal("counts", "request_counts.total", counts, self._input_lines * self._ran())
        self._equal("counts", "request_counts.completed", counts, self._ends["succeeded"])
        self._equal("counts", "request_counts.failed", counts, self._ends["failed"])
        usage = batch.get("usage")
        if isinstance(usage, Mapping):
            for name in ("input_tokens", "output_tokens", "total_tokens"):
                found = getattr(self._usage, name)
                told = usage.get(name)
                if self._job.calls_saved and isinstance(told, int):
                    # Each line of one call tells its usage, and the batch counts it once.
                    found = min(found, told)
                self._equal("usage", f"usage.{name}", usage, found)
        for kind, key, path in (
            ("output", "output_file_id", self._job.output),
            ("errors", "error_file_id", self._job.errors),
        ):
            if (batch.get(key) is None) != (path is None):
                there = "there is none" if path is None else "there is one"
                message = f"{key} is {batch.get(key)}, and {there}"
                self._problems.add(problem(kind, 0, "files", message))

    def _equal(self, kind: str, name: str, told: Mapping[str, Any], found: int) -> None:
        says = told.get(name.partition(".")[2])
        if says != found:
            message = f"{name} is {says}, the files say {found}"
            self._problems.add(problem("batch", 0, kind, message))

    # -- naming --------------------------------------------------------------------------------

    def _named(self, present: Mapping[str, Path]) -> list[Problem]:
        """The first problems, with the custom_ids of their lines."""
        first = self._problems.first()
        unnamed = {Place(one.file, one.line) for one in first if one.line and not one.custom_id}
        names = self._read_lines(unnamed, present, custom_id_of)
        return [
            replace(one, custom_id=one.custom_id or names.get(Place(one.file, one.line)))
            for one in first
        ]

    def _read_lines(
        self,
        places: Collection[Place],
        present: Mapping[str, Path],
        read: Callable[[bytes], str | None],
    ) -> dict[Place, str | None]:
        """What `read` says of the lines at these places."""
        found: dict[Place, str | None] = {}
        for file, path in present.items():
            last = max((place.line for place in places if place.file == file), default=0)
            for number, raw in islice(_lines(path), last):
                if (place := Place(file, number)) in places:
                    found[place] = read(raw.removeprefix(_BOM) if number == 1 else raw)
        return found


def _id_of(raw: bytes) -> str | None:
    line = read_result(raw.removesuffix(b"\n"))
    return None if isinstance(line, str) else line.id


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line with its ending) of each line; one line is in memory."""
    with path.open("rb") as file:
        yield from enumerate(file, 1)
