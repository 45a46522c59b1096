"""Keys and their projects, on both databases."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.exc import IntegrityError

from batchline.domain.ids import DEFAULT_PROJECT, KeyId, ProjectId
from batchline.domain.keys import ApiKey
from batchline.service.keys import Keys
from batchline.store.contract import Store
from batchline.store.tables import project
from tests.contract.store_rows import NOW, both


def new_key(n: int, *, project_name: str = "alpha") -> ApiKey:
    return ApiKey(
        id=KeyId(f"key_{n}"),
        project_id=ProjectId(f"proj_{n}"),
        project_name=project_name,
        prefix=f"sk-bl-{n:08x}",
        digest=bytes([n]) * 32,
        created_at=NOW + n,
    )


async def test_a_key_is_kept_as_it_was_given(store: Store) -> None:
    assert await store.list_keys() == []
    assert await store.create_key(new_key(1)) == new_key(1)
    assert await store.list_keys() == [new_key(1)]


async def test_a_name_is_one_project_and_default_is_the_one_that_was_there(store: Store) -> None:
    first, second = [await store.create_key(new_key(n)) for n in (1, 2)]
    other = await store.create_key(new_key(3, project_name="beta"))
    default = await store.create_key(new_key(4, project_name="default"))
    assert (first.project_id, second.project_id) == ("proj_1", "proj_1")
    assert other.project_id == "proj_3"
    assert default.project_id == DEFAULT_PROJECT
    assert await store.project_name(other.project_id) == "beta"
    assert await store.project_name(DEFAULT_PROJECT) == "default"
    assert [key.id for key in await store.list_keys()] == ["key_1", "key_2", "key_3", "key_4"]


async def test_first_keys_of_one_project_at_once_make_one_project(
    store: Store, engine: Engine
) -> None:
    made = await asyncio.gather(*(store.create_key(new_key(n)) for n in range(8)))
    assert len({key.project_id for key in made}) == 1
    with engine.connect() as connection:
        names = connection.scalars(select(project.c.name).order_by(project.c.name)).all()
    assert names == ["alpha", "default"]


async def test_a_key_is_revoked_once_and_for_good(store: Store) -> None:
    await store.create_key(new_key(1))
    await store.create_key(new_key(2))
    first = await store.revoke_key(KeyId("key_1"), now=NOW + 10)
    again = await store.revoke_key(KeyId("key_1"), now=NOW + 20)
    assert first is not None
    assert first == again
    assert first.revoked_at == NOW + 10
    assert [key.revoked_at for key in await store.list_keys()] == [NOW + 10, None]
    assert await store.revoke_key(KeyId("key_none"), now=NOW) is None


async def test_revoking_a_key_twice_at_once_gives_one_answer(store: Store) -> None:
    await store.create_key(new_key(1))
    one, other = await both(
        store.revoke_key(KeyId("key_1"), now=NOW + 1), store.revoke_key(KeyId("key_1"), now=NOW + 2)
    )
    assert one is not None
    assert one == other


async def test_two_keys_with_one_digest_are_refused_by_the_database(store: Store) -> None:
    await store.create_key(new_key(1))
    with pytest.raises(IntegrityError):
        await store.create_key(replace(new_key(2), digest=new_key(1).digest))
    assert [key.id for key in await store.list_keys()] == ["key_1"]


async def test_keys_survive_the_server(store: Store) -> None:
    _, secret = await (await Keys.open(store)).create("alpha")
    revoked, lost = await (await Keys.open(store)).create("alpha")
    await (await Keys.open(store)).revoke(revoked.id)
    ring = (await Keys.open(store)).ring
    assert ring.caller(secret) is not None
    assert ring.caller(lost) is None
