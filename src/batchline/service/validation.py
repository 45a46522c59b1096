"""One pass over an input file: everything that is wrong with it, or the plan of its execution.

Runs in a child process (`jobs.py`): a second of JSON in the server's own process would stall every
connection. Holds one block of the file at a time; offsets, ids and model names of lines go to disk.

What is refused is section 3.2 of the API contract (rules V3 to V17 and V20; see
docs/compatibility.md). V1 and V2 need the store, V18 and V19 never happen here.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import accumulate, compress, repeat
from pathlib import Path
from typing import Final, cast

from batchline.domain import bitmap, plan
from batchline.domain.line_faults import quoted
from batchline.domain.lines import CheckedLine, LineChecker, custom_id_of
from batchline.domain.model import Endpoint, LineProblem, PlannedShards
from batchline.service.arranging import arrange, sample_for
from batchline.service.bad_lines import BadLines, LeftOut
from batchline.service.duplicates import CustomIds, Suspect
from batchline.service.inputs import InputFile
from batchline.service.plans import PlanWriter
from batchline.service.scratch import disk_trouble_named
from batchline.service.skipped import SkippedLines, SkipSettings

_CR: Final = 13
_FIRST_LINE_BYTES: Final = 1024 * 1024  # how far rule V4 looks for a model

MAX_MODELS: Final = 1_000  # of one file, where several are allowed: each has shards of its own

_BOM: Final = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationJob:
    """What to validate, against which limits, and where the plan goes.

    `input_bytes` and `input_crc` (None: not known) are what the blob's row promises. `known_models`
    is None while some backend's catalogue is not known: rule V15 is then not applied.
    `max_embedding_inputs` None: no limit.
    What is at `plan_path` is replaced; what has to be spilled goes to unnamed files beside it.
    `skip` None: one bad line is enough to refuse the file.
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
    skip: SkipSettings | None = None
    input_crc: int | None = None
    order: plan.Order = plan.Order.FILE
    run_once: bool = False  # identical requests run once


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationResult:
    """Problems and nothing else, or (no problems) a durable plan at `ValidationJob.plan_path`.

    Problems of the whole file come first, then those of lines, in line order, one a line; the list
    is cut at `max_problems`. `lines` counts the request lines of the plan. `model` is None if there
    are several. `skipped` bad lines are not in the plan: their error lines, unless there are none,
    are durable at `SkipSettings.path`, and the first of their problems in `skipped_problems`.
    """

    problems: Sequence[LineProblem] = ()
    lines: int = 0
    skipped: int = 0
    skipped_problems: Sequence[LineProblem] = ()
    model: str | None = None
    skipped_crc: int = 0  # CRC-32C of their error lines
    shards: PlannedShards = field(default_factory=PlannedShards)
    plan_bytes: int = 0


def validate(job: ValidationJob) -> ValidationResult:
    """Check the whole file; write the plan if there is nothing wrong, or enough is right.

    When problems are returned or an error is raised, nothing is left behind.

    Raises:
        BlobUnreadable: the input is gone or not what was stored; nothing may be concluded.
        StorageFull: no room for the plan or for what is spilled.
        StoreUnavailable: the disk does not take them.
    """
    plan_path = Path(job.plan_path)
    with disk_trouble_named(), InputFile(job.input_path, job.input_bytes) as source:
        if job.input_bytes > job.max_file_bytes:
            return ValidationResult(problems=[_too_large(job, source)])
        with (
            closing(PlanWriter(plan_path, models_known=job.known_models is not None)) as planned,
            closing(CustomIds(plan_path.parent, file_bytes=job.input_bytes)) as ids,
            _skipping(job.skip) as skipped,
        ):
            bad = BadLines(job.max_problems)
            if skipped is not None:
                bad = LeftOut(job.max_problems, skipped)
            scan = _Scan(job, source, planned, ids, bad)
            scan.run()
            if job.input_crc is not None:
                source.check(job.input_crc)  # first: damage may look like a problem of a line
            if problems := scan.all_problems():
                return ValidationResult(problems=problems)
            if skipped is not None:
                skipped.sync()
            arrange(
                planned,
                source,
                plan_path.parent,
                endpoint=job.endpoint,
                models=len(scan.models),
                shard_entries=job.shard_entries,
                order=job.order,
                sample=scan.sample,
                run_once=job.run_once,
            )
            shards = planned.finish(list(scan.models), job.shard_entries)
            if skipped is not None and bad.left_out:
                skipped.keep()
            models = list(compress(shards.models, shards.counts))
            return ValidationResult(
                lines=planned.entries,
                skipped=bad.left_out,
                skipped_problems=tuple(bad.problems),
                skipped_crc=0 if skipped is None else skipped.crc,
                model=models[0] if len(models) == 1 else None,
                shards=shards,
                plan_bytes=plan.span(planned.entries, 0)[0],
            )


