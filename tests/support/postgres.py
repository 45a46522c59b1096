"""A PostgreSQL server of the tests' own: one cluster a session, an empty database for each test.

The cluster lives in a temporary directory, listens on a Unix socket only, and never syncs. A
machine without PostgreSQL skips these tests with the reason; with `CI` set it fails them.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import URL

START_S: Final = 30.0
POLL_S: Final = 0.01
SUPERUSER: Final = "batchline"
# Users that PostgreSQL may run as when the tests run as root, which it refuses.
STAND_INS: Final = ("postgres", "nobody")
DEBIAN: Final = Path("/usr/lib/postgresql")

SETTINGS: Final = {
    "listen_addresses": "",  # the socket in our directory is the only way in
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "shared_buffers": "32MB",
    "max_wal_senders": "0",
    "wal_level": "minimal",
}

# Ends the server when its standard input does, so that also a killed test run leaves none behind.
# A fast shutdown (INT), because it removes its shared memory.
_UNTIL_STDIN_ENDS: Final = """
"$@" </dev/null & server=$!
cat >/dev/null
kill -INT "$server" 2>/dev/null
wait "$server"
"""


@dataclass(slots=True)
class Cluster:
    """A running server; its databases belong to whoever created them."""

    directory: Path
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def url(self, database: str) -> str:
        """The database as SQLAlchemy wants it."""
        made = URL.create(
            "postgresql+psycopg",
            username=SUPERUSER,
            database=database,
            query={"host": str(self.directory)},
        )
        return made.render_as_string(hide_password=False)

    def create(self) -> str:
        """Make an empty database and return its name. Takes 60 ms, so see `empty`."""
        name = f"test_{next(self._numbers)}"
        # template0 and no other: nobody is ever connected to it, so this cannot be refused.
        made = sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name))
        with contextlib.closing(self.connect()) as connection:
            connection.execute(made)
        return name

    def empty(self, name: str) -> None:
        """Make a database as it was when created, whoever is still connected. Takes 10 ms."""
        with contextlib.closing(self.connect(name)) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            connection.execute("DROP SCHEMA public CASCADE")
            connection.execute("CREATE SCHEMA public")

    def connect(self, database: str = "postgres") -> psycopg.Connection:
        return psycopg.connect(
            host=str(self.directory), user=SUPERUSER, dbname=database, autocommit=True
        )


def programs() -> Path | None:
    """The directory that has both `initdb` and `postgres`; None when there is none."""
    places = [Path(found).resolve().parent for found in [shutil.which("initdb")] if found]
    config = shutil.which("pg_config")
    if config:
        asked = subprocess.run([config, "--bindir"], capture_output=True, text=True, check=False)
        places.insert(0, Path(asked.stdout.strip()))
    # Debian keeps them off the path. The newest of several versions is taken.
    versions = [found for found in DEBIAN.glob("*/bin") if found.parent.name.isdigit()]
    places += sorted(versions, key=lambda found: -int(found.parent.name))
    wanted = ("initdb", "postgres")
    return next((p for p in places if all((p / name).is_file() for name in wanted)), None)


@contextlib.contextmanager
def running(bindir: Path) -> Iterator[Cluster]:
    """Run a new cluster for the length of the block.

    Raises:
        RuntimeError: it could not be made or did not start; the message has its own words.
    """
    directory = Path(tempfile.mkdtemp(prefix="batchline-pg-"))
    user = None
    if os.geteuid() == 0:
        user = _stand_in()
        os.chown(directory, user.pw_uid, user.pw_gid)
    try:
        _make(bindir, directory, user)
        with _served(bindir, directory, user) as cluster:
            yield cluster
    finally:
        shutil.rmtree(directory)


def _stand_in() -> pwd.struct_passwd:
    for name in STAND_INS:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise RuntimeError(f"as root the tests need one of the users {STAND_INS} for PostgreSQL")


def _make(bindir: Path, directory: Path, user: pwd.struct_passwd | None) -> None:
    made = subprocess.run(
        [
            *(bindir / "initdb", "--pgdata", directory / "data", "--username", SUPERUSER),
            *("--auth", "trust", "--encoding", "UTF8", "--locale", "C", "--no-sync"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=directory,
        user=None if user is None else user.pw_uid,
        group=None if user is None else user.pw_gid,
        extra_groups=None if user is None else [],
        check=False,
    )
    if made.returncode != 0:
        raise RuntimeError(f"initdb: {made.stdout}")


@contextlib.contextmanager
def _served(bindir: Path, directory: Path, user: pwd.struct_passwd | None) -> Iterator[Cluster]:
    command = [str(bindir / "postgres"), "-D", str(directory / "data")]
    settings = {**SETTINGS, "unix_socket_directories": str(directory)}
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    log = directory / "log"
    with (
        log.open("wb") as sink,
        subprocess.Popen(
            ["/bin/sh", "-c", _UNTIL_STDIN_ENDS, "sh", *command, *options],
            stdin=subprocess.PIPE,
            stdout=sink,
            stderr=subprocess.STDOUT,
            cwd=directory,
            start_new_session=True,  # Ctrl-C is for the tests, which then close it
            user=None if user is None else user.pw_uid,
            group=None if user is None else user.pw_gid,
            extra_groups=None if user is None else [],
        ) as server,
    ):
        assert server.stdin is not None
        try:
            cluster = Cluster(directory)
            _wait_until_ready(cluster, server, log)
            yield cluster
        finally:
            server.stdin.close()  # leaving the block waits for its end


def _wait_until_ready(cluster: Cluster, server: subprocess.Popen[bytes], log: Path) -> None:
    # There is no event to wait for: the server says that it is ready by accepting us.
    deadline = time.monotonic() + START_S
    while True:
        try:
            cluster.connect().close()
        except psycopg.OperationalError as exc:
            if server.poll() is not None or time.monotonic() > deadline:
                text = log.read_text(errors="replace")
                raise RuntimeError(f"PostgreSQL did not start: {exc}\n{text}") from exc
            time.sleep(POLL_S)
        else:
            return


def require_programs() -> Path:
    """Skip the calling test unless PostgreSQL is installed; with `CI` set fail it."""
    bindir = programs()
    if bindir is not None:
        return bindir
    reason = "no PostgreSQL here (initdb and postgres were looked for); install postgresql"
    if os.environ.get("CI"):
        pytest.fail(f"{reason}: CI must have it", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def postgres_cluster() -> Iterator[Cluster]:
    """The session's PostgreSQL server; without one the test is skipped, in CI it fails."""
    with running(require_programs()) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def postgres_database(postgres_cluster: Cluster) -> str:
    """The name of the one database that the session's tests use in turn."""
    return postgres_cluster.create()


@pytest.fixture
def postgres_url(postgres_cluster: Cluster, postgres_database: str) -> Iterator[str]:
    """The URL of an empty database that only this test uses."""
    yield postgres_cluster.url(postgres_database)
    postgres_cluster.empty(postgres_database)
