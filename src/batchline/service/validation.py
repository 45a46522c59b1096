"""One pass over an input file: everything that is wrong with it, or the plan of its execution.

Runs in a child process (`jobs.py`): a second of JSON in the server's own process would stall every
connection. Holds one block of the file at a time; offsets, ids and model names of lines go to disk.

What is refused is section 3.2 of the API contract (rules V3 to V17 and V20; see
docs/compatibility.md). V1 and V2 need the store, V18 and V19 never happen here.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import accumulate, compress, repeat
from pathlib import Path
from typing import Final, cast

from batchline.domain import plan
from batchline.domain.line_faults import quoted
from batchline.domain.lines import CheckedLine, LineChecker, custom_id_of
from batchline.domain.model import Endpoint, LineProblem, PlannedShard
from batchline.service.duplicates import CustomIds
from batchline.service.inputs import InputFile
from batchline.service.plans import PlanWriter
from batchline.service.scratch import disk_full_named

_CR: Final = 13
_FIRST_LINE_BYTES: Final = 1024 * 1024  # how far rule V4 looks for a model

MAX_MODELS: Final = 1_000  # of one file, where several are allowed: each has shards of its own

_BOM: Final = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationJob:
    """What to validate, against which limits, and where the plan goes.

    `input_bytes` is what the blob's row promises. `known_models` is None while some backend's
    catalogue is not known: rule V15 is then not applied. `max_embedding_inputs` None: no limit.
    What is at `plan_path` is replaced; what has to be spilled goes to unnamed files beside it.
    """

    input_path: str
    input_bytes: int
    plan_path: str
    endpoint: str
    max_file_bytes: int
    max_lines: int
    max_line_bytes: int
    max_embedding_inputs: int | None = 50_000
    known_models: Sequence[str] | None = None
    allow_mixed_models: bool = False
    max_problems: int = 100
    shard_entries: int = plan.SHARD_ENTRIES


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationResult:
    """Problems and nothing else, or (no problems) a durable plan at `ValidationJob.plan_path`.

    Problems of the whole file come first, then those of lines, in line order, one a line; the list
    is cut at `max_problems`. `lines` counts request lines. `model` is None if there are several.
    """

    problems: Sequence[LineProblem] = ()
    lines: int = 0
    model: str | None = None
    shards: Sequence[PlannedShard] = ()
    plan_bytes: int = 0


def validate(job: ValidationJob) -> ValidationResult:
    """Check the whole file; write the plan if there is nothing wrong.

    When problems are returned or an error is raised, no plan is left behind.

    Raises:
        BlobUnreadable: the input is gone or not as long as promised; nothing may be concluded.
        StorageFull: no room for the plan or for what is spilled.
    """
    plan_path = Path(job.plan_path)
    with disk_full_named(), InputFile(job.input_path, job.input_bytes) as source:
        if job.input_bytes > job.max_file_bytes:
            return ValidationResult(problems=[_too_large(job, source)])
        with (
            closing(PlanWriter(plan_path)) as planned,
            closing(CustomIds(plan_path.parent, file_bytes=job.input_bytes)) as ids,
        ):
            scan = _Scan(job, source, planned, ids)
            scan.run()
            if problems := scan.all_problems():
                return ValidationResult(problems=problems)
            models = list(scan.models)
            return ValidationResult(
                lines=planned.entries,
                model=models[0] if len(models) == 1 else None,
                shards=planned.finish(models, job.shard_entries),
                plan_bytes=plan.span(planned.entries, 0)[0],
            )


class _Scan:
    """The pass over the file; afterwards `models` has the number of each model that it names."""

    def __init__(
        self, job: ValidationJob, source: InputFile, planned: PlanWriter, ids: CustomIds
    ) -> None:
        self._job = job
        self._source = source
        self._planned = planned
        self._ids = ids
        self._checker = LineChecker(job.endpoint)
        self._accept = self._checker.accept
        self._counts_inputs = job.endpoint == Endpoint.EMBEDDINGS
        self._known = None if job.known_models is None else frozenset(job.known_models)
        self._line_number = 0
        self._inputs = 0
        self._too_many = False
        self._problems: list[LineProblem] = []
        self._model: str | None = None  # of the line before, and its number
        self._model_number = 0
        self.models: dict[str, int] = {}

    def run(self) -> None:
        """Read until the end of the file, or until there is no room for another problem."""
        job = self._job
        for offset, lines in self._source.blocks(job.max_line_bytes):
            if lines is None:
                self._line_number += 1
                message = f"This line is longer than the maximum of {job.max_line_bytes} bytes."
                self._problem("invalid_request", message, None, self._line_number)
            elif any(lines):
                self._take(offset, lines)
            else:
                self._line_number += len(lines)
            self._too_many = self._planned.entries > job.max_lines
            # A repeated id is a problem already, though it is named only at the end; a file that
            # repeats one id a million times would otherwise pile up in one partition.
            if self._too_many or max(len(self._problems), self._ids.repeats) >= job.max_problems:
                return

    def _take(self, offset: int, lines: list[bytes]) -> None:
        """Check and enter the lines of one block.

        Column by column, so that the loops run in C: 1.2 us a line less than line by line.
        """
        checked = list(map(self._accept, lines))
        sizes = list(map(len, lines))
        offsets = list(accumulate((size + 1 for size in sizes), initial=offset))
        numbers: Sequence[int] = range(self._line_number + 1, self._line_number + 1 + len(lines))
        self._line_number += len(lines)
        if not all(checked):
            self._look_closer(lines, numbers, checked)
            # What is left out: blank lines, lines without an id, and all after the last problem.
            kept = [line is not None for line in checked]
            numbers = list(compress(numbers, kept))
            lines, sizes = list(compress(lines, kept)), list(compress(sizes, kept))
            offsets, checked = list(compress(offsets, kept)), list(compress(checked, kept))
        self._enter(
            offsets,
            [size - (raw[-1] == _CR) for raw, size in zip(lines, sizes, strict=True)],
            numbers,
            cast("list[CheckedLine]", checked),
        )

    def _enter(
        self,
        offsets: Sequence[int],
        sizes: Sequence[int],
        numbers: Sequence[int],
        checked: Sequence[CheckedLine],
    ) -> None:
        """Put lines into the plan, and their models and ids where they are compared."""
        if all(line.model == self._model for line in checked):
            models = array("H", [self._model_number]) * len(checked)
        else:
            models = array("H", map(self._number_of_model, checked, numbers))
        if self._counts_inputs:
            self._inputs += sum(line.inputs for line in checked)
        # `offsets` may be one longer: it then ends with the offset after the last line.
        self._planned.add(
            b"".join(map(plan.ENTRY.pack, offsets, sizes, numbers, repeat(0))), models
        )
        self._ids.add([line.custom_id for line in checked])

    def _look_closer(
        self, lines: list[bytes], numbers: Sequence[int], checked: list[CheckedLine | None]
    ) -> None:
        """Fill in `checked` where the fast check took nothing, and note the problems.

        None stays at blank lines and where there is no id. A bad line is entered with its id, so
        that a later line that repeats the id is found; the plan it then spoils is never used.
        """
        for at, (raw, number) in enumerate(zip(lines, numbers, strict=True)):
            if checked[at] is not None or not raw or raw.isspace():
                continue
            line = self._checker.explain(raw, number)
            if isinstance(line, CheckedLine):
                checked[at] = line
                continue
            self._problems.append(line)
            if len(self._problems) >= self._job.max_problems:
                checked[at:] = [None] * (len(checked) - at)
                return
            if (custom_id := custom_id_of(raw)) is not None:
                checked[at] = CheckedLine(custom_id, "", 0)

    def _number_of_model(self, line: CheckedLine, line_number: int) -> int:
        """The number of the line's model, after a look at whether it may be named here."""
        model = line.model
        if model == self._model or not model:  # "": the line is refused already
            return self._model_number
        if self._known is not None and model not in self._known:
            message = f"The provided model {quoted(model)} is not supported by the Batch API."
            self._problem("model_not_found", message, "body.model", line_number)
        elif self.models and not self._job.allow_mixed_models:
            message = (
                f"The model {quoted(model)} for this request does not match the rest of the batch. "
                "Each batch must contain requests for a single model."
            )
            self._problem("mismatched_model", message, "body.model", line_number)
        elif model not in self.models and len(self.models) == MAX_MODELS:
            message = f"The batch contains requests for more than {MAX_MODELS} models."
            self._problem("mismatched_model", message, "body.model", line_number)
        else:
            self._model = model
            self._model_number = self.models.setdefault(model, len(self.models))
        return self._model_number

    def _problem(self, code: str, message: str, param: str | None, line_number: int) -> None:
        self._problems.append(
            LineProblem(code=code, message=message, param=param, line_number=line_number)
        )

    def all_problems(self) -> list[LineProblem]:
        """Everything found, in the order in which it is reported."""
        job = self._job
        whole: list[LineProblem] = []
        if self._too_many:
            message = f"The batch input file has more than the maximum of {job.max_lines} requests."
            whole.append(LineProblem(code="too_many_tasks", message=message))
        if job.max_embedding_inputs is not None and self._inputs > job.max_embedding_inputs:
            message = (
                "The batch input file has more than the maximum of "
                f"{job.max_embedding_inputs} embedding inputs in all its requests."
            )
            whole.append(LineProblem(code="invalid_request", message=message, param="body.input"))
        of_lines = sorted([*self._problems, *self._duplicates()], key=_line_number)
        if not whole and not of_lines and not self._planned.entries:
            message = (
                "The input file is empty. "
                "Please ensure that the batch contains at least one request."
            )
            whole.append(LineProblem(code="empty_file", message=message))
        return [*whole, *of_lines][: job.max_problems]

    def _duplicates(self) -> list[LineProblem]:
        """The lines that repeat an earlier line's id and are not refused for something else."""
        refused = {problem.line_number for problem in self._problems}
        problems = []
        for suspect in self._ids.suspects(self._job.max_problems + len(refused)):
            line_number, custom_id = self._entered(suspect.entry)
            if line_number in refused:
                continue
            if any(self._entered(entry)[1] == custom_id for entry in suspect.earlier):
                message = (
                    f"The custom_id {quoted(custom_id)} for this request is a duplicate of another "
                    "request. The custom_id parameter must be unique for each request in a batch."
                )
                problems.append(
                    LineProblem(
                        code="duplicate_custom_id",
                        message=message,
                        param="custom_id",
                        line_number=line_number,
                    )
                )
        return problems

    def _entered(self, entry: int) -> tuple[int, str | None]:
        """The line number and the custom_id of an entry."""
        place = self._planned.entry(entry)
        return place.line_number, custom_id_of(self._source.at(place.offset, place.length))


def _line_number(problem: LineProblem) -> int:
    return problem.line_number or 0


def _too_large(job: ValidationJob, source: InputFile) -> LineProblem:
    """Rule V4. The message names the model of the first line, if that can be read."""
    model = ""
    for _, lines in source.blocks(min(job.max_line_bytes, _FIRST_LINE_BYTES)):
        first = LineChecker(job.endpoint).check(lines[0], 1) if lines else None
        model = f" for the {first.model} model" if isinstance(first, CheckedLine) else ""
        break
    return LineProblem(
        code="file_too_large",
        message=(
            f"The batch input file is larger than the {job.max_file_bytes} maximum{model}. "
            "Please try again with a smaller batch."
        ),
    )
