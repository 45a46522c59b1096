"""Uploads in parts: who holds the parts' bytes, and which of two moves wins."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import replace

import pytest

from batchline.domain import ids
from batchline.domain.ids import DEFAULT_PROJECT, ProjectId
from batchline.domain.model import Blob, Purpose, Upload, UploadPart, UploadStatus
from batchline.store.contract import Store
from tests.contract.store_rows import NOW, fresh_blob, fresh_file

ENDS = NOW + 3_600
SIZE = 100


async def begun(store: Store, *, project_id: ProjectId = DEFAULT_PROJECT) -> Upload:
    upload = Upload(
        id=ids.upload_id(secrets.token_bytes(ids.RANDOM_BYTES)),
        project_id=project_id,
        purpose=Purpose.BATCH,
        filename="requests.jsonl",
        bytes=SIZE,
        created_at=NOW,
        expires_at=ENDS,
        file_expires_after_s=7_200,
    )
    await store.create_upload(upload)
    return upload


def part_of(upload: Upload, blob: Blob, *, now: int = NOW) -> UploadPart:
    return UploadPart(
        id=ids.part_id(secrets.token_bytes(ids.RANDOM_BYTES)),
        upload_id=upload.id,
        blob_name=blob.name,
        bytes=blob.bytes,
        created_at=now,
    )


async def added(
    store: Store,
    upload: Upload,
    blob: Blob | None = None,
    *,
    now: int = NOW,
    max_parts: int = 10,
    max_bytes: int = 10 * SIZE,
) -> bool:
    blob = blob or fresh_blob(size=SIZE)
    part = part_of(upload, blob, now=now)
    return await store.add_part(part, blob, max_parts=max_parts, max_bytes=max_bytes)


async def completed(store: Store, upload: Upload, blob: Blob | None = None) -> bool:
    return await store.complete_upload(
        upload.id, recipe="recipe", file=fresh_file(), blob=blob or fresh_blob()
    )


async def status(store: Store, upload: Upload) -> UploadStatus:
    found = await store.get_upload(upload.project_id, upload.id)
    assert found is not None
    return found.status


async def unreferenced(store: Store) -> set[str]:
    return {blob.name for blob in await store.unreferenced_blobs(limit=100)}


async def test_an_upload_is_seen_as_it_was_given(store: Store) -> None:
    upload = await begun(store)
    assert await store.get_upload(DEFAULT_PROJECT, upload.id) == upload
    assert await store.upload_parts(upload.id) == []


async def test_another_projects_upload_looks_like_one_that_never_existed(
    store: Store, other_project: ProjectId
) -> None:
    upload = await begun(store)
    assert await store.get_upload(other_project, upload.id) is None


async def test_a_pending_upload_holds_the_blobs_of_its_parts(store: Store) -> None:
    upload, blob = await begun(store), fresh_blob()
    part = part_of(upload, blob)
    assert await store.add_part(part, blob, max_parts=1, max_bytes=100)
    assert await store.upload_parts(upload.id) == [part]
    assert await unreferenced(store) == set()


async def test_completion_makes_the_file_and_lets_go_of_the_parts(store: Store) -> None:
    upload, first, second = await begun(store), fresh_blob(), fresh_blob()
    other, kept = await begun(store), fresh_blob()
    assert await added(store, upload, first)
    assert await added(store, upload, second)
    assert await added(store, other, kept)
    file, whole = fresh_file(), fresh_blob()
    assert await store.complete_upload(upload.id, recipe="r", file=file, blob=whole)
    assert await store.get_file(DEFAULT_PROJECT, file.id, now=NOW) == file
    after = replace(upload, status=UploadStatus.COMPLETED, file_id=file.id, recipe="r")
    assert await store.get_upload(DEFAULT_PROJECT, upload.id) == after
    assert await store.upload_parts(upload.id) == []
    assert await unreferenced(store) == {first.name, second.name}


async def test_a_cancel_lets_go_of_the_parts(store: Store) -> None:
    upload, blob = await begun(store), fresh_blob()
    assert await added(store, upload, blob)
    assert await store.cancel_upload(upload.id, now=ENDS - 1)
    assert await status(store, upload) is UploadStatus.CANCELLED
    assert await store.upload_parts(upload.id) == []
    assert await unreferenced(store) == {blob.name}


async def test_what_is_not_pending_takes_no_part_no_cancel_and_no_completion(
    store: Store,
) -> None:
    cancelled, whole, expired = [await begun(store) for _ in range(3)]
    assert await store.cancel_upload(cancelled.id, now=NOW)
    assert await completed(store, whole)
    # An hour later only the third one is still pending.
    assert await store.expire_uploads(now=ENDS, limit=10) == 1
    for upload in (cancelled, whole, expired):
        before = await store.get_upload(DEFAULT_PROJECT, upload.id)
        refused = [fresh_blob(), fresh_blob()]
        assert not await added(store, upload, refused[0])
        assert not await completed(store, upload, refused[1])
        assert not await store.cancel_upload(upload.id, now=NOW)
        assert await store.get_upload(DEFAULT_PROJECT, upload.id) == before
        assert await store.known_blobs([blob.name for blob in refused]) == set()


async def test_an_upload_is_closed_by_the_clock_before_any_sweep(store: Store) -> None:
    upload = await begun(store)
    assert await added(store, upload, now=ENDS - 1)
    assert not await added(store, upload, now=ENDS)
    assert not await store.cancel_upload(upload.id, now=ENDS)
    # A copy that was begun in time may end later.
    assert await completed(store, upload)


async def test_a_sweep_expires_pending_uploads_up_to_its_limit(store: Store) -> None:
    doomed = {fresh_blob() for _ in range(3)}
    for blob in doomed:
        assert await added(store, await begun(store), blob)
    assert await store.expire_uploads(now=ENDS - 1, limit=10) == 0
    assert await unreferenced(store) == set()
    assert await store.expire_uploads(now=ENDS, limit=2) == 2
    assert await store.expire_uploads(now=ENDS, limit=2) == 1
    assert await store.expire_uploads(now=ENDS, limit=2) == 0
    assert await unreferenced(store) == {blob.name for blob in doomed}


async def test_an_upload_takes_so_many_parts_and_bytes_and_no_more(store: Store) -> None:
    upload = await begun(store)
    assert await added(store, upload, max_parts=2, max_bytes=2 * SIZE)
    assert not await added(store, upload, max_parts=1, max_bytes=2 * SIZE)
    assert not await added(store, upload, max_parts=2, max_bytes=2 * SIZE - 1)
    assert await added(store, upload, max_parts=2, max_bytes=2 * SIZE)


async def test_parts_that_come_at_once_are_counted_together(store: Store) -> None:
    upload = await begun(store)
    took = await asyncio.gather(*(added(store, upload, max_bytes=5 * SIZE) for _ in range(12)))
    assert took.count(True) == 5
    assert len(await store.upload_parts(upload.id)) == 5


@pytest.mark.parametrize("winner", ["cancel", "complete"])
async def test_of_a_completion_a_cancel_and_parts_at_once_one_end_wins(
    store: Store, winner: str
) -> None:
    """Whichever it is, nothing of the upload is held afterwards but by the file."""
    upload, whole = await begun(store), fresh_blob()
    ends = [completed(store, upload, whole), store.cancel_upload(upload.id, now=NOW)]
    if winner == "cancel":
        ends.reverse()
    blobs = [fresh_blob(size=SIZE) for _ in range(6)]
    parts = [added(store, upload, blob) for blob in blobs]
    *took, one, other = await asyncio.gather(*parts, *ends)
    assert one is not other
    known = await store.known_blobs([blob.name for blob in blobs])
    assert known == {blob.name for blob, was in zip(blobs, took, strict=True) if was}
    assert await unreferenced(store) == known
    assert await store.upload_parts(upload.id) == []
