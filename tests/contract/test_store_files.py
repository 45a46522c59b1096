"""Files: who sees them, in which order, and when their bytes are let go."""

from __future__ import annotations

import pytest

from batchline.domain.errors import NotFound
from batchline.domain.ids import DEFAULT_PROJECT, FileId, ProjectId
from batchline.domain.model import BlobRange, Purpose
from batchline.store.contract import Store
from tests.contract.store_rows import (
    NOW,
    asked_for,
    fresh_blob,
    fresh_file,
    let_go,
    uploaded,
)

LATER = NOW + 1_000


async def listed(
    store: Store,
    project_id: ProjectId = DEFAULT_PROJECT,
    *,
    purpose: str | None = None,
    after: FileId | None = None,
    limit: int = 100,
    ascending: bool = False,
    now: int = NOW,
) -> tuple[list[FileId], bool]:
    page = await store.list_files(
        project_id, purpose=purpose, after=after, limit=limit, ascending=ascending, now=now
    )
    return [file.id for file in page.items], page.has_more


async def unreferenced(store: Store) -> set[str]:
    """What may go once a sweep has let go of what is hidden."""
    await let_go(store)
    return {blob.name for blob in await store.unreferenced_blobs(limit=100)}


async def test_a_created_file_is_seen_as_it_was_given_with_the_bytes_of_its_blob(
    store: Store,
) -> None:
    file, blob = fresh_file(size=5_000_000_000), fresh_blob(size=5_000_000_000)
    await store.create_file(file, blob)
    assert await store.get_file(DEFAULT_PROJECT, file.id, now=NOW) == file
    assert await store.file_ranges(file.id) == [
        BlobRange(blob=blob.name, start=0, stop=5_000_000_000, crc=None)
    ]
    assert await unreferenced(store) == set()


async def test_an_empty_file_has_a_manifest_without_bytes(store: Store) -> None:
    file, blob = fresh_file(size=0), fresh_blob(size=0)
    await store.create_file(file, blob)
    assert await store.file_ranges(file.id) == [BlobRange(blob=blob.name, start=0, stop=0)]


async def test_a_file_that_never_existed_is_none(store: Store) -> None:
    assert await store.get_file(DEFAULT_PROJECT, FileId("file-none"), now=NOW) is None
    assert await store.file_ranges(FileId("file-none")) == []


async def test_another_projects_file_looks_like_one_that_never_existed(
    store: Store, other_project: ProjectId
) -> None:
    file, _ = await uploaded(store)
    assert await store.get_file(other_project, file.id, now=NOW) is None
    assert not await store.delete_file(other_project, file.id, now=NOW)
    assert await listed(store, other_project) == ([], False)
    with pytest.raises(NotFound):
        await listed(store, other_project, after=file.id)
    assert await store.get_file(DEFAULT_PROJECT, file.id, now=NOW) == file


async def test_a_deleted_file_is_gone_and_its_bytes_are_free(store: Store) -> None:
    file, blob = await uploaded(store)
    assert await store.delete_file(DEFAULT_PROJECT, file.id, now=NOW)
    assert await store.get_file(DEFAULT_PROJECT, file.id, now=NOW) is None
    assert await listed(store) == ([], False)
    assert await unreferenced(store) == {blob.name}
    assert await store.file_ranges(file.id) == []


async def test_what_is_hidden_is_held_until_it_is_let_go_of(store: Store) -> None:
    deleted, first = await uploaded(store)
    expired, second = await uploaded(store, expires_at=LATER)
    visible, third = await uploaded(store)
    assert await store.hidden_files(after=None, limit=10) == []
    assert await store.delete_file(DEFAULT_PROJECT, deleted.id, now=NOW)
    assert await store.expire_files(now=LATER, limit=10) == 1

    hidden = sorted([deleted.id, expired.id])
    assert await store.hidden_files(after=None, limit=10) == hidden
    assert await store.hidden_files(after=None, limit=1) == hidden[:1]
    assert await store.hidden_files(after=hidden[0], limit=10) == hidden[1:]
    assert await store.unreferenced_blobs(limit=10) == []
    for file, blob in ((deleted, first), (expired, second)):
        (part,) = await store.file_ranges(file.id)
        assert part.blob == blob.name

    await store.let_go_files([deleted.id, visible.id, FileId("file-none")])
    assert await store.hidden_files(after=None, limit=10) == [expired.id]
    assert [blob.name for blob in await store.unreferenced_blobs(limit=10)] == [first.name]
    assert await store.file_ranges(deleted.id) == []
    (part,) = await store.file_ranges(visible.id)
    assert part.blob == third.name
    await store.let_go_files([deleted.id])
    assert await store.hidden_files(after=None, limit=10) == [expired.id]


