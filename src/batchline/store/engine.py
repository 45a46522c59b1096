"""The two databases as SQLAlchemy engines, and what their errors mean to us.

Everything that differs between SQLite and PostgreSQL is here, one branch a difference, except for
the spelling of ON CONFLICT (`references.py`) and the lock around migrations (`schema.py`).
"""

from __future__ import annotations

import errno
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from sqlalchemy import URL, Engine, create_engine, event, make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from batchline.domain.errors import StorageFull, StoreError, StoreUnavailable

BUSY_S: Final = 10  # how long a statement waits for somebody else's lock before it is an error

# SQLite has one writer at a time: a second one would only wait. Who reads waits for no writer, and
# has a thread and a connection of its own, or each look at a batch would stand behind a commit that
# a slow disk or somebody else's lock holds up. It sees what is committed, and so only what is
# synced: SQLite shows a transaction to others after its sync.
# PostgreSQL answers over a socket: eight waits at once are plenty for one control process.
SQLITE_THREADS: Final = 1
SQLITE_READERS: Final = 1
POSTGRES_THREADS: Final = 8

_FULL_ERRNOS: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
# IOERR_SHMSIZE: the WAL's index could not grow, which is how a full disk shows first on tmpfs.
_SQLITE_FULL: Final = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE})
_POSTGRES_FULL: Final = "53100"  # disk_full
_POSTGRES_TRY_AGAIN: Final = frozenset({"40001", "40P01"})  # serialization failure, deadlock


def sqlite_url(path: Path) -> str:
    """The URL of an SQLite database in the file `path`, whatever characters the path has."""
    return URL.create("sqlite", database=str(path)).render_as_string(hide_password=False)


def threads_for(url: str) -> tuple[ThreadPoolExecutor, ThreadPoolExecutor]:
    """On which threads who writes runs, and who reads; the two may be the same."""
    if _is_sqlite(make_url(url)):
        readers = ThreadPoolExecutor(SQLITE_READERS, thread_name_prefix="store-read")
        return ThreadPoolExecutor(SQLITE_THREADS, thread_name_prefix="store"), readers
    both = ThreadPoolExecutor(POSTGRES_THREADS, thread_name_prefix="store")
    return both, both


def open_engine(url: str) -> Engine:
    """An engine on which `begin()` gives a transaction that is durable once it committed."""
    parsed = make_url(url)
    # A writer takes the write lock first: a reader that turns writer later fails at once when
    # somebody else wrote meanwhile, and no waiting helps.
    return _open_sqlite(parsed, "BEGIN IMMEDIATE") if _is_sqlite(parsed) else _open_postgres(parsed)


def reading(engine: Engine) -> Engine:
    """An engine for transactions on the same database that write nothing; it may be the same."""
    return _open_sqlite(engine.url, "BEGIN") if _is_sqlite(engine.url) else engine


def _is_sqlite(url: URL) -> bool:
    return url.get_backend_name() == "sqlite"


def _open_sqlite(url: URL, begin: str) -> Engine:
    """`begin` is the statement with which every transaction does."""
    engine = create_engine(url, pool_size=SQLITE_THREADS + SQLITE_READERS, max_overflow=0)

    @event.listens_for(engine, "connect")
    def configure(connection: sqlite3.Connection, _: ConnectionPoolEntry) -> None:
        # The driver must not begin transactions by itself: `do_begin` below does.
        connection.isolation_level = None
        for pragma in (
            f"busy_timeout = {BUSY_S * 1000}",
            "journal_mode = WAL",
            "synchronous = FULL",  # NORMAL would lose the last commits with the power
            "fullfsync = ON",  # macOS only: there a plain fsync stops at the drive's cache
            "foreign_keys = ON",
            # KiB, of each connection, and a batch of many lines fills them. Little of what it
            # writes is read again, and the system has the pages too: four times as much would save
            # one or two reads from there, of 2 us, for a page of 100,000 batches.
            "cache_size = -256",
        ):
            connection.execute(f"PRAGMA {pragma}").close()

    def do_begin(dbapi_connection: PoolProxiedConnection) -> None:
        cursor = dbapi_connection.cursor()
        cursor.execute(begin)
        cursor.close()

    # In the place of one that does nothing. As an event of the engine, as SQLAlchemy's manual has
    # it, each BEGIN takes twice as long, and each statement on an engine with events 8 us more.
    engine.dialect.do_begin = do_begin  # type: ignore[method-assign]
    return engine


def _open_postgres(url: URL) -> Engine:
    options: dict[str, Any] = {"connect_timeout": BUSY_S}
    if "options" not in url.query:
        options["options"] = f"-c lock_timeout={BUSY_S * 1000}"
    return create_engine(
        url,
        pool_size=POSTGRES_THREADS,
        max_overflow=0,
        # A restarted server would otherwise fail one call for each idle connection.
        pool_pre_ping=True,
        connect_args=options,
    )


def is_worth_repeating(exc: DBAPIError) -> bool:
    """Whether PostgreSQL undid the transaction only because of another one beside it."""
    return getattr(exc.orig, "sqlstate", None) in _POSTGRES_TRY_AGAIN


def may_come_back(exc: BaseException | None) -> bool:
    """Whether a transaction that failed so may be taken for a committed one after a crash.

    SQLite writes a transaction to its log and then syncs it. When only the sync fails, the log has
    all of it, and who reads the log after a kill cannot tell.
    """
    code: int | None = getattr(getattr(exc, "orig", None), "sqlite_errorcode", None)
    return code is not None and code & 0xFF == sqlite3.SQLITE_IOERR


def overwrite_failed(engine: Engine) -> None:
    """Put a transaction without a meaning in the place of one that `may_come_back`.

    It is enough that it reaches the log: nothing need be synced. Where not even that works, the
    next transaction that does takes the place.
    """
    with suppress(SQLAlchemyError), engine.begin() as connection:
        connection.exec_driver_sql("PRAGMA user_version = 0")  # as it is; the page is written


def translated(exc: Exception) -> StoreError | None:
    """The error of ours that `exc` means; None when it is a defect and must be seen as one."""
    match exc:
        case OSError():
            if exc.errno in _FULL_ERRNOS:
                return StorageFull("no space left for the database")
            return StoreUnavailable(f"the database's storage failed: {type(exc).__name__}")
        case DBAPIError() if _is_full(exc):
            return StorageFull("no space left for the database")
        case OperationalError() | InterfaceError():
            return StoreUnavailable(f"the database did not answer: {type(exc.orig).__name__}")
        case PoolTimeout():
            return StoreUnavailable("no connection to the database became free")
        case _:
            return None


def _is_full(exc: DBAPIError) -> bool:
    if getattr(exc.orig, "sqlstate", None) == _POSTGRES_FULL:
        return True
    return getattr(exc.orig, "sqlite_errorcode", None) in _SQLITE_FULL
