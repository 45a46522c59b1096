"""The application on a real store, served on a real socket, and plain sockets to talk to it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
from fastapi import FastAPI
from uvicorn.server import ServerState

from batchline.api.app import create_app
from batchline.api.http_protocol import EnvelopeProtocol, serve_config
from batchline.api.services import ListedModel, Readiness
from batchline.domain.ids import BatchId, ProjectId
from batchline.domain.lifecycle import BatchStatus
from batchline.domain.model import Batch, BlobKind
from batchline.service.batches import Batches, BatchSettings
from batchline.service.dry_run import DryRun
from batchline.service.files import FileLimits, Files
from batchline.service.jobs import Jobs
from batchline.service.keys import Keys
from batchline.service.planning import InputLimits, Planner
from batchline.service.progress import ProgressReader
from batchline.service.results import Results
from batchline.service.running import AtWork, Running
from batchline.service.uploads import UploadLimits, Uploads
from batchline.service.waits import Known
from batchline.store.blobs import LocalBlobs
from batchline.store.contract import Store
from tests.contract.store_rows import NOW
from tests.support.openapi import Documented

MAX_FILE_BYTES = 3 * 1024 * 1024
MAX_UPLOAD_BYTES = 8 * 1024 * 1024
LINE = b'{"custom_id":"a","method":"POST","url":"/v1/completions","body":{"model":"m"}}\n'
CRLF = b"\r\n"
BOUNDARY = "boundary-of-the-test"


@dataclass(slots=True)
class Clock:
    """The services' clock, moved by the test."""

    now: float = NOW + 100

    def __call__(self) -> float:
        return self.now


class NoCatalogue:
    """A catalogue before any backend answered: every model may exist."""

    def known(self) -> bool:
        return False

    def models(self) -> Sequence[str]:
        return ()

    def backends_for(self, model: str) -> Sequence[str]:  # noqa: ARG002  # of the contract
        return ["only"]

    def name_at_backends(self, model: str) -> str:
        return model


@dataclass(slots=True)
class Runs:
    """Batches that a test says are running."""

    running: dict[BatchId, Running] = field(default_factory=dict)
    looks: int = 0  # at what is at work

    def find(self, batch_id: BatchId) -> Running | None:
        return self.running.get(batch_id)

    def running_of(self, project_id: ProjectId) -> Sequence[Running]:
        return [one for one in self.running.values() if one.batch.project_id == project_id]

    def at_work(self) -> AtWork:
        self.looks += 1
        held = sum(bool(one.held) for one in self.running.values())
        return AtWork(batches=held, shards=sum(map(_shards, self.running.values())))


def _shards(running: Running) -> int:
    return running.meter.shards_at_work


@dataclass(slots=True)
class RecordingRunner:
    """A BatchRunner that notes what it is told. With `stopping` set, `stop` waits for it."""

    was_created: list[Batch] = field(default_factory=list)
    was_stopped: list[tuple[Batch, BatchStatus]] = field(default_factory=list)
    stopping: anyio.Event | None = None

    def created(self, batch: Batch) -> None:
        self.was_created.append(batch)

    async def stop(self, batch: Batch, *, was: BatchStatus) -> Mapping[str, object]:
        self.was_stopped.append((batch, was))
        if self.stopping is not None:
            await self.stopping.wait()
        return {}


@dataclass(frozen=True, slots=True)
class Reply:
    """One HTTP answer, as it was on the wire."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error object, after looking at its envelope and the headers of every answer."""
        assert self.headers["content-type"] == "application/json"
        assert_usual_headers(self)
        error = self.json["error"]
        assert list(error) == ["message", "type", "param", "code"]
        assert isinstance(error["message"], str)
        assert error["message"]
        assert error["type"] in ("invalid_request_error", "server_error")
        found: dict[str, Any] = error
        return found


