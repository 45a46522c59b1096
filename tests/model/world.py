"""The server of the model test: everything of the product but its processes and its sockets.

The services, the scheduler, the runner, the finalizer, the HTTP application, the store and the
blobs are the real ones on a real directory. The test holds what is around them: the executor, the
jobs that would run in child processes, the clock, and each call of the store, which it may hold up
or make the last one of a life.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import json
import shutil
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import pytest
from fastapi import FastAPI
from sqlalchemy.event import listens_for

from batchline import telemetry
from batchline.api.app import create_app
from batchline.api.services import Readiness, Services
from batchline.domain.lifecycle import BatchEvent
from batchline.domain.model import Batch
from batchline.service.alarms import Alarms
from batchline.service.batches import Batches, BatchSettings
from batchline.service.dry_run import DryRun
from batchline.service.files import Files
from batchline.service.finalizer import Finalizer
from batchline.service.jobs import Jobs
from batchline.service.leftovers import LeftoversJob
from batchline.service.maintenance import Maintenance
from batchline.service.planning import InputLimits, Planner
from batchline.service.progress import ProgressReader
from batchline.service.range_check import RangeCheck
from batchline.service.repair import Repair
from batchline.service.results import Results
from batchline.service.runner import Runner, StopSettings
from batchline.service.scheduler import Scheduler
from batchline.service.uploads import Uploads
from batchline.service.validation import ValidationJob
from batchline.service.waits import Known
from batchline.store import transactions
from batchline.store.blob_contract import BlobStore
from batchline.store.blobs import LocalBlobs
from batchline.store.contract import Store
from batchline.store.database import Database
from batchline.store.engine import open_engine, reading, sqlite_url
from tests.model.executor import BACKEND, HandExecutor
from tests.model.loop import QuietLoop
from tests.support.inputs import MODEL

T = TypeVar("T")

NOW: Final = 1_750_000_000
WINDOWS: Final = {"10s": 10, "1h": 3_600}
GRACE_S: Final = 3.0
SHARD_LINES: Final = 2

# Troubles that are no defect here: a worker that held a stopped shard for too long.
EXPECTED_TROUBLES: Final = frozenset({"batch_fenced"})


class Crashed(BaseException):
    """The process is gone. Not an Exception: nobody handles it."""


@dataclass(eq=False)
class Hold:
    """One call of the store for one batch that is held up: before it is made, or after.

    `call` is its name; `cancel` and `move` are the two kinds of `advance_batch`. `move` has the
    arguments of a call that was reached.
    """

    call: str
    batch_id: str
    after: bool
    go: asyncio.Future[None]
    reached: bool = False
    awaited: bool = True  # False: whoever made the call was cancelled
    move: tuple[str, str] | None = None  # from which status, by which event


class Life:
    """One life of the server, as the calls of its store and blobs see it."""

    def __init__(self) -> None:
        self.dead = False
        self.holds: list[Hold] = []
        self.left: int | None = None  # calls until the last one; None: no end is near
        self.after = False  # whether the last call is made

    async def call(
        self, name: str, work: Callable[[], Awaitable[T]], args: Any, kwargs: Mapping[str, Any]
    ) -> T:
        if self.dead:
            raise Crashed
        for hold in self.holds:
            if not hold.reached and _is_for(hold, name, args, kwargs):
                return await self._held(hold, work, kwargs)
        return await self._made(work)

    async def _held(
        self, hold: Hold, work: Callable[[], Awaitable[T]], kwargs: Mapping[str, Any]
    ) -> T:
        hold.reached = True
        if "event" in kwargs:
            hold.move = kwargs["from_status"], kwargs["event"]

        async def held() -> T:
            if hold.after:
                result = await self._made(work)
                await hold.go
                return result
            await hold.go
            return await self._made(work)

        try:
            # As in the store's own thread: a call that was made is made to its end.
            return await asyncio.shield(asyncio.ensure_future(held()))
        except asyncio.CancelledError:
            hold.awaited = False
            raise

    async def _made(self, work: Callable[[], Awaitable[T]]) -> T:
        if self.dead:
            raise Crashed
        if self.left is not None:
            self.left -= 1
            if self.left == 0 and not self.after:
                self.dead = True
                raise Crashed
        last = self.left == 0
        result = await work()
        if last or self.dead:
            self.dead = True
            raise Crashed
        return result


def _is_for(hold: Hold, name: str, args: Any, kwargs: Mapping[str, Any]) -> bool:
    if name == "advance_batch":
        cancel = kwargs["event"] is BatchEvent.CANCEL_REQUESTED
        name = "cancel" if cancel else "move"
    return hold.call == name and bool(args) and args[0] == hold.batch_id


class _Mortal:
    """A store whose calls go through a `Life`."""

    def __init__(self, inner: object, life: Life) -> None:
        self._inner = inner
        self._life = life

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if not inspect.iscoroutinefunction(found):
            return found

        async def call(*args: Any, **kwargs: Any) -> Any:
            return await self._life.call(name, lambda: found(*args, **kwargs), args, kwargs)

        return call


@dataclass(eq=False)
class WaitingJob:
    """A job whose child is not done; `go` lets it be."""

    batch_id: str
    leftovers: bool
    go: asyncio.Future[None]


_planned: ContextVar[str] = ContextVar("planned")


class HandJobs:
    """Stands for `Jobs`: runs them here, once the test says so."""

    def __init__(self) -> None:
        self.waiting: list[WaitingJob] = []

    async def run(
        self,
        function: Callable[[Any], T],
        job: object,
        *,
        terms: object = None,  # noqa: ARG002  # of the contract
        during: object = None,  # noqa: ARG002
    ) -> T:
        leftovers = isinstance(job, LeftoversJob)
        if not leftovers and not isinstance(job, ValidationJob):
            return function(job)
        batch_id = job.batch_id if isinstance(job, LeftoversJob) else _planned.get()
        waiting = WaitingJob(batch_id, leftovers, asyncio.get_running_loop().create_future())
        self.waiting.append(waiting)
        try:
            await waiting.go
        finally:
            self.waiting.remove(waiting)
        if isinstance(job, ValidationJob):
            job = replace(job, shard_entries=SHARD_LINES)
        return function(job)


class NamedPlanner(Planner):
    """Lets `HandJobs` know whose validation it is; the job does not say."""

    async def plan(self, batch: Batch) -> bool:
        _planned.set(batch.id)
        return await super().plan(batch)


class OneBackend:
    """A catalogue: one backend with the model of the inputs."""

    def known(self) -> bool:
        return True

    def has_listed(self, model: str) -> bool:
        return model == MODEL

    def models(self) -> list[str]:
        return [MODEL]

    def backends_for(self, model: str) -> list[str]:  # noqa: ARG002  # part of the contract
        return [BACKEND]

    def lists(self, backend: str, model: str) -> bool:  # noqa: ARG002  # as above
        return True

    def name_at_backends(self, model: str) -> str:
        return model


@dataclass(frozen=True)
class Reply:
    """An answer of the HTTP application."""

    status: int
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(eq=False)
class Server:
    """The parts of one life."""

    life: Life
    database: Database
    executor: HandExecutor
    jobs: HandJobs
    scheduler: Scheduler
    runner: Runner
    maintenance: Maintenance
    app: Any
    tasks: list[asyncio.Task[None]] = field(default_factory=list)


class Template:
    """What all lives share because it has no state: it would be most of the time to make it anew.

    An empty database that is copied, the engines of the copies (they have the compiled statements;
    their connections are closed with each life), and the application's routes.
    """

    _app: FastAPI | None = None

    def __init__(self, folder: Path) -> None:
        self._migrated = self._path = folder / "migrated.sqlite3"
        url = sqlite_url(self._migrated)
        loop = QuietLoop()
        loop.finish(loop.finish(Database.open(url)).close())
        loop.close()
        self.engine = open_engine(url)
        self.reader = reading(self.engine)

        @listens_for(self.engine, "do_connect")
        @listens_for(self.reader, "do_connect")
        def connect_to_the_copy(_: object, __: object, arguments: list[Any], ___: object) -> None:
            arguments[0] = str(self._path)

    def app_on(self, services: Services) -> FastAPI:
        """The application on these services; the one that was given before is of no use then."""
        if self._app is None:
            self._app = create_app(
                services.files,
                services.batches,
                services.models,
                services.readiness,
                uploads=services.uploads,
                dry_run=services.dry_run,
                results=services.results,
                progress=services.progress,
            )
        self._app.state.services = services
        return self._app

    def put(self, path: Path) -> None:
        """Copy the database to `path`, where the engine finds it from now on."""
        shutil.copyfile(self._migrated, path)
        self._path = path


class World:
    """A data directory and the server on it, which can be crashed and started again."""

    def __init__(self, root: Path, template: Template) -> None:
        self.root = root
        self._template = template
        template.put(root / "batchline.sqlite3")
        self.loop = QuietLoop()
        self.loop.set_exception_handler(self._unhandled)
        self.troubles: list[str] = []
        self._numbers = itertools.count(1)
        self._lives = 0
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(telemetry, "trouble", self._trouble)
        self._patch.setattr(transactions, "open_engine", lambda _: template.engine)
        self._patch.setattr(transactions, "reading", lambda _: template.reader)
        telemetry.configure_logging(level="error")
        self.server = self._open()

    # -- life ------------------------------------------------------------------------------

    def _open(self) -> Server:
        server = self.loop.finish(self._built())
        self.loop.finish(self._started(server))
        return server

    async def _built(self) -> Server:
        """As `cli/parts.py` wires it."""
        self._lives += 1
        life = Life()
        database = await Database.open(sqlite_url(self.root / "batchline.sqlite3"))
        store = cast("Store", _Mortal(database, life))
        local = LocalBlobs(self.root / "blobs")
        blobs = cast("BlobStore", _Mortal(local, life))
        waiting, clock, backends = HandJobs(), self.now, OneBackend()
        jobs = cast("Jobs", waiting)
        executor = HandExecutor(local.segment_directory(), f"life{self._lives}")
        scheduler = Scheduler(store, blobs, executor, backends, clock=clock)
        planner = NamedPlanner(
            store=store, blobs=blobs, jobs=jobs, models=backends, limits=InputLimits(), clock=clock
        )
        finalizer = Finalizer(store=store, blobs=blobs, jobs=jobs, clock=clock, random=self._random)
        stop = StopSettings(cancel_grace_s=GRACE_S, expire_grace_s=GRACE_S)
        repair = Repair(
            store=store,
            ranges=RangeCheck(store=store, blobs=blobs, jobs=jobs),
            alarms=Alarms(),
            clock=clock,
        )
        runner = Runner(
            store,
            executor,
            scheduler,
            planner,
            repair,
            finalizer,
            settings=stop,
            clock=clock,
            steady=self.loop.time,
        )
        settings = BatchSettings(windows=WINDOWS)
        files = Files(store, blobs, clock=clock, random=self._random)
        batches = Batches(store, runner, clock=clock, random=self._random, settings=settings)
        return Server(
            life=life,
            database=database,
            executor=executor,
            jobs=waiting,
            scheduler=scheduler,
            runner=runner,
            maintenance=Maintenance(store=store, blobs=blobs, clock=clock),
            app=self._template.app_on(
                Services(
                    files=files,
                    batches=batches,
                    uploads=Uploads(store, blobs, files, clock=clock, random=self._random),
                    dry_run=DryRun(planner=planner, settings=settings),
                    results=Results(store=store, blobs=blobs, batches=batches, clock=clock),
                    progress=ProgressReader(batches, scheduler, backends, Known, clock=clock),
                    models=lambda: (),
                    readiness=lambda: Readiness(ready=True),
                )
            ),
        )

    async def _started(self, server: Server) -> None:
        """As `cli/serve.py` starts it."""
        await server.maintenance.recover()
        await server.executor.start(server.scheduler)
        server.tasks.append(self.loop.create_task(server.scheduler.run()))
        await server.runner.resume()

    def crash(self) -> None:
        """End this life in the middle of whatever it does, and start the next one."""
        self.server.life.dead = True
        self.loop.end_all_tasks()
        self.loop.finish(self.server.database.close())
        self.server = self._open()

    def restart(self) -> None:
        """End in order, as `cli/serve.py` does, and start again."""
        server = self.server
        for hold in list(server.life.holds):
            self.release(hold)
        self.loop.finish(server.executor.drain(grace_s=0))
        self.loop.finish(server.runner.close())
        self.loop.end_all_tasks()
        self.loop.finish(server.database.close())
        self.server = self._open()

    def close(self) -> None:
        """Nothing is left but the directory."""
        self.server.life.dead = True
        self.loop.end_all_tasks()
        self.loop.finish(self.server.database.close())
        self.loop.close()
        self._patch.undo()

    # -- what the product is given ---------------------------------------------------------

    def now(self) -> float:
        return NOW + self.loop.time()

    def _random(self, size: int) -> bytes:
        return next(self._numbers).to_bytes(size)

    def _trouble(self, name: str, **fields: object) -> None:
        if name not in EXPECTED_TROUBLES and not self.server.life.dead:
            self.troubles.append(f"{name} {fields}")

    def _unhandled(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not isinstance(context.get("exception"), Crashed):
            self.troubles.append(f"unhandled: {context}")

    # -- what the test does ----------------------------------------------------------------

    def hold(self, call: str, batch_id: str, *, after: bool) -> Hold:
        hold = Hold(call, batch_id, after, self.loop.create_future())
        self.server.life.holds.append(hold)
        return hold

    def release(self, hold: Hold) -> None:
        """Let the call go on, or forget one that was never made."""
        self.server.life.holds.remove(hold)
        hold.go.set_result(None)
        self.loop.settle()

    async def request(
        self, method: str, path: str, body: bytes = b"", kind: str = "application/json"
    ) -> Reply:
        """An answer of the HTTP application, without a socket between."""
        path, _, query = path.partition("?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [
                (b"host", b"127.0.0.1"),
                (b"content-type", kind.encode()),
                (b"content-length", str(len(body)).encode()),
            ],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
        }
        incoming = iter([{"type": "http.request", "body": body, "more_body": False}])
        sent: list[Any] = []

        async def receive() -> Any:
            for message in incoming:
                return message
            return await self.loop.create_future()  # the client waits for the answer

        async def send(message: Any) -> None:
            sent.append(message)

        await self.server.app(scope, receive, send)
        return Reply(sent[0]["status"], b"".join(one.get("body", b"") for one in sent[1:]))

    def get(self, path: str) -> Reply:
        """An answer that nothing holds up and that is never the last one of a life."""
        life = self.server.life
        left, life.left = life.left, None
        try:
            return self.loop.finish(self.request("GET", path))
        finally:
            life.left = left
