"""`batchline serve`: builds every part, runs until a signal, ends in order."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final

import uvicorn
import uvloop

from batchline import telemetry
from batchline.api import admin
from batchline.api.app import create_app
from batchline.api.http_protocol import serve_config
from batchline.api.services import BackendHealth, ListedModel, Readiness
from batchline.cli import serve_output
from batchline.cli.data_directory import DataDirectory
from batchline.cli.worker_child import raise_file_limit
from batchline.config import Settings, check_reach, is_loopback
from batchline.domain.errors import ConfigError
from batchline.executor import processes
from batchline.executor.catalogue import Catalogue, Reach
from batchline.executor.local import LocalExecutor, LocalSettings
from batchline.executor.messages import WorkerSettings
from batchline.executor.transport.general import GeneralTransport
from batchline.service.batches import Batches, BatchSettings
from batchline.service.disk import DiskGuard
from batchline.service.dry_run import DryRun
from batchline.service.files import FileLimits, Files
from batchline.service.finalizer import Finalizer
from batchline.service.jobs import Jobs
from batchline.service.keys import Keys
from batchline.service.maintenance import Maintenance
from batchline.service.planning import InputLimits, Planner
from batchline.service.results import Results
from batchline.service.runner import Runner, StopSettings
from batchline.service.scheduler import Scheduler
from batchline.service.uploads import UploadLimits, Uploads
from batchline.store.blobs import LocalBlobs
from batchline.store.database import Database
from batchline.store.engine import sqlite_url

HEARTBEAT_S: Final = 1.0
BEATS_PER_SILENCE: Final = 4  # so that one that comes late is not taken for silence
FIRST_LOOK_S: Final = 1.5  # how long the start waits to be able to say what the backends serve


def run(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; the exit code.

    Raises:
        ConfigError: the settings or the data directory do not allow a start.
    """
    telemetry.configure_logging()
    telemetry.arm(settings.probes)
    raise_file_limit()
    directory = DataDirectory.take(settings.server.data_dir)
    try:
        return uvloop.run(_serve(settings, directory))
    finally:
        directory.release()


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Everything that a running server consists of."""

    store: Database
    keys: Keys
    jobs: Jobs
    executor: LocalExecutor
    catalogue: Catalogue
    scheduler: Scheduler
    runner: Runner
    disk: DiskGuard
    maintenance: Maintenance
    files: Files
    uploads: Uploads
    batches: Batches
    dry_run: DryRun
    results: Results


@asynccontextmanager
async def build(settings: Settings, directory: DataDirectory) -> AsyncIterator[Parts]:
    """The parts, wired; nothing runs yet but the store. Closed in the reverse order."""
    async with AsyncExitStack() as stack:
        disk = DiskGuard(directory.root, settings.disk)
        disk.take_reserve()
        store = await Database.open(sqlite_url(directory.database), make_room=disk.give_up_reserve)
        stack.push_async_callback(store.close)
        keys = await Keys.open(store)
        check_reach(settings.server, has_keys=not keys.ring.is_empty)
        await stack.enter_async_context(admin.serving(directory.admin_socket, keys))
        blobs = LocalBlobs(directory.blobs)
        jobs = Jobs(directory.children)
        stack.push_async_callback(jobs.close)
        transports = {b.name: GeneralTransport(b) for b in settings.backends}
        for transport in transports.values():
            stack.push_async_callback(transport.close)
        executor = LocalExecutor(_local_settings(settings, directory, blobs))
        catalogue = Catalogue(
            settings.backends,
            transports=transports,
            aliases=settings.aliases,
            on_change=lambda _: scheduler.on_room(),
        )
        scheduler = Scheduler(store, blobs, executor, catalogue)
        planner = Planner(
            store=store,
            blobs=blobs,
            jobs=jobs,
            models=catalogue,
            limits=input_limits(settings),
            has_room=lambda: disk.has_room,
        )
        runner = Runner(
            store,
            executor,
            scheduler,
            planner,
            Finalizer(
                store=store,
                blobs=blobs,
                jobs=jobs,
                output_lifetime_s=settings.retention.output_s,
            ),
            settings=StopSettings(
                cancel_grace_s=settings.cancel.grace_s,
                expire_grace_s=settings.expire.grace_s,
                cap_s=settings.cancel.cap_s,
            ),
        )
        files = Files(
            store,
            blobs,
            limits=FileLimits(
                max_bytes=settings.limits.max_file_bytes or 2**62,
                batch_file_lifetime_s=settings.retention.batch_file_s,
            ),
            has_room=lambda: disk.has_room,
        )
        batch_settings = BatchSettings(windows=settings.windows)
        batches = Batches(store, runner, settings=batch_settings)
        yield Parts(
            store=store,
            keys=keys,
            jobs=jobs,
            executor=executor,
            catalogue=catalogue,
            scheduler=scheduler,
            runner=runner,
            disk=disk,
            maintenance=Maintenance(store=store, blobs=blobs, sweep_s=settings.retention.sweep_s),
            files=files,
            uploads=Uploads(
                store,
                blobs,
                files,
                limits=UploadLimits(
                    max_bytes=settings.limits.max_upload_bytes or 2**62,
                    lifetime_s=settings.retention.upload_s,
                ),
                has_room=lambda: disk.has_room,
            ),
            batches=batches,
            dry_run=DryRun(planner=planner, settings=batch_settings),
            results=Results(store=store, blobs=blobs, batches=batches),
        )


async def _serve(settings: Settings, directory: DataDirectory) -> int:
    killed = await asyncio.to_thread(processes.kill_survivors, directory.children)
    if killed:
        telemetry.trouble("survivors_killed", processes=killed)
    async with build(settings, directory) as parts:
        await parts.maintenance.recover()
        listener = _listen(settings.server.host, settings.server.port)
        port = listener.getsockname()[1]
        stopping = _on_signals()
        app = create_app(
            parts.files,
            parts.batches,
            lambda: [ListedModel(id=model) for model in parts.catalogue.models()],
            lambda: _readiness(parts, settings, started.is_set()),
            ring=parts.keys.ring,
            loopback_only=is_loopback(settings.server.host),
            uploads=parts.uploads,
            dry_run=parts.dry_run,
            results=parts.results,
        )
        started = asyncio.Event()
        server = _Server(
            serve_config(
                app, host=settings.server.host, port=port, grace_s=settings.shutdown.grace_s
            )
        )
        async with asyncio.TaskGroup() as tasks:
            # Children first: they import while the server looks at its backends.
            starting = tasks.create_task(parts.executor.start(parts.scheduler))
            tasks.create_task(parts.jobs.warm())
            serving = tasks.create_task(server.serve(sockets=[listener]))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FIRST_LOOK_S):
                    await parts.catalogue.refresh_all()
            background = [tasks.create_task(parts.catalogue.run())]
            await server.accepting.wait()
            directory.note_listening(settings.server.host, port)
            _say(parts, settings, port)
            await starting
            background += [
                tasks.create_task(parts.scheduler.run()),
                tasks.create_task(parts.maintenance.run()),
                tasks.create_task(parts.disk.run(parts.executor)),
            ]
            resumed = await parts.runner.resume()
            started.set()
            telemetry.event("server_started", port=port, batches_resumed=resumed)
            await stopping.wait()
            await _stop(parts, settings, server, serving, background)
    return 0


async def _stop(
    parts: Parts,
    settings: Settings,
    server: uvicorn.Server,
    serving: asyncio.Task[None],
    background: Sequence[asyncio.Task[None]],
) -> None:
    """Drain: take no new work, let requests end, commit, let go. Nothing committed can be lost."""
    telemetry.event("server_draining", grace_s=settings.shutdown.grace_s)
    server.should_exit = True
    await parts.executor.drain(grace_s=settings.shutdown.grace_s)
    await parts.runner.close()
    for task in background:
        task.cancel()
    await serving
    telemetry.event("server_stopped")


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers: who drains what, in which order, is ours to say."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.accepting = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.accepting.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _on_signals() -> asyncio.Event:
    """An event that the first SIGTERM or SIGINT sets; the second ends the process at once."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if stopping.is_set():
            os._exit(1)  # children see the hang-up; what is committed is safe
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    return stopping


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as exc:
        listener.close()
        raise ConfigError(f"cannot listen on {host}:{port}: {exc.strerror}") from exc
    listener.listen(2048)
    return listener


