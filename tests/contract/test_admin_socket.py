"""The admin socket: who may use it, what it answers, and what happens where there is none."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import stat
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import anyio
import pytest

from batchline.api import admin
from batchline.api.admin import CreateKey, KeyCreated, KeyRevoked, KeysListed, ListKeys, RevokeKey
from batchline.api.admin_backends import (
    BackendsListed,
    ListBackends,
    SetDrained,
    ShownBackend,
)
from batchline.domain.errors import ConfigError, NotFound, StoreUnavailable
from batchline.service.keys import Keys
from batchline.service.maintenance import Deletion
from batchline.store.database import Database
from batchline.store.engine import sqlite_url

SOON_S: Final = 30.0


@pytest.fixture
async def keys(tmp_path: Path) -> AsyncIterator[Keys]:
    store = await Database.open(sqlite_url(tmp_path / "batchline.db"))
    yield await Keys.open(store)
    await store.close()


async def asked(path: Path, request: admin.Request) -> admin.Answer | None:
    return await asyncio.to_thread(admin.ask, path, request, timeout_s=10)


async def test_keys_are_created_listed_and_revoked_and_the_ring_knows_at_once(
    keys: Keys, tmp_path: Path
) -> None:
    path = tmp_path / "admin.sock"
    async with admin.serving(path, keys):
        made = await asked(path, CreateKey("alpha"))
        assert isinstance(made, KeyCreated)
        assert keys.ring.caller(made.secret) is not None
        assert await asked(path, ListKeys()) == KeysListed([made.key])
        ended = await asked(path, RevokeKey(made.key.id))
        assert isinstance(ended, KeyRevoked)
        assert keys.ring.caller(made.secret) is None
        assert ended.key.revoked_at is not None
        assert await asked(path, ListKeys()) == KeysListed([ended.key])


async def test_the_socket_is_for_the_owner_of_the_directory_alone(
    keys: Keys, tmp_path: Path
) -> None:
    path = tmp_path / "admin.sock"
    async with admin.serving(path, keys):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.exists()


async def test_a_path_longer_than_an_address_is_served_all_the_same(
    keys: Keys, tmp_path: Path
) -> None:
    path = tmp_path / ("d" * 120) / "admin.sock"
    path.parent.mkdir()
    async with admin.serving(path, keys):
        assert await asked(path, ListKeys()) == KeysListed([])


async def test_what_a_killed_server_left_is_replaced_and_answers_nobody_before(
    keys: Keys, tmp_path: Path
) -> None:
    path = tmp_path / "admin.sock"
    assert await asked(path, ListKeys()) is None
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    assert await asked(path, ListKeys()) is None
    async with admin.serving(path, keys):
        assert await asked(path, ListKeys()) == KeysListed([])


async def test_where_no_socket_can_be_the_start_is_refused(keys: Keys, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="admin socket"):
        async with admin.serving(tmp_path / "none" / "admin.sock", keys):
            pass


async def test_refusals_are_answers(keys: Keys, tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    async with admin.serving(path, keys):
        for request in (CreateKey("no such name"), RevokeKey("key_none")):
            answer = await asked(path, request)
            assert isinstance(answer, admin.Refused)
            assert answer.message


async def test_a_database_that_is_away_is_an_answer_without_its_message(
    keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away() -> None:
        raise StoreUnavailable("the path of something")

    monkeypatch.setattr(keys, "list", away)
    answer = await admin.answer_to(ListKeys(), keys)
    assert isinstance(answer, admin.Refused)
    assert "store_unavailable" in answer.message
    assert "path" not in answer.message


@pytest.mark.parametrize(
    "garbage",
    [b"", b"\n", b"{}\n", b'{"type":"drop_everything"}\n', b"\xff\n", b"x" * 200_000 + b"\n"],
)
async def test_garbage_gets_no_answer_and_harms_nobody(
    keys: Keys, tmp_path: Path, garbage: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "admin.sock"
    async with admin.serving(path, keys):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(garbage)
        writer.write_eof()
        with contextlib.suppress(ConnectionError):  # closed with some of it unread
            assert await reader.read() == b""
        writer.close()
        assert await asked(path, ListKeys()) == KeysListed([])
    assert "admin_request_unusable" in "".join(capsys.readouterr())


async def test_a_client_that_says_nothing_does_not_keep_the_server_from_ending(
    keys: Keys, tmp_path: Path
) -> None:
    path = tmp_path / "admin.sock"
    async with asyncio.timeout(SOON_S):
        async with admin.serving(path, keys):
            reader, writer = await asyncio.open_unix_connection(path)
            await asked(path, ListKeys())
        assert await reader.read() == b""
        writer.close()


async def test_deletion_is_held_for_as_long_as_the_connection_is_open(
    keys: Keys, tmp_path: Path
) -> None:
    path = tmp_path / "admin.sock"
    deletion = Deletion()
    assert await held(path) is None
    async with admin.serving(path, keys, deletion=deletion):
        first, second = await held(path), await held(path)
        assert first is not None
        assert second is not None
        assert not first.is_lost
        first.close()
        assert await asked(path, ListKeys()) == KeysListed([])  # meanwhile all else is answered
        await until(lambda: deletion.is_held)
        second.close()
        await until(lambda: not deletion.is_held)
        last = await held(path)
        assert last is not None
        await until(lambda: deletion.is_held)
    assert last.is_lost
    await until(lambda: not deletion.is_held)
    last.close()


async def held(path: Path) -> admin.Hold | None:
    return await asyncio.to_thread(admin.Hold.at, path, timeout_s=10)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOON_S):
        while not holds():  # noqa: ASYNC110  # who holds tells nobody
            await anyio.sleep(0.002)


# -- backends ------------------------------------------------------------------------------------


@dataclass(slots=True)
class Known:
    """One backend, as a server has it."""

    drained: bool = False

    def shown(self) -> list[ShownBackend]:
        return [
            ShownBackend(
                name="gpu",
                state="drained" if self.drained else "up",
                base_url="http://gpu/v1",
                weight=1.0,
                max_in_flight=8,
                permits=0,
                in_flight=0,
                circuit="admits",
                drained=self.drained,
                quiet=True,
                reason=None,
                models=None,
            )
        ]

    async def set_drained(self, name: str, *, drained: bool) -> None:
        if name != "gpu":
            raise NotFound(f"There is no backend '{name}'; there are: gpu.")
        self.drained = drained


async def test_backends_are_listed_drained_and_taken_back(keys: Keys, tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    known = Known()
    async with admin.serving(path, keys, backends=known):
        for drained in (True, False):
            answer = await asked(path, SetDrained("gpu", drained))
            assert answer == await asked(path, ListBackends()) == BackendsListed(known.shown())
            assert known.drained is drained
        refused = await asked(path, SetDrained("cpu", drained=True))
        assert refused == admin.Refused("There is no backend 'cpu'; there are: gpu.")


async def test_where_nothing_is_dispatched_there_are_no_backends(
    keys: Keys, tmp_path: Path
) -> None:
    path = tmp_path / "admin.sock"
    async with admin.serving(path, keys):
        assert isinstance(await asked(path, ListBackends()), admin.Refused)
