"""The values that the parts of Batchline hand to each other.

Instants that the wire shows are whole Unix seconds (`…_at: int`); durations are `…_s: float`.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice
from typing import Final, Generic, NamedTuple, TypeVar

import msgspec

from batchline.domain.ids import BatchId, BlobName, FileId, PartId, ProjectId, UploadId
from batchline.domain.lifecycle import BatchStatus, Stopping

T = TypeVar("T")

DAY_S: Final = 86_400


class Purpose(StrEnum):
    """What a file is for. The wire's list, and `batch_output` for what batches produce."""

    ASSISTANTS = "assistants"
    BATCH = "batch"
    BATCH_OUTPUT = "batch_output"
    EVALS = "evals"
    FINE_TUNE = "fine-tune"
    USER_DATA = "user_data"
    VISION = "vision"


class Endpoint(StrEnum):
    """The API paths whose requests can be batched, in the order in which a refusal lists them.

    The last two are not the service's: inference servers have them, and so does its batch here.
    """

    CHAT_COMPLETIONS = "/v1/chat/completions"
    COMPLETIONS = "/v1/completions"
    EMBEDDINGS = "/v1/embeddings"
    RESPONSES = "/v1/responses"
    MODERATIONS = "/v1/moderations"
    IMAGES_GENERATIONS = "/v1/images/generations"
    IMAGES_EDITS = "/v1/images/edits"
    VIDEOS = "/v1/videos"
    RERANK = "/v1/rerank"
    SCORE = "/v1/score"