def _local_settings(
    settings: Settings, directory: DataDirectory, blobs: LocalBlobs
) -> LocalSettings:
    return LocalSettings(
        workers=settings.workers,
        command=[
            sys.executable,
            "-m",
            "batchline.cli.worker_child",
            "--children",
            str(directory.children),
        ],
        children=directory.children,
        worker_prefix=secrets.token_hex(4),
        worker=WorkerSettings(
            worker="",
            segment_directory=str(blobs.segment_directory()),
            backends=list(settings.backends),
            retry=settings.retry,
            commit_interval_s=settings.worker.commit_interval_s,
            byte_budget=settings.worker.byte_budget,
            segment_bytes=settings.worker.segment_bytes,
            segment_idle_s=settings.worker.segment_idle_s,
            heartbeat_s=min(HEARTBEAT_S, settings.worker.silent_s / BEATS_PER_SILENCE),
        ),
        probes=settings.probes,
        ack_s=settings.cancel.ack_s,
        silent_s=settings.worker.silent_s,
    )


def input_limits(settings: Settings) -> InputLimits:
    """What validation is told; 0 in the settings is no limit."""
    limits = settings.limits
    return InputLimits(
        max_file_bytes=limits.max_batch_file_bytes or None,
        max_lines=limits.max_lines or None,
        max_line_bytes=limits.max_line_bytes or None,
        max_embedding_inputs=limits.max_embedding_inputs or None,
        allow_mixed_models=settings.allow_mixed_models,
    )


def _readiness(parts: Parts, settings: Settings, started: bool) -> Readiness:
    reasons = [] if started else ["The server is starting."]
    if parts.executor.failing is not None:
        reasons.append(f"{parts.executor.failing}.")
    disk = parts.executor.paused or parts.executor.storage_trouble() or "ok"
    return Readiness(
        ready=not reasons,
        reasons=reasons,
        backends=_backend_health(parts),
        workers_wanted=settings.workers,
        workers_running=parts.executor.ready_workers,
        disk=disk,
        disk_free_bytes=parts.disk.free_bytes,
    )


def _backend_health(parts: Parts) -> Sequence[BackendHealth]:
    waiting = parts.executor.waiting_reasons()
    return [
        BackendHealth(
            name=report.name,
            state=(
                "gated"
                if report.name in waiting
                else "up"
                if report.reach is Reach.REACHABLE and report.trouble is None
                else report.reach.value
            ),
            reason=waiting.get(report.name) or report.trouble,
            models=report.models or (),
        )
        for report in parts.catalogue.report()
    ]


def _say(parts: Parts, settings: Settings, port: int) -> None:
    has_keys = not parts.keys.ring.is_empty
    if not has_keys and not is_loopback(settings.server.host):
        telemetry.trouble("server_open_to_everybody", host=settings.server.host)
    said = serve_output.start_up(settings, parts.catalogue.report(), port=port, has_keys=has_keys)
    sys.stdout.write(said + "\n")
    sys.stdout.flush()
