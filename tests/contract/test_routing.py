"""Real workers and three backends of one model: whose lines go where."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from batchline.domain import bitmap, plan
from batchline.domain.attempts import RetryPolicy
from batchline.domain.ids import WorkerId
from batchline.domain.model import Shard, ShardKey
from batchline.executor.contract import BackendSettings, ShardWork
from batchline.executor.local import LocalExecutor, LocalSettings
from batchline.executor.messages import WorkerSettings
from batchline.executor.supervision import SupervisionSettings
from tests.contract.test_local_executor import ONE, SOON_S, Recorder
from tests.support.inputs import MODEL, make_lines
from tests.support.scripted_backend import Answer, BackendControl, Script, backend_here

pytestmark = pytest.mark.usefixtures("forked_workers")

NAMES: Final = ("gpu-a", "gpu-b", "gpu-c")
HOLDING: Final = Script(answer=Answer(hold=True))
_NUMBER: Final = slice(len("line-"), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rig:
    """Two workers, and shards for them whose lines have the prefixes that one says."""

    directory: Path
    executor: LocalExecutor
    events: Recorder
    backends: Mapping[str, BackendControl]

    def workers(self) -> list[WorkerId]:
        return list(dict.fromkeys(room.worker for room in self.executor.rooms()))

    def open(self, worker: WorkerId, hashes: Sequence[int], *, number: int) -> ShardKey:
        """A shard that is the whole of an input; line n of it is line `1,000 * number + n`."""
        content = make_lines(len(hashes), start=number * 1_000)
        offset, entries = 0, []
        for at, line in enumerate(content.splitlines(keepends=True)):
            entries.append(plan.ENTRY.pack(offset, len(line) - 1, at + 1, hashes[at]))
            offset += len(line)
        input_path, plan_path = (self.directory / f"{number}-{what}" for what in ("in", "plan"))
        input_path.write_bytes(content)
        plan_path.write_bytes(plan.header() + b"".join(entries))
        key = ShardKey(batch_id=ONE, number=number)
        work = ShardWork(
            shard=Shard(
                key=key,
                first_entry=0,
                entries=len(hashes),
                model=MODEL,
                epoch=1,
                settled=bytes(bitmap.empty(len(hashes))),
            ),
            endpoint="/v1/chat/completions",
            input_path=str(input_path),
            plan_path=str(plan_path),
            backends=list(self.backends),
        )
        assert self.executor.open_shard(worker, work)
        return key

    async def seen(self) -> dict[int, str]:
        """Which line came to which backend; none came twice."""
        found: dict[int, str] = {}
        for name, backend in self.backends.items():
            for event in (await backend.log()).arrivals:
                number = int(event.id[_NUMBER])
                assert number not in found
                found[number] = name
        return found


@asynccontextmanager
async def rig(
    directory: Path, script: Script, *, max_in_flight: int = 8, weights: Sequence[float] = (1, 1, 1)
) -> AsyncIterator[Rig]:
    children, segments = directory / "children", directory / "segments"
    children.mkdir()
    segments.mkdir()
    async with AsyncExitStack() as stack:
        backends = {name: await stack.enter_async_context(backend_here(script)) for name in NAMES}
        executor = LocalExecutor(
            LocalSettings(
                supervision=SupervisionSettings(
                    workers=2,
                    command=[
                        *(sys.executable, "-m", "batchline.cli.worker_child"),
                        *("--children", str(children)),
                    ],
                    children=children,
                    worker_prefix="w",
                    silent_s=60.0,
                ),
                worker=WorkerSettings(
                    worker="",
                    segment_directory=str(segments),
                    backends=[
                        BackendSettings(
                            name=name,
                            base_url=backend.base_url,
                            max_in_flight=max_in_flight,
                            weight=weight,
                        )
                        for (name, backend), weight in zip(backends.items(), weights, strict=True)
                    ],
                    retry=RetryPolicy(base_s=0.01),
                    commit_interval_s=0.01,
                    heartbeat_s=0.2,
                ),
                ack_s=SOON_S,
            )
        )
        events = Recorder()
        try:
            async with asyncio.timeout(SOON_S):
                await executor.start(events)
            yield Rig(directory=directory, executor=executor, events=events, backends=backends)
        finally:
            await executor.drain(grace_s=0)


async def test_workers_send_what_shares_a_prefix_to_the_same_backend(tmp_path: Path) -> None:
    """Both have lines of every group, and none has asked the other."""
    groups = 60
    hashes = [7 * (1 + n // 4) for n in range(groups * 4)]
    async with rig(tmp_path, Script(answer=Answer(latency_s=0.01))) as it:
        keys = [it.open(one, hashes, number=at) for at, one in enumerate(it.workers())]
        for key in keys:
            assert (await it.events.release(key)).settled
        seen = await it.seen()
        assert len(seen) == 2 * len(hashes)
        at: dict[int, set[str]] = {}
        for number, backend in seen.items():
            at.setdefault(hashes[number % 1_000], set()).add(backend)
        # Whoever had no lines of its own left took others', a group at a time.
        assert sum(len(names) == 1 for names in at.values()) > 0.7 * groups
        assert {backend for names in at.values() for backend in names} == set(NAMES)


async def test_a_prefix_that_all_lines_share_keeps_every_backend_busy(tmp_path: Path) -> None:
    async with rig(tmp_path, HOLDING) as it:
        key = it.open(it.workers()[0], [5] * 40, number=0)
        for backend in it.backends.values():
            await backend.wait_until(min_held=8)
        for backend in it.backends.values():
            await backend.stop_holding()
        assert (await it.events.release(key)).settled


async def test_where_there_is_room_for_all_weights_say_how_much_goes_where(tmp_path: Path) -> None:
    async with rig(tmp_path, HOLDING, max_in_flight=60, weights=(3, 2, 1)) as it:
        key = it.open(it.workers()[0], [0] * 48, number=0)
        for backend, part in zip(it.backends.values(), (24, 16, 8), strict=True):
            assert (await backend.wait_until(min_held=part)).held == part
        for backend in it.backends.values():
            await backend.stop_holding()
        assert (await it.events.release(key)).settled


async def test_a_line_that_failed_at_one_backend_succeeds_at_another(tmp_path: Path) -> None:
    async with rig(tmp_path, Script()) as it:
        failing = it.backends["gpu-b"]
        await failing.set_script(Script(answer=Answer(status=500)))
        key = it.open(it.workers()[0], [0] * 30, number=0)
        assert (await it.events.release(key)).settled
        last = it.events.commits[key][-1]
        assert (last.completed, last.failed) == (30, 0)
        tried = (await failing.log()).attempts()
        assert tried
        assert set(tried.values()) == {1}


async def test_nothing_goes_to_a_drained_backend_and_its_last_answer_makes_it_quiet(
    tmp_path: Path,
) -> None:
    async with rig(tmp_path, HOLDING) as it:
        key = it.open(it.workers()[0], [0] * 60, number=0)
        for backend in it.backends.values():
            await backend.wait_until(min_held=8)
        drained = it.backends["gpu-c"]
        it.executor.admission.set_drained("gpu-c", drained=True)
        for backend in it.backends.values():
            await backend.release()
        standing = it.executor.standings()[2]
        async with asyncio.timeout(SOON_S):
            while not standing.quiet:
                assert standing.waits is not None
                await asyncio.sleep(0.01)
                standing = it.executor.standings()[2]
        for name in ("gpu-a", "gpu-b"):
            await it.backends[name].wait_until(min_arrivals=16)
        stats = await drained.stats()
        assert (stats.arrivals, stats.in_flight) == (8, 0)
        it.executor.admission.set_drained("gpu-c", drained=False)
        await drained.wait_until(min_held=8)
        for backend in it.backends.values():
            await backend.stop_holding()
        assert (await it.events.release(key)).settled
