"""Room on the disk: what may use it when, on a real small file system."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pytest

from batchline.domain.errors import StorageFull
from batchline.domain.ids import DEFAULT_PROJECT
from batchline.executor.contract import Executor
from batchline.service import disk
from batchline.service.disk import REASON, SLICE_BYTES, DiskGuard, DiskSettings
from batchline.service.files import Files
from batchline.store.blobs import LocalBlobs
from batchline.store.database import Database

MIB = 1024 * 1024
SETTINGS = DiskSettings(
    low_water_bytes=100 * MIB, high_water_bytes=200 * MIB, reserve_bytes=3 * SLICE_BYTES
)


class Paused:
    """The part of an executor that the guard uses."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.changed = asyncio.Event()

    def pause(self, reason: str) -> None:
        self.reason = reason
        self.changed.set()

    def resume(self) -> None:
        self.reason = None
        self.changed.set()


@asynccontextmanager
async def guarding(guard: DiskGuard, executor: Paused) -> AsyncIterator[None]:
    task = asyncio.ensure_future(guard.run(cast("Executor", executor)))
    try:
        yield
    finally:
        task.cancel()


def free(values: dict[str, int]) -> Callable[[Path], int]:
    return lambda _: values["free"]


async def test_between_the_marks_it_stays_as_it_was(tmp_path: Path) -> None:
    values = {"free": 300 * MIB}
    guard, executor = DiskGuard(tmp_path, SETTINGS, free_bytes=free(values)), Paused()
    async with asyncio.timeout(30), guarding(guard, executor):
        assert guard.has_room
        for now, reason in ((99, REASON), (201, None)):
            executor.changed.clear()
            values["free"] = now * MIB
            await executor.changed.wait()
            assert executor.reason == reason
            assert guard.has_room == (reason is None)


async def test_a_disk_that_cannot_be_asked_does_not_end_the_watch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "LOOK_S", 0.01)
    answers: list[int | None] = [None, 1 * MIB]

    def free_bytes(_: Path) -> int:
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if answer is None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return answer

    guard, executor = DiskGuard(tmp_path, SETTINGS, free_bytes=free_bytes), Paused()
    async with asyncio.timeout(30), guarding(guard, executor):
        await executor.changed.wait()
    assert executor.reason == REASON


async def test_uploads_are_refused_while_the_disk_is_low(store: Database, tmp_path: Path) -> None:
    room = False
    files = Files(store, LocalBlobs(tmp_path / "blobs"), has_room=lambda: room)
    with pytest.raises(StorageFull):
        files.begin(DEFAULT_PROJECT)
    room = True
    async with files.begin(DEFAULT_PROJECT):
        pass


def test_the_reserve_is_given_up_slice_by_slice(tmp_path: Path) -> None:
    guard = DiskGuard(tmp_path, SETTINGS, free_bytes=lambda _: 300 * MIB)
    guard.take_reserve()
    reserve = tmp_path / "reserve"
    assert reserve.stat().st_blocks * 512 >= SETTINGS.reserve_bytes  # really occupied
    sizes = []
    while guard.give_up_reserve():
        sizes.append(reserve.stat().st_size)
    assert sizes == [2 * SLICE_BYTES, SLICE_BYTES, 0]
    guard.take_reserve()
    assert reserve.stat().st_size == SETTINGS.reserve_bytes


def test_no_reserve_is_taken_where_it_would_make_the_disk_low(tmp_path: Path) -> None:
    guard = DiskGuard(tmp_path, SETTINGS, free_bytes=lambda _: 101 * MIB)
    guard.take_reserve()
    assert not (tmp_path / "reserve").exists()
    assert not guard.give_up_reserve()
