"""A real `batchline serve` process: started, killed, stopped, started again where it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import openai
from openai.types import Batch

from batchline.executor import processes
from tests.support import command, forked, leash
from tests.support.conserved import Conserved, assert_conserved
from tests.support.migrated import sqlite_as_new
from tests.support.pauses import POLL_S, pause
from tests.support.scripted_backend import BackendLog

START_S: Final = 30.0  # a cold start under a loaded test run
WAIT_S: Final = 30.0  # takes milliseconds; this bounds a failure on a machine that is overloaded
# Unless a test has something else to say of the disk: 16 MiB written in every start add up.
SMALL_RESERVE: Final = {"reserve_bytes": 1024 * 1024}
TERMINAL: Final = frozenset({"completed", "failed", "cancelled", "expired"})


class ServerProcess:
    """One data directory and the server on it, if there is one now."""

    def __init__(
        self,
        directory: Path,
        upstreams: Sequence[str],
        *,
        settings: Mapping[str, object] | None = None,
        options: Sequence[str] = (),
        fork: bool = True,
        under: Sequence[str] = (),
        clock: Path | None = None,
    ) -> None:
        """`fork` False: as a shell starts it, imports and all; else as `forked.py` does.

        `under` goes before the command (strace, say), which is then not forked. `clock` sets its
        wall clock; see `moved_clock.py`.
        """
        self.directory = directory
        self.under = under  # may be changed between two starts
        self._fork = fork and clock is None
        self._program = command.MODULE
        if clock is not None:
            self._program = [sys.executable, "-m", "tests.support.moved_clock", str(clock)]
        self.data = directory / "data"
        self.log = directory / "server.log"
        self._config = directory / "batchline.toml"
        self._config.write_text(to_toml({"disk": SMALL_RESERVE, **(settings or {})}))
        self._arguments = ["--config", str(self._config), *options]
        for upstream in upstreams:
            self._arguments += ["--upstream", upstream]
        self._process: forked.Forked | subprocess.Popen[bytes] | None = None
        self._clients: list[openai.OpenAI] = []

    # -- life ------------------------------------------------------------------------------

    def start(self, *, probes: str = "", wait: bool = True) -> None:
        """Start on a free port; returns when the server is ready (or at once: `wait=False`)."""
        assert self._process is None, "one server at a time"
        leash.tie()
        if self._fork and not self.under and "schema." not in probes:
            self._migrate_beforehand()
        with self.log.open("ab") as log, Path(os.devnull).open("rb") as nothing:
            words = ["serve", "--port", "0", "--data-dir", str(self.data), *self._arguments]
            env = {**os.environ, "BATCHLINE_PROBES": probes}
            if self._fork and not self.under:
                self._process = forked.start(
                    "batchline",
                    words,
                    stdin=nothing.fileno(),
                    stdout=log.fileno(),
                    stderr=log.fileno(),
                    env=env,
                )
            else:
                self._process = subprocess.Popen(
                    [*self.under, *self._program, *words],
                    stdin=nothing,
                    stdout=log,
                    stderr=log,
                    env=env,
                    start_new_session=True,
                )
        if wait:
            self._until_ready()

    def _migrate_beforehand(self) -> None:
        """Have the first start find its database: migrations are a quarter of the CPU of one.

        Not for who starts as a user does (`fork=False`), or is watched or ended meanwhile.
        """
        if not self.data.exists():
            self.data.mkdir(mode=0o700)
            (self.data / "batchline.sqlite3").write_bytes(sqlite_as_new())

    def _until_ready(self) -> None:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            assert self.is_running, f"the server ended:\n{self.tail()}"
            with suppress(OSError, HTTPException):
                if self.note is not None and self.readiness()["status"] == "ready":
                    return
            time.sleep(POLL_S)
        raise AssertionError(f"the server did not become ready:\n{self.tail()}")

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def wait_ended(self, timeout_s: float = WAIT_S) -> int:
        """The exit status of a server that is on its way out."""
        assert self._process is not None
        status = self._process.wait(timeout_s)
        self._process = None
        return status

    def kill(self) -> None:
        """SIGKILL the server alone; its children are to notice by themselves."""
        os.kill(self.pid, signal.SIGKILL)
        self.wait_ended()

    def kill_all(self) -> None:
        """SIGKILL the server and its children at once."""
        for pid in [self.pid, *self.children()]:
            _signal(pid, signal.SIGKILL)
        self.wait_ended()

    def terminate(self) -> int:
        """SIGTERM, and the exit status of the orderly end."""
        os.kill(self.pid, signal.SIGTERM)
        return self.wait_ended()

    def close(self) -> None:
        """End whatever still runs, connections of clients as well."""
        for client in self._clients:
            client.close()
        children = self.children()
        if self.is_running:
            self.kill_all()
        for pid in children:
            _signal(pid, signal.SIGKILL)

    # -- children --------------------------------------------------------------------------

    def children(self) -> list[int]:
        """Process ids of recorded children that run."""
        return recorded_children(self.data)

    def workers(self) -> list[int]:
        """The children that dispatch."""
        return [pid for pid in self.children() if is_worker(pid)]

    def wait_job_child(self) -> int:
        """The child that is there for jobs; it is started beside the first requests."""
        deadline = time.monotonic() + START_S
        while not (others := set(self.children()) - set(self.workers())):
            assert time.monotonic() < deadline, "no child for jobs"
            time.sleep(0.01)
        (child,) = others
        return child

    def signal_workers(self, number: int) -> int:
        """Send a signal to each worker; how many there were."""
        workers = self.workers()
        for pid in workers:
            _signal(pid, number)
        return len(workers)

    # -- talking ---------------------------------------------------------------------------

    @property
    def note(self) -> dict[str, object] | None:
        """`server.json` of the running server, None before it listens."""
        try:
            note = json.loads((self.data / "server.json").read_text())
        except (OSError, ValueError):
            return None
        return note if note["pid"] == self.pid else None

    @property
    def origin(self) -> str:
        note = self.note
        assert note is not None
        return f"http://127.0.0.1:{note['port']}"

    def readiness(self) -> dict[str, Any]:
        """The body of `/healthz/ready`, ready or not."""
        connection = HTTPConnection(urlsplit(self.origin).netloc, timeout=10)
        try:
            connection.request("GET", "/healthz/ready")
            answer = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        assert isinstance(answer, dict)
        return answer

    def wait_readiness(
        self, holds: Callable[[dict[str, Any]], bool], *, timeout_s: float = WAIT_S
    ) -> dict[str, Any]:
        """Poll readiness until `holds` of it; the body of then."""
        began = time.monotonic()
        while not holds(body := self.readiness()):
            assert time.monotonic() < began + timeout_s, f"readiness is {body}"
            pause(began)
        return body

    def wait_log(self, words: str, *, timeout_s: float = WAIT_S) -> None:
        """Poll until the server, in any of its starts, or a child has said these words."""
        began = time.monotonic()
        while words not in self.log.read_text(errors="replace"):
            assert time.monotonic() < began + timeout_s, f"nobody said {words!r}:\n{self.tail()}"
            pause(began)

    def client(
        self, *, timeout_s: float = 30.0, retries: int = 0, key: str = "any"
    ) -> openai.OpenAI:
        """The official client. Before the server listens it points nowhere."""
        base = f"{self.origin}/v1" if self.is_running and self.note else "http://127.0.0.1:1/v1"
        client = openai.OpenAI(
            base_url=base,
            api_key=key,
            max_retries=retries,
            timeout=timeout_s,
            # Plain HTTP: reading the certificates of the world is 20 ms for each client.
            http_client=openai.DefaultHttpxClient(verify=False),
        )
        self._clients.append(client)
        return client

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `batchline` with this data directory, whether the server runs or not."""
        return command.run([*arguments, "--data-dir", str(self.data)])

    def new_key(self, project: str) -> str:
        """A key of that project, made with the program's own command."""
        ran = self.command("keys", "create", "--project", project)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout.splitlines()[-1]

    def blob_sizes(self) -> list[int]:
        """The sizes of all blobs on disk, finished or not."""
        sizes = []
        for path in (self.data / "blobs").rglob("*"):
            with suppress(FileNotFoundError):  # swept while we looked
                if path.is_file():
                    sizes.append(path.stat().st_size)
        return sorted(sizes)

    def wait_blobs(self, sizes: Sequence[int], *, timeout_s: float = WAIT_S) -> None:
        """Poll until the blobs on disk have these sizes and there is no other."""
        began = time.monotonic()
        while (found := self.blob_sizes()) != sorted(sizes):
            assert time.monotonic() < began + timeout_s, f"blobs of {found} bytes are there"
            pause(began)

    def tail(self) -> str:
        """The end of what the server said."""
        return self.log.read_text(errors="replace")[-4000:] if self.log.exists() else ""


