"""Idempotency keys: one key, one batch, whoever comes first."""

from __future__ import annotations

import asyncio

from batchline.domain.ids import DEFAULT_PROJECT, FileId, ProjectId
from batchline.domain.lifecycle import BatchEvent
from batchline.store.contract import IdempotencyKey, NewBatch, Store
from tests.contract.store_rows import NOW, asked_for, moved, uploaded

DAY_LATER = NOW + 86_400


def key(text: str = "k", *, fingerprint: str = "f", expires_at: int = DAY_LATER) -> IdempotencyKey:
    return IdempotencyKey(key=text, fingerprint=fingerprint, expires_at=expires_at)


def asked(*, project_id: ProjectId = DEFAULT_PROJECT, now: int = NOW) -> NewBatch:
    new = asked_for(FileId("file-none"), project_id=project_id)
    return NewBatch(**{**{name: getattr(new, name) for name in new.__slots__}, "created_at": now})


async def batches_of(store: Store, project_id: ProjectId = DEFAULT_PROJECT) -> list[str]:
    page = await store.list_batches(project_id, after=None, limit=100)
    return [batch.id for batch in page.items]


async def test_a_key_is_given_its_batch_as_it_is_now(store: Store) -> None:
    file, _ = await uploaded(store)
    first = await store.create_batch_once(asked_for(file.id), key())
    assert first is not None
    assert first.input_blob is not None
    now = await moved(store, first, BatchEvent.CANCEL_REQUESTED)
    assert await store.create_batch_once(asked_for(file.id), key()) == now
    assert await batches_of(store) == [first.id]


async def test_another_fingerprint_or_key_is_told_from_the_first(store: Store) -> None:
    first = await store.create_batch_once(asked(), key())
    assert await store.create_batch_once(asked(), key(fingerprint="g")) is None
    other = await store.create_batch_once(asked(), key("l", fingerprint="g"))
    assert first is not None
    assert other is not None
    assert await batches_of(store) == [other.id, first.id]


async def test_projects_do_not_share_keys(store: Store, other_project: ProjectId) -> None:
    ours = await store.create_batch_once(asked(), key())
    theirs = await store.create_batch_once(asked(project_id=other_project), key(fingerprint="g"))
    assert ours is not None
    assert theirs is not None
    assert await batches_of(store, other_project) == [theirs.id]


async def test_of_fifty_creates_at_once_one_creates(store: Store) -> None:
    made = await asyncio.gather(*(store.create_batch_once(asked(), key()) for _ in range(50)))
    (only,) = await batches_of(store)
    assert [batch and batch.id for batch in made] == [only] * 50


async def test_of_creates_at_once_under_a_key_that_ran_out_one_creates(store: Store) -> None:
    old = await store.create_batch_once(asked(), key(expires_at=NOW + 1))
    late = [asked(now=NOW + 1) for _ in range(20)]
    made = await asyncio.gather(*(store.create_batch_once(new, key()) for new in late))
    assert old is not None
    newest, oldest = await batches_of(store)
    assert oldest == old.id
    assert [batch and batch.id for batch in made] == [newest] * 20


async def test_a_key_is_kept_until_it_runs_out(store: Store) -> None:
    first = await store.create_batch_once(asked(), key())
    await store.drop_idempotency_keys(now=DAY_LATER - 1)
    assert await store.create_batch_once(asked(now=DAY_LATER - 1), key()) == first
    await store.drop_idempotency_keys(now=DAY_LATER)
    second = await store.create_batch_once(asked(), key(fingerprint="g"))
    assert second is not None
    assert second != first
