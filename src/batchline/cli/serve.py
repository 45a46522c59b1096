"""`batchline serve`: puts the API in front of the parts, runs until a signal, ends in order."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import socket
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final

import uvicorn
import uvloop

from batchline import telemetry
from batchline.api import admin
from batchline.api.app import create_app
from batchline.api.connections import ConnectionSettings
from batchline.api.http_protocol import serve_config
from batchline.api.services import ListedModel
from batchline.cli import serve_output
from batchline.cli.data_directory import DataDirectory
from batchline.cli.file_limit import raise_file_limit, too_few_files
from batchline.cli.parts import Parts, build, first_look
from batchline.cli.readiness import ServedBackends, readiness
from batchline.cli.signals import on_signals
from batchline.config.reach import check_reach, is_loopback
from batchline.config.settings import Settings
from batchline.domain.errors import ConfigError
from batchline.executor import processes
from batchline.service.keys import Keys

STOPPED_AT_ONCE: Final = 1  # the exit code after a second signal


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


async def _serve(settings: Settings, directory: DataDirectory) -> int:
    telemetry.probe("start.locked")
    killed = await asyncio.to_thread(processes.kill_survivors, directory.children)
    telemetry.probe("start.alone")
    if killed:
        telemetry.trouble("survivors_killed", processes=killed)
    async with build(settings, directory) as parts, _keys(settings, directory, parts) as keys:
        telemetry.probe("start.opened")
        await parts.maintenance.recover()
        telemetry.probe("start.recovered")
        listener = _listen(settings.server.host, settings.server.port)
        port = listener.getsockname()[1]
        stopping = _on_signals()
        app = create_app(
            parts.files,
            parts.batches,
            lambda: [ListedModel(id=model) for model in parts.catalogue.models()],
            lambda: readiness(parts, settings, started=started.is_set()),
            ring=keys.ring,
            loopback_only=is_loopback(settings.server.host),
            uploads=parts.uploads,
            dry_run=parts.dry_run,
            results=parts.results,
            progress=parts.progress,
        )
        started = asyncio.Event()
        server = _Server(
            serve_config(
                app,
                host=settings.server.host,
                port=port,
                grace_s=settings.shutdown.grace_s,
                connections=_within_file_limit(settings.connections),
            )
        )
        async with asyncio.TaskGroup() as tasks:
            # Children first: they import while the server looks at its backends.
            starting = tasks.create_task(parts.executor.start(parts.scheduler))
            tasks.create_task(parts.jobs.warm())
            serving = tasks.create_task(server.serve(sockets=[listener]))
            await first_look(parts)
            background = [
                tasks.create_task(parts.catalogue.run()),
                tasks.create_task(parts.places.run()),
            ]
            await server.accepting.wait()
            directory.note_listening(settings.server.host, port)
            _say(parts, keys, settings, port)
            _spare_what_stays()  # while the workers import
            await starting
            background += [
                tasks.create_task(parts.scheduler.run()),
                tasks.create_task(parts.maintenance.run()),
                tasks.create_task(parts.disk.run(parts.executor)),
            ]
            telemetry.probe("start.listening")
            resumed = await parts.runner.resume()
            telemetry.probe("start.resumed")
            started.set()
            telemetry.event("server_started", port=port, batches_resumed=resumed)
            await stopping.wait()
            await _stop(parts, settings, server, serving, background)
    return 0


@asynccontextmanager
async def _keys(settings: Settings, directory: DataDirectory, parts: Parts) -> AsyncIterator[Keys]:
    """The keys, which the `keys` commands reach at the admin socket meanwhile.

    Raises:
        ConfigError: other machines could reach the server, and there is no key.
    """
    keys = await Keys.open(parts.store)
    check_reach(settings.server, has_keys=not keys.ring.is_empty)
    async with admin.serving(
        directory.admin_socket,
        keys,
        deletion=parts.maintenance.deletion,
        backends=ServedBackends(parts),
    ):
        yield keys


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
    """An event that the first signal sets; a second SIGTERM or SIGINT ends the process at once."""
    stopping = asyncio.Event()

    def at_once() -> None:
        os._exit(STOPPED_AT_ONCE)  # children see the hang-up; what is committed is safe

    on_signals(stopping, at_once)
    return stopping


def _within_file_limit(connections: ConnectionSettings) -> ConnectionSettings:
    """Leave a quarter of the descriptors to files: a server that has none left cannot store."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return connections
    return replace(connections, max_open=max(1, min(connections.max_open, soft * 3 // 4)))


def _spare_what_stays() -> None:
    """Take the modules and the parts out of what the garbage collector walks.

    They are nearly all of its objects and never garbage. With them a full collection, every ten
    seconds or so of polling clients, holds up every answer for 65 ms (bench/crowd.py).
    """
    gc.collect()
    gc.freeze()


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


def _say(parts: Parts, keys: Keys, settings: Settings, port: int) -> None:
    has_keys = not keys.ring.is_empty
    if not has_keys and not is_loopback(settings.server.host):
        telemetry.trouble("server_open_to_everybody", host=settings.server.host)
    if (few := too_few_files(settings)) is not None:
        telemetry.trouble("open_files_limited", reason=few)
    said = serve_output.start_up(settings, parts.catalogue.report(), port=port, has_keys=has_keys)
    sys.stdout.write(said + "\n")
    sys.stdout.flush()