@contextmanager
def server(
    directory: Path,
    *upstreams: str,
    settings: Mapping[str, object] | None = None,
    options: Sequence[str] = (),
    start: bool = True,
    probes: str = "",
    fork: bool = True,
    under: Sequence[str] = (),
    clock: Path | None = None,
) -> Iterator[ServerProcess]:
    """A server process for the length of the block; nothing of it is left afterwards."""
    process = ServerProcess(
        directory,
        upstreams,
        settings=settings,
        options=options,
        fork=fork,
        under=under,
        clock=clock,
    )
    try:
        if start:
            process.start(probes=probes)
        yield process
    except BaseException:
        print(process.tail())  # noqa: T201  # pytest shows it with the failure
        raise
    finally:
        process.close()


# -- children of a data directory --------------------------------------------------------------


def recorded_children(data: Path) -> list[int]:
    """Process ids that `data` has a record of and that run."""
    folder = data / "children"
    return [
        int(record.name)
        for record in (folder.iterdir() if folder.exists() else ())
        if record.name.isdigit() and _text(record) == processes.start_time(int(record.name))
    ]


def is_worker(pid: int) -> bool:
    """Whether a child is one that dispatches."""
    # A forked one has the command of its parent, and a name.
    return "worker_child" in _command(pid) + _text(Path(f"/proc/{pid}/comm"))


