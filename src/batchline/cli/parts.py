"""Every part of a server, wired: `serve` puts an API in front, `run` drives them by itself."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Final

from batchline.cli.data_directory import DataDirectory
from batchline.config.settings import Settings
from batchline.executor.catalogue import LISTING_BYTES, BackendReport, Catalogue
from batchline.executor.health import Health
from batchline.executor.local import LocalExecutor, LocalSettings
from batchline.executor.messages import WorkerSettings
from batchline.executor.places import ANSWER_S, MOST_PAGE_BYTES, Places
from batchline.executor.roots import at_root
from batchline.executor.supervision import SupervisionSettings
from batchline.executor.transport.choice import transport_for
from batchline.service.alarms import Alarms
from batchline.service.batches import Batches, BatchSettings
from batchline.service.clocks import UnhurriedClock
from batchline.service.disk import DiskGuard
from batchline.service.downloads import Downloads
from batchline.service.drains import Drains
from batchline.service.dry_run import DryRun
from batchline.service.files import FileLimits, Files
from batchline.service.finalizer import Finalizer
from batchline.service.jobs import Jobs
from batchline.service.maintenance import Maintenance
from batchline.service.planning import InputLimits, Planner
from batchline.service.progress import ProgressReader
from batchline.service.project_weights import ProjectWeights
from batchline.service.range_check import RangeCheck
from batchline.service.repair import Repair
from batchline.service.results import Results
from batchline.service.runner import Runner, StopSettings
from batchline.service.scheduler import Scheduler
from batchline.service.tries import Tries
from batchline.service.uploads import UploadLimits, Uploads
from batchline.service.waits import Known
from batchline.store.blobs import LocalBlobs
from batchline.store.database import Database
from batchline.store.engine import sqlite_url

HEARTBEAT_S: Final = 1.0
BEATS_PER_SILENCE: Final = 4  # so that one that comes late is not taken for silence
FIRST_LOOK_S: Final = 1.5  # how long a start waits to be able to say what the backends serve
NO_LIMIT: Final = 2**62  # what 0 in the settings becomes where a number is compared


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Everything that works on batches; what is said to callers (HTTP, keys) comes on top."""

    store: Database
    jobs: Jobs
    alarms: Alarms
    executor: LocalExecutor
    catalogue: Catalogue
    places: Places
    scheduler: Scheduler
    runner: Runner
    disk: DiskGuard
    drains: Drains
    maintenance: Maintenance
    files: Files
    uploads: Uploads
    batches: Batches
    dry_run: DryRun
    results: Results
    progress: ProgressReader


@dataclass(frozen=True, slots=True, kw_only=True)
class _Storage:
    """What outlives the process."""

    disk: DiskGuard
    store: Database
    blobs: LocalBlobs


@dataclass(frozen=True, slots=True, kw_only=True)
class _Dispatch:
    """How lines get to backends, and what is known of those."""

    executor: LocalExecutor
    catalogue: Catalogue
    places: Places
    drains: Drains


@asynccontextmanager
async def build(settings: Settings, directory: DataDirectory) -> AsyncIterator[Parts]:
    """The parts, wired; nothing runs yet but the store. Closed in the reverse order."""
    async with AsyncExitStack() as stack:
        storage = await _storage(stack, settings, directory)
        jobs = Jobs(directory.children)
        stack.push_async_callback(jobs.close)
        dispatch = _dispatch(
            stack,
            settings,
            directory,
            storage.blobs,
            on_catalogue=lambda: scheduler.on_catalogue(),
        )
        scheduler = Scheduler(
            storage.store,
            storage.blobs,
            dispatch.executor,
            dispatch.catalogue,
            settings=settings.scheduling,
            weights={name: one.weight for name, one in settings.projects.items()},
        )
        yield _services(settings, directory, storage, jobs, dispatch, scheduler)


