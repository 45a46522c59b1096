"""What every measurement works on: a real server, the fast backend, and the clients of both."""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, Self

import msgspec
import openai
from openai.types import Batch

from bench.baseline_client import Ran
from bench.fast_backend import KERNEL_STAMPS, MODEL, Stats
from bench.inputs import CHAT, write_input
from bench.processes import Cores, by_role, pin
from tests.support.server import TERMINAL, ServerProcess, server

IN_FLIGHT: Final = 256
DELAY_S: Final = 0.002
_BOUNDARY: Final = "bench-boundary"
_CHUNK_BYTES: Final = 1024 * 1024
_SLOWEST_LINES_PER_S: Final = 500  # a run that is slower than this is stuck


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured; `percent` of the whole, but never nothing."""

    percent: float = 100.0

    def lines(self, whole: int, least: int = 200) -> int:
        return max(least, round(whole * self.percent / 100))

    def times(self, whole: int) -> int:
        """Repetitions: all of them down to a tenth of the size, then two."""
        return whole if self.percent >= 10 else min(2, whole)


class Api:
    """One kept-alive connection to a server, without the weight of a client library."""

    def __init__(self, port: int, *, timeout_s: float = 600.0) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def call(self, method: str, path: str) -> bytes:
        """The body of a 200.

        Raises:
            RuntimeError: any other status.
        """
        self._connection.request(method, path)
        return self._answer(path)

    def get(self, path: str) -> dict[str, Any]:
        """A JSON object."""
        found: dict[str, Any] = json.loads(self.call("GET", path))
        return found

    def download(self, file_id: str, target: BinaryIO) -> None:
        """Write the bytes of a file to `target`.

        Raises:
            RuntimeError: any status but 200.
        """
        path = f"/v1/files/{file_id}/content"
        self._connection.request("GET", path)
        response = self._connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f"{path}: {response.status} {response.read(300)!r}")
        shutil.copyfileobj(response, target, _CHUNK_BYTES)

    def upload(self, path: Path) -> str:
        """Upload a batch input as a multipart form; the id of the file."""
        head = (
            f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
            f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; '
            f'filename="{path.name}"\r\nContent-Type: application/jsonl\r\n\r\n'
        ).encode()
        tail = f"\r\n--{_BOUNDARY}--\r\n".encode()
        connection = self._connection
        connection.putrequest("POST", "/v1/files", skip_accept_encoding=True)
        connection.putheader("Content-Type", f"multipart/form-data; boundary={_BOUNDARY}")
        connection.putheader("Content-Length", str(len(head) + path.stat().st_size + len(tail)))
        connection.endheaders(head)
        with path.open("rb", buffering=0) as file:
            while chunk := file.read(_CHUNK_BYTES):
                connection.send(chunk)
        connection.send(tail)
        file_id: str = json.loads(self._answer("/v1/files"))["id"]
        return file_id

    def _answer(self, path: str) -> bytes:
        response = self._connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise RuntimeError(f"{path}: {response.status} {body[:300]!r}")
        return body


class Backend:
    """The fast backend as a process."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.pid = process.pid
        self.base_url = f"http://127.0.0.1:{port}"
        self._api = Api(port)

    def reset(self, delay_s: float) -> None:
        """Count from zero and answer after `delay_s`."""
        self._api.call("GET", f"/bench/reset?delay_s={delay_s}")

    def stats(self, *, after_ns: int | None = None) -> Stats:
        query = "" if after_ns is None else f"?after_ns={after_ns}"
        return msgspec.json.decode(self._api.call("GET", f"/bench/stats{query}"), type=Stats)


