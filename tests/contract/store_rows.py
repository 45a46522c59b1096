"""Files, batches and commits for the tests of the store, with everything filled in."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Iterable, Sequence
from typing import TypeVar

import google_crc32c

from batchline.domain import bitmap, ids
from batchline.domain.ids import DEFAULT_PROJECT, BatchId, BlobName, FileId, ProjectId
from batchline.domain.lifecycle import BatchEvent, BatchStatus
from batchline.domain.model import (
    DAY_S,
    Batch,
    Blob,
    BlobKind,
    BlobRange,
    File,
    PlannedShard,
    Purpose,
    Shard,
    ShardCommit,
    ShardKey,
    Usage,
)
from batchline.store.contract import FinalFiles, NewBatch, Store

NOW = 1_750_000_000
T = TypeVar("T")
U = TypeVar("U")

OTHER_PROJECT = ProjectId("proj_other")
MODEL = "some-model"


def fresh_blob(kind: BlobKind = BlobKind.INPUT, *, size: int = 100) -> Blob:
    return Blob(name=BlobName(f"{kind.value}-{secrets.token_hex(16)}"), kind=kind, bytes=size)


def fresh_file(
    *,
    project_id: ProjectId = DEFAULT_PROJECT,
    purpose: Purpose = Purpose.BATCH,
    size: int = 100,
    expires_at: int | None = None,
) -> File:
    return File(
        id=ids.file_id(secrets.token_bytes(ids.RANDOM_BYTES)),
        project_id=project_id,
        purpose=purpose,
        filename="requests.jsonl",
        bytes=size,
        created_at=NOW,
        expires_at=expires_at,
    )


async def uploaded(
    store: Store,
    *,
    project_id: ProjectId = DEFAULT_PROJECT,
    purpose: Purpose = Purpose.BATCH,
    expires_at: int | None = None,
) -> tuple[File, Blob]:
    file, blob = (
        fresh_file(project_id=project_id, purpose=purpose, expires_at=expires_at),
        fresh_blob(),
    )
    await store.create_file(file, blob)
    return file, blob


def asked_for(input_file_id: FileId, *, project_id: ProjectId = DEFAULT_PROJECT) -> NewBatch:
    return NewBatch(
        id=ids.batch_id(NOW, secrets.token_bytes(ids.RANDOM_BYTES)),
        project_id=project_id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        input_file_id=input_file_id,
        created_at=NOW,
        expires_at=NOW + DAY_S,
        metadata={"b": "2", "a": "ä"},
        output_expires_after_s=None,
    )


async def validating(store: Store) -> Batch:
    file, _ = await uploaded(store)
    return await store.create_batch(asked_for(file.id))


async def started(store: Store, *, shards: int = 1, entries: int = 10) -> Batch:
    """A batch in progress with `shards` shards of `entries` lines each."""
    batch = await validating(store)
    began = await store.start_batch(
        batch.id,
        plan=fresh_blob(BlobKind.PLAN),
        shards=planned(shards, entries),
        lines=shards * entries,
        model=MODEL,
        now=NOW + 1,
    )
    assert began
    return await store.load_batch(batch.id)


def planned(shards: int, entries: int) -> list[PlannedShard]:
    return [
        PlannedShard(first_entry=number * entries, entries=entries, model=MODEL)
        for number in range(shards)
    ]


async def brought_to(store: Store, status: BatchStatus) -> Batch:
    """A batch in `status`, by the way that batches go."""
    match status:
        case BatchStatus.VALIDATING:
            return await validating(store)
        case BatchStatus.FAILED:
            batch = await validating(store)
            assert await store.refuse_batch(batch.id, problems=[], now=NOW + 1)
            return await store.load_batch(batch.id)
        case BatchStatus.IN_PROGRESS:
            return await started(store)
        case BatchStatus.FINALIZING:
            return await moved(store, await started(store), BatchEvent.ALL_LINES_FINISHED)
        case BatchStatus.COMPLETED:
            return await finalized(store, await brought_to(store, BatchStatus.FINALIZING))
        case BatchStatus.EXPIRED:
            batch = await moved(store, await started(store), BatchEvent.WINDOW_CLOSED)
            return await finalized(store, batch)
        case BatchStatus.CANCELLING:
            return await moved(store, await started(store), BatchEvent.CANCEL_REQUESTED)
        case BatchStatus.CANCELLED:
            return await finalized(store, await brought_to(store, BatchStatus.CANCELLING))


async def moved(store: Store, batch: Batch, event: BatchEvent) -> Batch:
    after = await store.advance_batch(batch.id, from_status=batch.status, event=event, now=NOW + 2)
    assert after is not None
    return after


def final_files(*, never_run: Blob | None = None, expires_at: int | None = None) -> FinalFiles:
    return FinalFiles(
        output_id=ids.file_id(secrets.token_bytes(ids.RANDOM_BYTES)),
        output_filename="output.jsonl",
        error_id=ids.file_id(secrets.token_bytes(ids.RANDOM_BYTES)),
        error_filename="errors.jsonl",
        expires_at=expires_at,
        never_run=never_run,
    )


async def finalized(store: Store, batch: Batch, files: FinalFiles | None = None) -> Batch:
    after = await store.finalize(
        batch.id,
        from_status=batch.status,
        stopping=batch.stopping,
        files=files or final_files(),
        now=NOW + 3,
    )
    assert after is not None
    return after


class Segment:
    """A worker's segment, as far as the store hears of it: ranges one after another."""

    def __init__(self) -> None:
        self.name = fresh_blob(BlobKind.SEGMENT).name
        self._end = 0

    def append(self, data: bytes) -> BlobRange:
        start, self._end = self._end, self._end + len(data)
        crc = google_crc32c.value(data)
        return BlobRange(blob=self.name, start=start, stop=self._end, crc=crc)


