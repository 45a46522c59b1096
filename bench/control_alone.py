"""The control process without an API and with workers that cost nothing: as `python -m` to count.

Says in JSON what CPU its threads took. So that a run can be counted by the instruction, it does the
same in each: the waits of its supervisor are as long as can be, and the workers (`puppet_worker`)
go no faster than they are answered.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import uvloop

from batchline.domain.attempts import RetryPolicy
from batchline.domain.ids import DEFAULT_PROJECT
from batchline.domain.lifecycle import BatchStatus
from batchline.domain.model import Purpose
from batchline.executor import local
from batchline.executor.contract import BackendSettings
from batchline.executor.local import LocalExecutor, LocalSettings
from batchline.executor.messages import WorkerSettings
from batchline.executor.supervision import SupervisionSettings
from batchline.service.alarms import Alarms
from batchline.service.batches import Batches
from batchline.service.files import Files
from batchline.service.finalizer import Finalizer
from batchline.service.jobs import Jobs
from batchline.service.planning import InputLimits, Planner
from batchline.service.project_weights import ProjectWeights
from batchline.service.range_check import RangeCheck
from batchline.service.repair import Repair
from batchline.service.runner import Runner, StopSettings
from batchline.service.scheduler import Scheduler
from batchline.service.tries import Tries
from batchline.store.blobs import LocalBlobs
from batchline.store.database import Database
from batchline.store.engine import sqlite_url
from bench.fast_backend import MODEL
from bench.inputs import CHAT, write_input

_BACKEND: Final = "bench"
_HOUR_S: Final = 3_600.0


class _OneModel:
    """A catalogue of one backend that lists one model."""

    def backends_for(self, model: str) -> Sequence[str]:
        return [_BACKEND] if model == MODEL else []

    def lists(self, backend: str, model: str) -> bool:
        return backend == _BACKEND and model == MODEL

    def has_listed(self, model: str) -> bool:
        return model == MODEL

    def name_at_backends(self, model: str) -> str:
        return model

    def known(self) -> bool:
        return True

    def models(self) -> Sequence[str]:
        return [MODEL]


@dataclass(frozen=True, slots=True)
class _Control:
    batches: Batches
    files: Files
    runner: Runner
    store: Database


async def _control(
    stack: AsyncExitStack, root: Path, *, workers: int, group_lines: int
) -> _Control:
    """Wired as `cli/parts.py` does, and started."""
    children = root / "children"
    children.mkdir()
    store = await Database.open(sqlite_url(root / "database"))
    stack.push_async_callback(store.close)
    blobs = LocalBlobs(root / "blobs")
    jobs = Jobs(children)
    stack.push_async_callback(jobs.close)
    executor = LocalExecutor(_local_settings(children, blobs, workers, group_lines))
    scheduler = Scheduler(store, blobs, executor, _OneModel())
    weights = ProjectWeights(store, {})
    alarms = Alarms()
    runner = Runner(
        store,
        executor,
        scheduler,
        Planner(
            store=store,
            blobs=blobs,
            jobs=jobs,
            models=_OneModel(),
            limits=InputLimits(max_file_bytes=None, max_lines=None),
            tries=Tries(root / "validating"),
            alarms=alarms,
            weights=weights,
        ),
        Repair(
            store=store,
            ranges=RangeCheck(store=store, blobs=blobs, jobs=jobs, weights=weights),
            alarms=alarms,
        ),
        Finalizer(store=store, blobs=blobs, jobs=jobs, weights=weights),
        settings=StopSettings(),
    )
    await executor.start(scheduler)
    stack.push_async_callback(executor.drain, grace_s=0.0)
    handing_out = asyncio.create_task(scheduler.run())
    stack.callback(handing_out.cancel)
    return _Control(Batches(store, runner), Files(store, blobs), runner, store)


def _local_settings(
    children: Path, blobs: LocalBlobs, workers: int, group_lines: int
) -> LocalSettings:
    return LocalSettings(
        supervision=SupervisionSettings(
            workers=workers,
            command=[
                *(sys.executable, "-m", "bench.puppet_worker"),
                *("--group-lines", str(group_lines)),
            ],
            children=children,
            worker_prefix=secrets.token_hex(4),
            silent_s=_HOUR_S,
        ),
        worker=WorkerSettings(
            worker="",
            segment_directory=str(blobs.segment_directory()),
            # Nothing is at its address, and nobody looks.
            backends=[BackendSettings(name=_BACKEND, base_url="http://127.0.0.1:9/v1")],
            retry=RetryPolicy(),
        ),
    )


async def _upload(control: _Control, path: Path) -> str:
    async with control.files.begin(DEFAULT_PROJECT) as incoming:
        await incoming.write(await asyncio.to_thread(path.read_bytes))
        file = await incoming.finish(purpose=Purpose.BATCH, filename="input.jsonl")
    return file.id


async def _run(control: _Control, file_id: str, batches: int) -> None:
    body = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h"}
    created = [await control.batches.create(DEFAULT_PROJECT, body) for _ in range(batches)]
    while control.runner.unfinished():  # noqa: ASYNC110  # an event of it is for nobody else
        await asyncio.sleep(0.05)
    for one in created:
        ended = await control.store.load_batch(one.id)
        if ended.status is not BatchStatus.COMPLETED:
            raise RuntimeError(f"a batch ended {ended.status}: {ended.errors}")


async def main() -> None:
    """One run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--batches", type=int, default=1)
    parser.add_argument("--lines", type=int, default=100_000, help="of each batch")
    parser.add_argument("--group-lines", type=int, default=3_000)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    local.TICK_S = _HOUR_S  # type: ignore[misc]  # by the clock, and so more often in a slow run
    path = options.directory / "input.jsonl"
    write_input(path, options.lines)
    async with AsyncExitStack() as stack:
        control = await _control(
            stack, options.directory, workers=options.workers, group_lines=options.group_lines
        )
        file_id = await _upload(control, path)
        began, began_s = time.process_time(), time.perf_counter()
        await _run(control, file_id, options.batches)
        used = time.process_time() - began
        print(json.dumps({"cpu_s": used, "wall_s": time.perf_counter() - began_s}))


if __name__ == "__main__":
    uvloop.run(main())