async def first_look(parts: Parts) -> None:
    """Ask the backends what they serve and how many requests they run; not for long."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(FIRST_LOOK_S):
            await parts.catalogue.refresh_all()
            await parts.places.ask()


async def _storage(stack: AsyncExitStack, settings: Settings, directory: DataDirectory) -> _Storage:
    disk = DiskGuard(directory.root, settings.disk)
    disk.take_reserve()
    store = await Database.open(sqlite_url(directory.database), make_room=disk.give_up_reserve)
    stack.push_async_callback(store.close)
    return _Storage(disk=disk, store=store, blobs=LocalBlobs(directory.blobs))


def _dispatch(
    stack: AsyncExitStack,
    settings: Settings,
    directory: DataDirectory,
    blobs: LocalBlobs,
    *,
    on_catalogue: Callable[[], None],
) -> _Dispatch:
    """`on_catalogue` is told when lines may go where they could not before."""
    # What bounds an answer to a line says nothing of how long a list of models may be.
    transports = {
        b.name: transport_for(replace(b, max_answer_bytes=LISTING_BYTES)) for b in settings.backends
    }
    for transport in transports.values():
        stack.push_async_callback(transport.close)
    executor = LocalExecutor(
        _local_settings(settings, directory, blobs),
        on_unreachable=lambda name, reason: catalogue.note_unreachable(name, reason),
    )
    admission = executor.admission
    health = Health(
        on_down=lambda report: admission.note_down(
            report.name,
            report.trouble or "no answer",
            silent=report.connected and not report.by_proxy,
        ),
        on_up=admission.note_up,
    )
    at_roots = {
        b.name: transport_for(at_root(b, answer_s=ANSWER_S, most_bytes=MOST_PAGE_BYTES))
        for b in settings.backends
        if b.asks_places
    }
    for transport in at_roots.values():
        stack.push_async_callback(transport.close)
    places = Places(settings.backends, transports=at_roots, heard=admission.set_places)

    def looked(report: BackendReport) -> None:
        health.looked(report)
        places.looked(report)

    def changed(report: BackendReport) -> None:
        admission.note_models(report.name, report.models or ())
        on_catalogue()

    catalogue = Catalogue(
        settings.backends,
        transports=transports,
        aliases=settings.aliases,
        on_change=changed,
        on_look=looked,
        answers_lines=admission.has_answered_since,
    )
    drains = Drains(directory.drained, apply=admission.set_drained)
    drains.restore([backend.name for backend in settings.backends])
    return _Dispatch(executor=executor, catalogue=catalogue, places=places, drains=drains)


def _services(
    settings: Settings,
    directory: DataDirectory,
    storage: _Storage,
    jobs: Jobs,
    dispatch: _Dispatch,
    scheduler: Scheduler,
) -> Parts:
    """The use cases, on everything beneath them."""
    store, blobs, disk = storage.store, storage.blobs, storage.disk
    alarms = Alarms()
    downloads = Downloads(longest_s=settings.retention.download_s, has_room=lambda: disk.has_room)
    weights = ProjectWeights(store, {name: one.weight for name, one in settings.projects.items()})
    planner = Planner(
        store=store,
        blobs=blobs,
        jobs=jobs,
        models=dispatch.catalogue,
        limits=input_limits(settings),
        order=settings.order,
        has_room=lambda: disk.has_room,
        tries=Tries(directory.validating),
        alarms=alarms,
        weights=weights,
    )
    runner = _runner(
        settings, storage, jobs, dispatch.executor, scheduler, planner, alarms, weights
    )
    files = Files(
        store,
        blobs,
        limits=_file_limits(settings),
        has_room=lambda: disk.has_room,
        alarms=alarms,
        downloads=downloads,
    )
    batch_settings = BatchSettings(
        windows=settings.windows,
        run_once_projects=frozenset(
            name for name, one in settings.projects.items() if one.runs_once
        ),
    )
    batches = Batches(store, runner, settings=batch_settings)
    return Parts(
        store=store,
        jobs=jobs,
        alarms=alarms,
        executor=dispatch.executor,
        catalogue=dispatch.catalogue,
        places=dispatch.places,
        scheduler=scheduler,
        runner=runner,
        disk=disk,
        drains=dispatch.drains,
        maintenance=Maintenance(
            store=store,
            blobs=blobs,
            clock=UnhurriedClock(),
            sweep_s=settings.retention.sweep_s,
            downloads=downloads,
        ),
        files=files,
        uploads=Uploads(
            store,
            blobs,
            files,
            limits=_upload_limits(settings),
            has_room=lambda: disk.has_room,
        ),
        batches=batches,
        dry_run=DryRun(planner=planner, settings=batch_settings),
        results=Results(store=store, blobs=blobs, batches=batches, downloads=downloads),
        progress=ProgressReader(
            batches,
            scheduler,
            dispatch.catalogue,
            lambda: _known(dispatch.executor, settings, planner.tries),
        ),
    )


def _runner(
    settings: Settings,
    storage: _Storage,
    jobs: Jobs,
    executor: LocalExecutor,
    scheduler: Scheduler,
    planner: Planner,
    alarms: Alarms,
    weights: ProjectWeights,
) -> Runner:
    """Who drives batches from their validation to their end."""
    store, blobs = storage.store, storage.blobs
    return Runner(
        store,
        executor,
        scheduler,
        planner,
        Repair(
            store=store,
            ranges=RangeCheck(store=store, blobs=blobs, jobs=jobs, weights=weights),
            alarms=alarms,
        ),
        Finalizer(
            store=store,
            blobs=blobs,
            jobs=jobs,
            output_lifetime_s=settings.retention.output_s,
            weights=weights,
        ),
        settings=_stop_settings(settings),
    )


def _known(executor: LocalExecutor, settings: Settings, tries: Tries) -> Known:
    return Known(
        failing=executor.failing,
        ready_workers=executor.ready_workers,
        paused=executor.paused,
        storage_trouble=executor.storage_trouble(),
        has_backends=bool(settings.backends),
        limits=executor.admission.limits(),  # where they are learnt, what they are now
        gated=executor.waiting_reasons(),
        being_checked=tries.running(),
        away={one.name: one.away for one in executor.standings() if one.away},
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


def _file_limits(settings: Settings) -> FileLimits:
    return FileLimits(
        max_bytes=settings.limits.max_file_bytes or NO_LIMIT,
        batch_file_lifetime_s=settings.retention.batch_file_s,
    )


def _upload_limits(settings: Settings) -> UploadLimits:
    return UploadLimits(
        max_bytes=settings.limits.max_upload_bytes or NO_LIMIT,
        lifetime_s=settings.retention.upload_s,
    )


def _stop_settings(settings: Settings) -> StopSettings:
    return StopSettings(
        cancel_grace_s=settings.cancel.grace_s,
        expire_grace_s=settings.expire.grace_s,
        cap_s=settings.cancel.cap_s,
    )


def _local_settings(
    settings: Settings, directory: DataDirectory, blobs: LocalBlobs
) -> LocalSettings:
    return LocalSettings(
        supervision=SupervisionSettings(
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
            silent_s=settings.worker.silent_s,
        ),
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
    )