async def claimed(store: Store, batch: Batch | BatchId, number: int = 0) -> Shard:
    batch_id = batch.id if isinstance(batch, Batch) else batch
    shard = await store.claim_shard(ShardKey(batch_id=batch_id, number=number))
    assert shard is not None
    return shard


def settling(
    shard: Shard,
    *,
    finished: Iterable[int] = (),
    failed: Iterable[int] = (),
    saved: Iterable[int] = (),
    segment: Segment | None = None,
    tokens: int = 7,
) -> ShardCommit:
    """A commit of these lines of `shard` beside those that were settled when it was claimed.

    `saved` are those of them that have another line's result. 50 bytes `o` for each line that
    finished, 20 bytes `e` for each that failed.
    """
    segment = segment or Segment()
    settled = bytearray(shard.settled)
    good, bad = list(finished), list(failed)
    failed_lines = bitmap.empty(shard.entries)
    for index in bad:
        bitmap.mark(failed_lines, index)
    for index in [*good, *bad]:
        bitmap.mark(settled, index)
    saved_lines = bitmap.empty(shard.entries if saved else 0)
    for index in saved:
        bitmap.mark(saved_lines, index)
    return ShardCommit(
        key=shard.key,
        epoch=shard.epoch,
        output=segment.append(b"o" * 50 * len(good)) if good else None,
        errors=segment.append(b"e" * 20 * len(bad)) if bad else None,
        settled=bytes(settled),
        completed=shard.completed + len(good),
        failed=shard.failed + len(bad),
        usage=shard.usage + Usage(input_tokens=tokens * len(good), total_tokens=tokens * len(good)),
        failed_lines=bytes(failed_lines),
        saved_lines=bytes(saved_lines),
    )


async def commits(store: Store, *group: ShardCommit, worker: str = "w1") -> Sequence[bool]:
    return await store.commit(worker, group, now=NOW + 2)


async def let_go(store: Store) -> None:
    """Let go of every file that is deleted or expired, as a sweep does beside no download."""
    while hidden := await store.hidden_files(after=None, limit=100):
        await store.let_go_files(hidden)


async def both(one: Awaitable[T], other: Awaitable[U]) -> tuple[T, U]:
    """What the two give when they run at once."""
    return await asyncio.gather(one, other)