@contextmanager
def _skipping(settings: SkipSettings | None) -> Iterator[SkippedLines | None]:
    if settings is None:
        yield None
    else:
        with closing(SkippedLines(settings)) as skipped:
            yield skipped


class _Scan:
    """The pass over the file; afterwards `models` has the number of each model that it names, and
    `sample` what an order has to know of the lines."""

    def __init__(
        self,
        job: ValidationJob,
        source: InputFile,
        planned: PlanWriter,
        ids: CustomIds,
        bad: BadLines,
    ) -> None:
        self._job = job
        self._source = source
        self._planned = planned
        self._ids = ids
        self._bad = bad
        self._checker = LineChecker(job.endpoint)
        self._accept = self._checker.accept
        self._counts_inputs = job.endpoint == Endpoint.EMBEDDINGS
        self._known = None if job.known_models is None else frozenset(job.known_models)
        self._line_number = 0
        self._inputs = 0
        self._too_many = False
        self._model: str | None = None  # of the line before, and its number
        self._model_number = 0
        self.sample = sample_for(job.order, job.endpoint, file_bytes=job.input_bytes)
        self.models: dict[str, int] = {}

    def run(self) -> None:
        """Read until the end of the file, or until there is no room for another problem."""
        job = self._job
        for offset, lines in self._source.blocks(job.max_line_bytes):
            if lines is None:
                self._line_number += 1
                message = f"This line is longer than the maximum of {job.max_line_bytes} bytes."
                self._problem("invalid_request", message, None, self._line_number, None)
            elif any(lines):
                self._take(offset, lines)
            else:
                self._line_number += len(lines)
            self._too_many = self._planned.entries + self._bad.left_out > job.max_lines
            # A repeated id is a problem already, though it is named only at the end; a file that
            # repeats one id a million times would otherwise pile up in one partition.
            if self._too_many or self._bad.has_enough(self._ids.repeats):
                break
        if not self._bad.leaves_out:
            self._name_duplicates()
        elif not self._too_many:
            self._drop_duplicates()

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
            # What is not entered: blank lines, bad lines as `BadLines` says, and all after the last
            # problem.
            kept = [line is not None for line in checked]
            numbers = list(compress(numbers, kept))
            lines, sizes = list(compress(lines, kept)), list(compress(sizes, kept))
            offsets, checked = list(compress(offsets, kept)), list(compress(checked, kept))
        models = self._enter(
            offsets,
            [size - (raw[-1] == _CR) for raw, size in zip(lines, sizes, strict=True)],
            numbers,
            cast("list[CheckedLine]", checked),
        )
        if self.sample is not None:
            # Where a bad model was left out, the numbers are off by one: it is only a sample.
            self.sample.look(lines, models)

    def _enter(
        self,
        offsets: Sequence[int],
        sizes: Sequence[int],
        numbers: Sequence[int],
        checked: Sequence[CheckedLine],
    ) -> array[int]:
        """Put lines into the plan, and their models and ids where they are compared; the numbers of
        their models."""
        if all(line.model == self._model for line in checked):
            models = array("H", [self._model_number]) * len(checked)
        else:
            found = list(map(self._number_of_model, checked, numbers))
            if self._bad.leaves_out and None in found:
                kept = [number is not None for number in found]
                offsets, sizes = list(compress(offsets, kept)), list(compress(sizes, kept))
                numbers, checked = list(compress(numbers, kept)), list(compress(checked, kept))
                found = list(compress(found, kept))
            # None is left where a bad line spoils the plan anyway.
            models = array("H", (number or 0 for number in found))
        if self._counts_inputs:
            self._inputs += sum(line.inputs for line in checked)
        # `offsets` may be one longer: it then ends with the offset after the last line.
        self._planned.add(
            b"".join(map(plan.ENTRY.pack, offsets, sizes, numbers, repeat(0))), models
        )
        self._ids.add([line.custom_id for line in checked])
        return models

    def _look_closer(
        self, lines: list[bytes], numbers: Sequence[int], checked: list[CheckedLine | None]
    ) -> None:
        """Fill in `checked` where the fast check took nothing, and note the problems.

        None stays where nothing is to be entered.
        """
        for at, (raw, number) in enumerate(zip(lines, numbers, strict=True)):
            if checked[at] is not None or not raw or raw.isspace():
                continue
            line = self._checker.explain(raw, number)
            if isinstance(line, CheckedLine):
                checked[at] = line
                continue
            custom_id = custom_id_of(raw)
            self._bad.note(line, custom_id)
            if self._bad.has_enough():
                checked[at:] = [None] * (len(checked) - at)
                return
            checked[at] = self._bad.entered(custom_id)

    def _number_of_model(self, line: CheckedLine, line_number: int) -> int | None:
        """The number of the line's model; None, and a problem, where it may not be named here."""
        model = line.model
        if model == self._model:
            return self._model_number
        if not model:  # the line is refused already
            return None
        if self._known is not None and model not in self._known:
            message = f"The provided model {quoted(model)} is not supported by the Batch API."
            self._problem("model_not_found", message, "body.model", line_number, line.custom_id)
        elif self.models and not self._job.allow_mixed_models:
            message = (
                f"The model {quoted(model)} for this request does not match the rest of the batch. "
                "Each batch must contain requests for a single model."
            )
            self._problem("mismatched_model", message, "body.model", line_number, line.custom_id)
        elif model not in self.models and len(self.models) == MAX_MODELS:
            message = f"The batch contains requests for more than {MAX_MODELS} models."
            self._problem("mismatched_model", message, "body.model", line_number, line.custom_id)
        else:
            self._model = model
            self._model_number = self.models.setdefault(model, len(self.models))
            return self._model_number
        return None

    def _problem(
        self, code: str, message: str, param: str | None, line_number: int, custom_id: str | None
    ) -> None:
        self._bad.note(
            LineProblem(code=code, message=message, param=param, line_number=line_number), custom_id
        )

    def all_problems(self) -> list[LineProblem]:
        """Everything for which the file is refused, in the order in which it is reported."""
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
        if self._bad.leaves_out and not whole and self._planned.entries:
            return []
        of_lines = self._bad.problems
        if not whole and not of_lines and not self._planned.entries:
            message = (
                "The input file is empty. "
                "Please ensure that the batch contains at least one request."
            )
            whole.append(LineProblem(code="empty_file", message=message))
        return [*whole, *of_lines][: job.max_problems]

    def _name_duplicates(self) -> None:
        """Note the lines that repeat an earlier line's id and have no other problem."""
        refused = {problem.line_number for problem in self._bad.problems}
        for suspect in self._ids.suspects(self._job.max_problems + len(refused)):
            line_number, custom_id, _ = self._entered(suspect.entry)
            if line_number not in refused and self._repeats(suspect, custom_id):
                self._bad.note(_duplicate(line_number, custom_id), custom_id)

    def _drop_duplicates(self) -> None:
        """Take the lines that repeat an earlier line's id out of the plan."""
        dropped = bitmap.empty(self._planned.entries)
        for suspect in self._ids.all_suspects():
            if self._repeats(suspect, self._entered(suspect.entry)[1]):
                bitmap.mark(dropped, suspect.entry)
        if not any(dropped):
            return
        for entry in bitmap.marked_indexes(dropped):
            line_number, custom_id, raw = self._entered(entry)
            self._bad.note(_duplicate(line_number, custom_id), custom_id)
            if self._counts_inputs:
                line = self._checker.check(raw, line_number)
                self._inputs -= line.inputs if isinstance(line, CheckedLine) else 0
        self._planned.drop(dropped)

    def _repeats(self, suspect: Suspect, custom_id: str | None) -> bool:
        """Whether the suspect has the id of an earlier entry, and not only its hash."""
        return any(self._entered(entry)[1] == custom_id for entry in suspect.earlier)

    def _entered(self, entry: int) -> tuple[int, str | None, bytes]:
        """The line number, the custom_id and the bytes of an entry."""
        place = self._planned.entry(entry)
        raw = self._source.at(place.offset, place.length)
        return place.line_number, custom_id_of(raw), raw


def _duplicate(line_number: int, custom_id: str | None) -> LineProblem:
    message = (
        f"The custom_id {quoted(custom_id)} for this request is a duplicate of another "
        "request. The custom_id parameter must be unique for each request in a batch."
    )
    return LineProblem(
        code="duplicate_custom_id", message=message, param="custom_id", line_number=line_number
    )


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