def assert_usual_headers(reply: Reply) -> None:
    request_id = reply.headers["x-request-id"]
    assert request_id.startswith("req_")
    assert len(bytes.fromhex(request_id.removeprefix("req_"))) == 16
    assert reply.headers["openai-version"] == "2020-10-01"
    assert reply.headers["openai-processing-ms"].isdigit()


@dataclass(slots=True, kw_only=True)
class ApiServer:
    """The application while it is served, with all that is behind it."""

    app: FastAPI
    port: int
    store: Store
    blobs: LocalBlobs
    blobs_root: Path
    runner: RecordingRunner
    clock: Clock
    keys: Keys
    state: ServerState
    readiness: Readiness = field(default_factory=lambda: Readiness(ready=True))
    models: Sequence[ListedModel] = ()
    runs: Runs = field(default_factory=Runs)
    known: Known = field(default_factory=Known)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def connect(self) -> Peer:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        return Peer(reader, writer)

    async def raw(self, request: bytes) -> Reply:
        """The answer to these bytes, on a connection of their own."""
        async with await self.connect() as peer:
            await peer.send(request)
            return await peer.reply(head_only=request.startswith(b"HEAD "))

    async def request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """The answer, which is one that the OpenAPI document has for the route."""
        reply = await self.raw(self.head(method, path, len(body), headers) + body)
        if method != "HEAD":
            DOCUMENTED.assert_fits(method, path, reply)
        return reply

    def head(
        self,
        method: str,
        path: str,
        length: int | None,
        headers: Mapping[str, str] | None = None,
    ) -> bytes:
        """A request up to its body; None as `length` leaves Content-Length out."""
        lines = {"Host": f"127.0.0.1:{self.port}", **(headers or {})}
        if length is not None:
            lines.setdefault("Content-Length", str(length))
        text = f"{method} {path} HTTP/1.1\r\n"
        text += "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        return text.encode() + CRLF

    async def post_json(self, path: str, body: object) -> Reply:
        return await self.request(
            "POST", path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )

    async def upload(self, *parts: bytes) -> Reply:
        """The answer to a form of these parts (see `part`)."""
        return await self.request("POST", "/v1/files", form(*parts), {"Content-Type": FORM})

    def stored_blobs(self) -> list[str]:
        """The bytes on disk, finished or not, as paths below the blobs' folder."""
        return sorted(
            str(path.relative_to(self.blobs_root))
            for path in self.blobs_root.rglob("*")
            if path.is_file()
        )

    async def assert_nothing_is_left(self) -> None:
        """No row and no byte of a file, once the server is done with every request."""
        with anyio.fail_after(10):
            while self.state.tasks:
                await asyncio.wait(list(self.state.tasks))
        page = (await self.request("GET", "/v1/files")).json
        assert page["data"] == []
        assert self.stored_blobs() == []


DOCUMENTED = Documented(max_upload_bytes=MAX_UPLOAD_BYTES)
FORM = f"multipart/form-data; boundary={BOUNDARY}"