async def test_a_file_is_deleted_once(store: Store) -> None:
    file, _ = await uploaded(store)
    assert await store.delete_file(DEFAULT_PROJECT, file.id, now=NOW)
    assert not await store.delete_file(DEFAULT_PROJECT, file.id, now=NOW)


async def test_a_file_expires_by_the_clock_before_any_sweep(store: Store) -> None:
    file, _ = await uploaded(store, expires_at=LATER)
    assert await store.get_file(DEFAULT_PROJECT, file.id, now=LATER - 1) == file
    assert await store.get_file(DEFAULT_PROJECT, file.id, now=LATER) is None
    assert await listed(store, now=LATER) == ([], False)
    assert not await store.delete_file(DEFAULT_PROJECT, file.id, now=LATER)


async def test_a_sweep_frees_the_bytes_of_expired_files_up_to_its_limit(store: Store) -> None:
    doomed = {(await uploaded(store, expires_at=LATER))[1].name for _ in range(3)}
    kept = {(await uploaded(store, expires_at=LATER + 1))[1].name, (await uploaded(store))[1].name}
    assert await store.expire_files(now=LATER, limit=2) == 2
    assert await store.expire_files(now=LATER, limit=2) == 1
    assert await store.expire_files(now=LATER, limit=2) == 0
    assert await unreferenced(store) == doomed
    assert await store.known_blobs([*kept]) == kept


async def test_files_are_listed_newest_first_or_in_order_of_creation(store: Store) -> None:
    created = [(await uploaded(store))[0].id for _ in range(3)]
    assert await listed(store) == (created[::-1], False)
    assert await listed(store, ascending=True) == (created, False)


async def test_a_list_can_be_of_one_purpose(store: Store) -> None:
    await uploaded(store)
    evals, _ = await uploaded(store, purpose=Purpose.EVALS)
    await uploaded(store)
    assert await listed(store, purpose="evals") == ([evals.id], False)
    assert await listed(store, purpose="no such purpose") == ([], False)


@pytest.mark.parametrize("ascending", [False, True])
async def test_pages_cover_the_list_once_and_say_exactly_whether_there_is_more(
    store: Store, ascending: bool
) -> None:
    created = [(await uploaded(store))[0].id for _ in range(4)]
    order = created if ascending else created[::-1]
    assert await listed(store, limit=2, ascending=ascending) == (order[:2], True)
    second = await listed(store, limit=2, after=order[1], ascending=ascending)
    assert second == (order[2:], False)
    assert await listed(store, limit=2, after=order[3], ascending=ascending) == ([], False)


async def test_a_deleted_or_expired_cursor_keeps_its_place(store: Store) -> None:
    oldest, _ = await uploaded(store)
    expiring, _ = await uploaded(store, expires_at=LATER)
    deleted, _ = await uploaded(store)
    newest, _ = await uploaded(store)
    await store.delete_file(DEFAULT_PROJECT, deleted.id, now=NOW)
    await store.expire_files(now=LATER, limit=10)
    assert await listed(store, after=deleted.id, now=LATER) == ([oldest.id], False)
    assert await listed(store, after=expiring.id, now=LATER) == ([oldest.id], False)
    assert await listed(store, after=deleted.id, ascending=True, now=LATER) == ([newest.id], False)


async def test_a_cursor_that_never_existed_is_not_found(store: Store) -> None:
    await uploaded(store)
    with pytest.raises(NotFound):
        await listed(store, after=FileId("file-none"))


async def test_a_batch_keeps_the_bytes_of_its_deleted_input(store: Store) -> None:
    file, blob = await uploaded(store)
    batch = await store.create_batch(asked_for(file.id))
    assert await store.delete_file(DEFAULT_PROJECT, file.id, now=NOW)
    assert await unreferenced(store) == set()
    assert await store.refuse_batch(batch.id, problems=[], now=NOW)
    assert await unreferenced(store) == {blob.name}