@dataclass(frozen=True)
class Rig:
    """One backend and one server, which is started when it is first used.

    `work` is where inputs are kept and `directory`, inside it, where the server lives. `settings`
    are the server's, on top of those that every server here has.
    """

    backend: Backend
    size: Size
    work: Path
    directory: Path
    cores: Cores
    say: Callable[[str], None]
    _until_end: ExitStack
    settings: Mapping[str, object] = field(default_factory=dict)

    @cached_property
    def server(self) -> ServerProcess:
        return self._until_end.enter_context(
            serving(self.directory, self.backend, self.cores, self.settings)
        )

    @cached_property
    def client(self) -> openai.OpenAI:
        """The official client, past what its first call costs."""
        client = self.server.client(timeout_s=600.0)
        client.batches.list(limit=1)
        return client

    @contextmanager
    def with_fresh_server(
        self, name: str, *, cores: Cores | None = None, settings: Mapping[str, object] | None = None
    ) -> Iterator[Rig]:
        """The same backend with a server of its own, for the length of the block."""
        with ExitStack() as until_end:
            yield replace(
                self,
                directory=self.work / name,
                cores=cores or self.cores,
                settings=settings or {},
                _until_end=until_end,
            )

    @contextmanager
    def with_kernel_stamps(self) -> Iterator[Rig]:
        """A backend that knows to the microsecond when a request came. Take a fresh server to it:
        the one there is has another."""
        with backend_process(self.cores, KERNEL_STAMPS) as backend:
            yield replace(self, backend=backend)

    @property
    def port(self) -> int:
        return int(self.server.origin.rpartition(":")[2])

    def api(self) -> Api:
        return Api(self.port)

    def input(self, lines: int, endpoint: str = CHAT, *, model: str = MODEL) -> Path:
        """An input file of so many lines, made once."""
        path = self.work / f"input-{endpoint.rpartition('/')[2]}-{model}-{lines}.jsonl"
        if not path.exists():
            write_input(path, lines, endpoint, model)
        return path

    def uploaded(self, lines: int, endpoint: str = CHAT, *, model: str = MODEL) -> str:
        """The id of an uploaded input of so many lines."""
        with self.api() as api:
            return api.upload(self.input(lines, endpoint, model=model))

    def create(
        self,
        file_id: str,
        endpoint: Literal["/v1/chat/completions", "/v1/embeddings"] = CHAT,
        *,
        metadata: dict[str, str] | None = None,
    ) -> Batch:
        return self.client.batches.create(
            input_file_id=file_id,
            endpoint=endpoint,
            completion_window="24h",
            metadata=metadata,
        )

    def wait(
        self, batch_id: str, *statuses: str, lines: int, poll_s: float = 0.02
    ) -> dict[str, Any]:
        """Poll until the batch has one of `statuses`, or any terminal one.

        Raises:
            RuntimeError: it ended otherwise.
            TimeoutError: it is slower than anything that is worth measuring.
        """
        give_up = time.monotonic() + 60 + lines / _SLOWEST_LINES_PER_S
        with self.api() as api:
            while True:
                batch = api.get(f"/v1/batches/{batch_id}")
                if batch["status"] in statuses:
                    return batch
                if batch["status"] in TERMINAL:
                    raise RuntimeError(f"{batch_id} ended {batch['status']}: {batch['errors']}")
                if time.monotonic() > give_up:
                    raise TimeoutError(f"{batch_id} is {batch['status']}: {batch}")
                time.sleep(poll_s)

    def completed(self, batch_id: str, lines: int, *, poll_s: float = 0.02) -> dict[str, Any]:
        """Wait for a batch to complete, and see that every line did.

        Raises:
            RuntimeError: it ended otherwise, or the backend's count is another one.
        """
        batch = self.wait(batch_id, "completed", lines=lines, poll_s=poll_s)
        answered = self.backend.stats().answered
        if not lines == batch["request_counts"]["completed"] == answered:
            raise RuntimeError(f"{lines} lines, {answered} answers, {batch['request_counts']}")
        return batch

    def client_alone(self, module: str, lines: int, in_flight: int) -> Ran:
        """Send an input's bodies with a client that does nothing else, on the measured core."""
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", module),
                f"{self.backend.base_url}/v1/chat/completions",
                *(str(self.input(lines)), str(in_flight)),
            ],
            stdout=subprocess.PIPE,
        )
        pin(process.pid, self.cores.measured)
        output, _ = process.communicate()
        if process.returncode != 0:
            raise RuntimeError(f"{module} ended with {process.returncode}")
        ran = msgspec.json.decode(output, type=Ran)
        if ran.bad or ran.lines != lines:
            raise RuntimeError(f"{module} went wrong: {ran}")
        return ran


@contextmanager
def rig(work: Path, size: Size, say: Callable[[str], None]) -> Iterator[Rig]:
    """A backend and a server on it, pinned, for the length of the block."""
    cores = Cores.of_this_machine()
    with backend_process(cores) as backend, ExitStack() as until_end:
        yield Rig(backend, size, work, work / "server", cores, say, until_end)


@contextmanager
def backend_process(cores: Cores, *options: str) -> Iterator[Backend]:
    """The fast backend, for the length of the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.fast_backend", *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:  # at its end: closes standard input, which ends it, and waits
        assert process.stdout is not None
        port = int(process.stdout.readline())
        pin(process.pid, cores.backend)
        yield Backend(process, port)


def common_settings(backend: Backend, *, in_flight: int = IN_FLIGHT) -> dict[str, object]:
    """What every server here is started with: one worker, no limits on files."""
    return {
        "workers": 1,
        "disk": {},  # as a server has it, and not as those of the tests
        "limits": {
            "max_file_bytes": 0,
            "max_batch_file_bytes": 0,
            "max_lines": 0,
        },
        "backend": [
            {"name": "bench", "base_url": backend.base_url, "max_in_flight": in_flight},
        ],
    }


@contextmanager
def serving(
    directory: Path, backend: Backend, cores: Cores, settings: Mapping[str, object]
) -> Iterator[ServerProcess]:
    """A server on a data directory in `directory`, pinned, with `settings` on top of the common
    ones."""
    directory.mkdir(exist_ok=True)
    merged = {**common_settings(backend), **settings}
    with server(directory, settings=merged, fork=False) as running:
        roles = by_role(running)
        for role, pids in roles.items():
            for pid in pids:
                pin(pid, cores.measured if role == "worker" else cores.others)
        yield running
        if running.is_running and by_role(running)["worker"] != roles["worker"]:
            raise RuntimeError("a worker was replaced: what was measured is not what was pinned")