# -- what tests do with a server ---------------------------------------------------------------


def submit(
    client: openai.OpenAI,
    content: bytes,
    *,
    endpoint: str = "/v1/chat/completions",
    window: str = "24h",
) -> Batch:
    """Upload `content` and create a batch of it."""
    file = client.files.create(file=("input.jsonl", content), purpose="batch")
    return client.batches.create(
        input_file_id=file.id,
        endpoint=endpoint,  # type: ignore[arg-type]  # any of ours, also where the SDK is older
        completion_window=window,  # type: ignore[arg-type]  # short windows, by a setting
    )


def wait_for(
    client: openai.OpenAI, batch_id: str, *statuses: str, timeout_s: float = WAIT_S
) -> Batch:
    """Poll until the batch has one of `statuses` (any terminal one without), or fail."""
    wanted = frozenset(statuses) or TERMINAL
    began = time.monotonic()
    while True:
        batch = client.batches.retrieve(batch_id)
        if batch.status in wanted:
            return batch
        assert batch.status not in TERMINAL, f"{batch_id} ended {batch.status}: {batch.errors}"
        assert time.monotonic() < began + timeout_s, f"{batch_id} is {batch.status}: {batch}"
        pause(began)


def content_of(client: openai.OpenAI, file_id: str | None) -> bytes | None:
    return None if file_id is None else client.files.content(file_id).content


def conserved(
    client: openai.OpenAI, batch: Batch, content: bytes, log: BackendLog | None = None
) -> Conserved:
    """`assert_conserved` on a batch's downloaded files."""
    return assert_conserved(
        content,
        batch,
        content_of(client, batch.output_file_id),
        content_of(client, batch.error_file_id),
        witness=log,
    )


# -- small things ------------------------------------------------------------------------------


def to_toml(settings: Mapping[str, object]) -> str:
    """Settings as a TOML file: tables, arrays of tables and scalars; tables in those are inline."""
    scalars = [f"{k} = {json.dumps(v)}" for k, v in settings.items() if not _is_table(v)]
    tables = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            tables += [f"[{name}]", *_members(value)]
        elif _is_table(value) and isinstance(value, list):
            for one in value:
                tables += [f"[[{name}]]", *_members(one)]
    return "\n".join([*scalars, *tables]) + "\n"


def _members(table: Mapping[str, object]) -> list[str]:
    return [f"{name} = {_inline(value)}" for name, value in table.items()]


def _inline(value: object) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(_members(value)) + " }"
    return json.dumps(value)


def _is_table(value: object) -> bool:
    return isinstance(value, Mapping) or (
        isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)
    )


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return ""


def _command(pid: int) -> str:
    return _text(Path(f"/proc/{pid}/cmdline")).replace("\0", " ")
