"""How a function on a connection is run: as one transaction, on a thread, with room on the disk.

A small pool of threads, those that read beside those that write. A caller that is cancelled while
it waits changes nothing: its transaction goes on to its end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Self, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from batchline.domain.errors import StorageFull, StoreUnavailable
from batchline.store.engine import (
    is_worth_repeating,
    may_come_back,
    open_engine,
    overwrite_failed,
    reading,
    threads_for,
    translated,
)
from batchline.store.health import StoreHealth
from batchline.store.schema import migrate
from batchline.telemetry import probe

T = TypeVar("T")


class Transactions:
    """One database that is open: its engine, its threads, and what is known of its health."""

    def __init__(
        self,
        engine: Engine,
        writers: ThreadPoolExecutor,
        readers: ThreadPoolExecutor,
        *,
        make_room: Callable[[], bool] | None = None,
    ) -> None:
        """`make_room` frees some space on a full disk, from any thread; False when none is left."""
        self._make_room = make_room
        self._engine = engine
        self._reader = reading(engine)
        self._writers = writers
        self._readers = readers  # may be the same
        self._health = StoreHealth()

    @classmethod
    async def open(cls, url: str, *, make_room: Callable[[], bool] | None = None) -> Self:
        """Open the database at `url` and bring its schema up to date.

        A write that meets a full disk is tried again for as long as `make_room` says True.

        `sqlite:///path` (see `engine.sqlite_url`) or `postgresql+psycopg://…`.

        Raises:
            ConfigError: a newer Batchline wrote it.
            StoreUnavailable: it does not answer, or somebody else has locked it.
            StorageFull: no space for it.
        """
        database = cls(open_engine(url), *threads_for(url), make_room=make_room)
        try:
            await database._call(lambda: migrate(database._engine), writes=True)
        except BaseException:
            await database.close()
            raise
        return database

    async def close(self) -> None:
        # Not on a pool itself: it is the pool that has to come to its end.
        await asyncio.to_thread(self._writers.shutdown)
        await asyncio.to_thread(self._readers.shutdown)
        self._engine.dispose()
        self._reader.dispose()

    def trouble(self) -> str | None:
        """What is wrong with the database, in words for people; None when nothing is known."""
        return self._health.trouble()

    async def _read(self, query: Callable[[Connection], T]) -> T:
        return await self._call(partial(_in_transaction, self._reader, query), writes=False)

    async def _write(self, change: Callable[[Connection], T], *, step: str) -> T:
        """Run `change` in one transaction, between the probes `<step>.before` and `.after`."""
        return await self._call(partial(_at_step, self._engine, change, step), writes=True)

    async def _call(self, work: Callable[[], T], *, writes: bool) -> T:
        loop = asyncio.get_running_loop()
        threads = self._writers if writes else self._readers
        return await loop.run_in_executor(threads, self._watched, work, writes)

    def _watched(self, work: Callable[[], T], writes: bool) -> T:
        with self._health.watching(writes=writes):
            return self._with_room(work)

    def _with_room(self, work: Callable[[], T]) -> T:
        while True:
            try:
                return _with_our_errors(work)
            except StorageFull:
                if self._make_room is None or not self._make_room():
                    raise
            except StoreUnavailable as exc:
                # What is answered with an error must not have happened, also after a kill.
                if may_come_back(exc.__cause__):
                    overwrite_failed(self._engine)
                raise


def _in_transaction(engine: Engine, work: Callable[[Connection], T]) -> T:
    with engine.begin() as connection:
        return work(connection)


def _at_step(engine: Engine, change: Callable[[Connection], T], step: str) -> T:
    probe(f"{step}.before")
    with engine.begin() as connection:
        result = change(connection)
        probe(f"{step}.inside")
    probe(f"{step}.after")
    return result


def _with_our_errors(work: Callable[[], T]) -> T:
    """Run `work`; the one place where a driver's exception becomes ours.

    A constraint that fails or a statement that does not parse is a defect and stays as it is.
    """
    try:
        try:
            return work()
        except DBAPIError as exc:
            if not is_worth_repeating(exc):
                raise
            return work()
    except (SQLAlchemyError, OSError) as exc:
        ours = translated(exc)
        if ours is None:
            raise
        raise ours from exc