class UploadStatus(StrEnum):
    """The wire's four statuses of an upload in parts. All but `pending` are final."""

    PENDING = "pending"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class BlobKind(StrEnum):
    """What a blob holds; kinds are folders on disk."""

    INPUT = "input"
    PLAN = "plan"
    NEVER_RUN = "never_run"
    SEGMENT = "segment"


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """Bytes in storage, complete and durable: `bytes` long, under a name that is never reused.

    `crc` is the CRC-32C of them all, None when not known.
    """

    name: BlobName
    kind: BlobKind
    bytes: int
    crc: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobRange:
    """`stop - start` bytes of a blob from `start`; `crc` is their CRC-32C, None when not known.

    The CRC is also that of the `lead` bytes before `start` and the `trail` bytes from `stop` on: a
    part of a range is checked with them.
    """

    blob: BlobName
    start: int
    stop: int
    crc: int | None = None
    lead: int = 0
    trail: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """The API's File object, as stored. Expired and deleted files are never given out."""

    id: FileId
    project_id: ProjectId
    purpose: Purpose
    filename: str
    bytes: int
    created_at: int
    expires_at: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """The API's Upload object, as stored: a file that comes in parts.

    `bytes` is what its creator announced. `file_expires_after_s` is the policy of the file that it
    becomes; `file_id` names that file, and `recipe` tells of which parts, once it is `completed`.
    """

    id: UploadId
    project_id: ProjectId
    purpose: Purpose
    filename: str
    bytes: int
    created_at: int
    expires_at: int
    file_expires_after_s: int | None
    status: UploadStatus = UploadStatus.PENDING
    file_id: FileId | None = None
    recipe: str | None = None

    def status_at(self, now: int) -> UploadStatus:
        """The status by the clock: an upload expires whether a sweep has been there or not."""
        if self.status is UploadStatus.PENDING and self.expires_at <= now:
            return UploadStatus.EXPIRED
        return self.status


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadPart:
    """A part of an upload: the whole of the durable blob `blob_name`."""

    id: PartId
    upload_id: UploadId
    blob_name: BlobName
    bytes: int
    created_at: int


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Tokens summed over successful responses; what a backend does not tell counts as 0."""

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    total_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            input_tokens=self.input_tokens + other.input_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            reasoning_tokens=self.reasoning_tokens + other.reasoning_tokens,
            total_tokens=self.total_tokens + other.total_tokens,
        )

    def __sub__(self, other: Usage) -> Usage:
        return Usage(
            input_tokens=self.input_tokens - other.input_tokens,
            cached_tokens=self.cached_tokens - other.cached_tokens,
            output_tokens=self.output_tokens - other.output_tokens,
            reasoning_tokens=self.reasoning_tokens - other.reasoning_tokens,
            total_tokens=self.total_tokens - other.total_tokens,
        )


def total_usage(told: Iterable[Usage]) -> Usage:
    """The sum of many, at a third of the cost of adding one after the other."""
    into = cached = out = reasoning = total = 0
    for one in told:
        into += one.input_tokens
        cached += one.cached_tokens
        out += one.output_tokens
        reasoning += one.reasoning_tokens
        total += one.total_tokens
    return Usage(
        input_tokens=into,
        cached_tokens=cached,
        output_tokens=out,
        reasoning_tokens=reasoning,
        total_tokens=total,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """The wire's `request_counts`: committed results only. Lines never run are in neither count."""

    total: int = 0
    completed: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LineProblem:
    """Why an input file is refused; the shape of the API's BatchError.

    `line_number` counts from 1; None for a problem of the whole file.
    """

    code: str
    message: str
    param: str | None = None
    line_number: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The API's Batch object with the internal columns beside it.

    `sequence` orders batches within the store (ids are random within a second). `input_blob` and
    `plan_blob` are None when the input was never found / not planned yet; `model` is None until
    validation named it. `skip_invalid`: bad lines are left out and do not refuse the file; they
    are counted as failed from the start. `receipt` is the cancel receipt, None before a cancel.
    `run_once`: identical requests run once; `calls_saved` counts the lines whose result is that of
    another line's call. `input_crc` is the CRC-32C of the input, None when not known; `repairs`
    says how often committed results were found damaged and taken out again.
    """

    sequence: int
    id: BatchId
    project_id: ProjectId
    endpoint: str
    completion_window: str
    input_file_id: FileId
    status: BatchStatus
    stopping: Stopping | None
    created_at: int
    expires_at: int
    model: str | None = None
    errors: Sequence[LineProblem] | None = None
    output_file_id: FileId | None = None
    error_file_id: FileId | None = None
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    counts: Counts = field(default_factory=Counts)
    usage: Usage = field(default_factory=Usage)
    metadata: Mapping[str, str] | None = None
    output_expires_after_s: int | None = None
    skip_invalid: bool = False
    input_blob: BlobName | None = None
    input_bytes: int = 0
    plan_blob: BlobName | None = None
    receipt: Mapping[str, object] | None = None
    input_crc: int | None = None
    repairs: int = 0
    run_once: bool = False
    calls_saved: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardKey:
    """Names one shard: a batch and the shard's number in it, from 0."""

    batch_id: BatchId
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Consecutive entries of the plan, all of one model, executed as a unit.

    `epoch` outdates former holders: a commit under an older one is refused. `settled` has one bit
    per entry. `completed`, `failed` and `usage` are absolute, never deltas. `deaths` counts workers
    that died holding it.
    """

    key: ShardKey
    first_entry: int
    entries: int
    model: str
    epoch: int
    settled: bytes
    completed: int = 0
    failed: int = 0
    usage: Usage = field(default_factory=Usage)
    deaths: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardCommit:
    """What a worker asks the store to accept: a range of its segment and the shard's new totals.

    The range bytes are durable (fdatasync) before this value is sent. `output` and `errors` are
    None when the group held no line of that kind. `failed_lines` has the bits of the lines in
    `errors`, `saved_lines` of those whose result is that of another line's call (empty: of none);
    `partials` are records (`domain/partials.py`) of lines that did not settle, None when there are
    none. Everything else is absolute.
    """

    key: ShardKey
    epoch: int
    output: BlobRange | None
    errors: BlobRange | None
    settled: bytes
    completed: int
    failed: int
    usage: Usage
    failed_lines: bytes
    partials: BlobRange | None = None
    saved_lines: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommittedRange:
    """One committed range of a batch that has not ended; `sequence` orders them.

    `lines` is how many results it holds, None where that was not recorded.
    """

    sequence: int
    part: BlobRange
    lines: int | None


class PendingShard(NamedTuple):
    """A shard with an unsettled line; `deaths` as in `Shard`."""

    number: int
    model: str
    deaths: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedShard:
    """One shard of a new plan, before it has a row."""

    first_entry: int
    entries: int
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedShards:
    """All shards of a new plan, in its order: 4 bytes each, where a PlannedShard has 180.

    Iterable as often as one likes.
    """

    models: Sequence[str] = ()  # each is that of so many shards as `counts` says, in this order
    counts: Sequence[int] = ()
    sizes: bytes = b""  # the entries of each shard, as an array of type "I"

    def __len__(self) -> int:
        return sum(self.counts)

    def __iter__(self) -> Iterator[PlannedShard]:
        first = 0
        sizes = iter(array("I", self.sizes))
        for model, count in zip(self.models, self.counts, strict=True):
            for entries in islice(sizes, count):
                yield PlannedShard(first_entry=first, entries=entries, model=model)
                first += entries


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Generic[T]):
    """One page of a list, in list order; `has_more` is exact."""

    items: Sequence[T]
    has_more: bool