class Peer:
    """One connection of a client that speaks in bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def __aenter__(self) -> Peer:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.transport.abort()
        # The close is done only when the loop has come round.
        await asyncio.gather(self._writer.wait_closed(), return_exceptions=True)

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def send_until_refused(self, data: bytes) -> None:
        """Send `data` again and again until the server no longer takes it."""
        with anyio.fail_after(10):
            while True:
                try:
                    await self.send(data)
                except ConnectionError:
                    return

    async def read(self, size: int) -> bytes:
        return await self._reader.read(size)

    async def reply(self, *, head_only: bool = False) -> Reply:
        """The next answer; a body without a Content-Length is a failure."""
        with anyio.fail_after(10):
            head = await self._reader.readuntil(CRLF + CRLF)
            status_line, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
            headers = dict(line.split(": ", 1) for line in lines)
            size = 0 if head_only else int(headers["content-length"])
            body = await self._reader.readexactly(size)
        return Reply(int(status_line.split(" ")[1]), headers, body)

    async def at_end(self) -> bool:
        """Whether the server closes the connection, waiting for it."""
        with anyio.fail_after(10):
            try:
                return await self._reader.read(1) == b""
            except ConnectionError:
                return True


async def until(happened: Callable[[], object]) -> None:
    """Wait for something that no event tells of."""
    with anyio.fail_after(10):
        while not happened():  # noqa: ASYNC110  # see above
            await asyncio.sleep(0.005)


def part(name: str, value: bytes, *, filename: str | None = None, extra: str = "") -> bytes:
    """One part of a form."""
    head = f'Content-Disposition: form-data; name="{name}"'
    if filename is not None:
        head += f'; filename="{filename}"\r\nContent-Type: application/octet-stream'
    return f"{head}{extra}\r\n\r\n".encode() + value


def form(*parts: bytes) -> bytes:
    delimiter = f"--{BOUNDARY}\r\n".encode()
    body = b"".join(delimiter + one + CRLF for one in parts)
    return body + f"--{BOUNDARY}--\r\n".encode()


def chunked(body: bytes, *, size: int) -> list[bytes]:
    """`body` in HTTP chunks of `size` bytes, the last one of length 0."""
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return [f"{len(piece):x}\r\n".encode() + piece + CRLF for piece in pieces] + [b"0\r\n\r\n"]


PURPOSE = part("purpose", b"batch")
FILE = part("file", LINE, filename="requests.jsonl")


@asynccontextmanager
async def serving(store: Store, blobs_root: Path) -> AsyncIterator[ApiServer]:
    """Serve the application on a port that the kernel chooses, in this event loop."""
    blobs, runner, clock = LocalBlobs(blobs_root), RecordingRunner(), Clock()
    files = Files(
        store,
        blobs,
        clock=clock,
        random=os.urandom,
        limits=FileLimits(max_bytes=MAX_FILE_BYTES, download_chunk_bytes=64 * 1024),
    )
    settings = BatchSettings(windows={"24h": 86_400})
    batches = Batches(store, runner, clock=clock, random=os.urandom, settings=settings)
    keys = await Keys.open(store)
    uploads = Uploads(
        store,
        blobs,
        files,
        clock=clock,
        random=os.urandom,
        limits=UploadLimits(max_bytes=MAX_UPLOAD_BYTES),
    )
    children = blobs_root.with_name("children")
    children.mkdir()
    jobs = Jobs(children)  # starts none before the first job
    catalogue, runs = NoCatalogue(), Runs()
    planner = Planner(
        store=store, blobs=blobs, jobs=jobs, models=catalogue, limits=InputLimits(), clock=clock
    )
    app = create_app(
        files,
        batches,
        models=lambda: api.models,
        readiness=lambda: api.readiness,
        ring=keys.ring,
        uploads=uploads,
        dry_run=DryRun(planner=planner, settings=settings),
        results=Results(store=store, blobs=blobs, batches=batches, clock=clock),
        progress=ProgressReader(batches, runs, catalogue, lambda: api.known, clock=clock),
    )
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    config = serve_config(app, host="127.0.0.1", port=port)
    config.load()
    state = ServerState()
    api = ApiServer(
        app=app,
        port=port,
        store=store,
        blobs=blobs,
        blobs_root=blobs_root,
        runner=runner,
        clock=clock,
        keys=keys,
        state=state,
        runs=runs,
    )
    # Without uvicorn's own loop, which looks every 0.1 s whether it is to end.
    server = await asyncio.get_running_loop().create_server(
        lambda: EnvelopeProtocol(config=config, server_state=state, app_state={}), sock=listener
    )
    try:
        yield api
    finally:
        server.close()
        for connection in list(state.connections):
            connection.transport.abort()
        with anyio.fail_after(10):
            while state.tasks:
                await asyncio.wait(list(state.tasks))
        await server.wait_closed()
        await jobs.close()


def input_blobs(api: ApiServer) -> list[str]:
    return [path for path in api.stored_blobs() if path.startswith(BlobKind.INPUT.value)]
