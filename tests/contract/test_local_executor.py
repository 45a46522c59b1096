"""Real workers in child processes against a scripted backend: what the scheduler may rely on."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import pytest

from batchline.domain import bitmap, ids, plan
from batchline.domain.attempts import RetryPolicy
from batchline.domain.ids import BatchId, WorkerId
from batchline.domain.model import Shard, ShardCommit, ShardKey
from batchline.executor import messages as m
from batchline.executor.admission import Admission
from batchline.executor.contract import BackendSettings, CancelBy, Ends, Released, ShardWork
from batchline.executor.framing import frame
from batchline.executor.local import MOST_OPEN, OPEN_SHARDS, LocalExecutor, LocalSettings
from batchline.executor.messages import WorkerSettings
from batchline.executor.supervision import FAILING_DEATHS, SupervisionSettings
from tests.support.inputs import MODEL, line_id, make_lines
from tests.support.scripted_backend import (
    Answer,
    BackendControl,
    Fault,
    Script,
    backend_here,
)

pytestmark = pytest.mark.usefixtures("forked_workers")

SOON_S: Final = 30.0
NEVER_S: Final = 3_600.0
HELD: Final = Script(answer=Answer(hold=True))
ONE: Final = ids.batch_id(1_750_000_000, hashlib.sha256(b"one").digest()[: ids.RANDOM_BYTES])
TWO: Final = ids.batch_id(1_750_000_000, hashlib.sha256(b"two").digest()[: ids.RANDOM_BYTES])


@dataclass(slots=True)
class Recorder:
    """The scheduler's side: says yes to every commit (unless told otherwise) and keeps all."""

    accepts: bool = True
    commits: dict[ShardKey, list[ShardCommit]] = field(default_factory=lambda: defaultdict(list))
    committed_by: dict[ShardKey, set[WorkerId]] = field(default_factory=lambda: defaultdict(set))
    released: dict[ShardKey, Released] = field(default_factory=dict)
    lost: dict[WorkerId, Sequence[ShardKey]] = field(default_factory=dict)
    unreadable: list[ShardKey] = field(default_factory=list)
    closed: list[WorkerId] = field(default_factory=list)
    on_loss: Callable[[], None] = field(default=lambda: None)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def on_commit(self, worker: WorkerId, commits: Sequence[ShardCommit]) -> Sequence[bool]:
        for commit in commits:
            assert commit.key not in self.released, "a commit after the release"
            self.commits[commit.key].append(commit)
            self.committed_by[commit.key].add(worker)
        self._changed.set()
        return [self.accepts] * len(commits)

    async def on_segment_closed(self, worker: WorkerId) -> None:
        self.closed.append(worker)
        self._changed.set()

    async def on_released(self, worker: WorkerId, released: Released) -> None:  # noqa: ARG002  # part of the contract
        self.released[released.key] = released
        self._changed.set()

    async def on_lost(
        self,
        worker: WorkerId,
        held: Sequence[ShardKey],
        *,
        under_way: Mapping[ShardKey, Collection[int]],  # noqa: ARG002  # part of the contract
    ) -> None:
        self.on_loss()
        self.lost[worker] = held
        self._changed.set()

    async def on_input_unreadable(self, key: ShardKey) -> None:
        assert key not in self.released
        self.unreadable.append(key)
        self._changed.set()

    def on_handed(self, key: ShardKey) -> None:  # noqa: ARG002  # part of the contract
        self._changed.set()

    def on_room(self) -> None:
        self._changed.set()

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(SOON_S):
            while not holds():
                self._changed.clear()
                await self._changed.wait()

    async def release(self, key: ShardKey) -> Released:
        """How the shard came back, once it did."""
        await self.until(lambda: key in self.released)
        return self.released[key]

    def completed(self, key: ShardKey) -> int:
        """How many good results of the shard are committed."""
        return self.commits[key][-1].completed if self.commits[key] else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rig:
    """A running executor, what it told, and inputs for it."""

    directory: Path
    executor: LocalExecutor
    events: Recorder
    backend: BackendControl

    @property
    def children(self) -> Path:
        return self.directory / "children"

    def pids(self) -> list[int]:
        return sorted(int(path.name) for path in self.children.iterdir() if path.name.isdigit())

    def workers(self) -> list[WorkerId]:
        return list(dict.fromkeys(room.worker for room in self.executor.rooms()))

    def work(
        self, batch_id: BatchId, lines: int, *, number: int = 0, settled: Sequence[int] = ()
    ) -> ShardWork:
        """A shard that is the whole of an input of `lines` lines, of its own ids."""
        content = make_lines(lines, start=number * 1_000)
        offset, entries = 0, []
        for index, line in enumerate(content.splitlines(keepends=True)):
            entries.append(plan.ENTRY.pack(offset, len(line) - 1, index + 1, 0))
            offset += len(line)
        stem = f"{batch_id}-{number}"
        input_path, plan_path = self.directory / f"{stem}-input", self.directory / f"{stem}-plan"
        input_path.write_bytes(content)
        plan_path.write_bytes(plan.header() + b"".join(entries))
        marks = bitmap.empty(lines)
        for index in settled:
            bitmap.mark(marks, index)
        return ShardWork(
            shard=Shard(
                key=ShardKey(batch_id=batch_id, number=number),
                first_entry=0,
                entries=lines,
                model=MODEL,
                epoch=1,
                settled=bytes(marks),
                completed=len(settled),
            ),
            endpoint="/v1/chat/completions",
            input_path=str(input_path),
            plan_path=str(plan_path),
            backends=["scripted"],
        )

    def open(self, work: ShardWork, *, worker: WorkerId | None = None) -> ShardKey:
        assert self.executor.open_shard(worker or self.workers()[0], work)
        return work.shard.key

    async def all_heard(self, *workers: WorkerId) -> None:
        """The workers have done what they were told so far (messages are obeyed in order)."""
        mark = ids.batch_id(0, secrets.token_bytes(ids.RANDOM_BYTES))
        for number, worker in enumerate(workers):
            self.open(self.work(mark, 1, number=900 + number), worker=worker)
        report = await self.executor.close_gate(mark, grace_s=0, last_s=NEVER_S)
        assert report.killed == []

    def results(self, key: ShardKey) -> dict[str, object]:
        """The committed output lines of a shard as they are on disk, by custom_id."""
        found: dict[str, object] = {}
        for commit in self.events.commits[key]:
            if commit.output is not None:
                path = self.directory / "segments" / commit.output.blob
                data = path.read_bytes()[commit.output.start : commit.output.stop]
                for line in data.splitlines():
                    result = json.loads(line)
                    assert result["custom_id"] not in found
                    found[result["custom_id"]] = result
        return found


@asynccontextmanager
async def rig(
    directory: Path,
    script: Script | None = None,
    *,
    workers: int = 1,
    max_in_flight: int = 8,
    commit_interval_s: float = 0.01,
    ack_s: float = SOON_S,
    silent_s: float = 60.0,
    command: Sequence[str] = (),
    probes: str = "",
    way: CancelBy = CancelBy.CLOSE,
) -> AsyncIterator[Rig]:
    children, segments = directory / "children", directory / "segments"
    children.mkdir()
    segments.mkdir()
    run_child = [sys.executable, "-m", "batchline.cli.worker_child", "--children", str(children)]
    async with backend_here(script) as backend:
        executor = LocalExecutor(
            LocalSettings(
                supervision=SupervisionSettings(
                    workers=workers,
                    command=command or run_child,
                    children=children,
                    worker_prefix="w",
                    silent_s=silent_s,
                ),
                worker=WorkerSettings(
                    worker="",
                    segment_directory=str(segments),
                    backends=[
                        BackendSettings(
                            name="scripted",
                            base_url=backend.base_url,
                            max_in_flight=max_in_flight,
                            cancel=way,
                        )
                    ],
                    retry=RetryPolicy(base_s=0.01),
                    commit_interval_s=commit_interval_s,
                    heartbeat_s=0.2,
                ),
                ack_s=ack_s,
                probes=probes,
            )
        )
        events = Recorder()
        try:
            async with asyncio.timeout(SOON_S):
                await executor.start(events)
            yield Rig(directory=directory, executor=executor, events=events, backend=backend)
        finally:
            await executor.drain(grace_s=0)


def is_gone(pid: int) -> bool:
    """Dead and reaped: a zombie could still be signalled."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


# -- start -----------------------------------------------------------------------------------------


async def test_after_the_start_every_worker_is_recorded_and_has_room(tmp_path: Path) -> None:
    async with rig(tmp_path, workers=2) as it:
        assert it.executor.ready_workers == 2
        assert it.executor.failing is None
        assert [(room.backend, room.shards) for room in it.executor.rooms()] == [
            ("scripted", OPEN_SHARDS)
        ] * 2
        assert len(set(it.workers())) == 2
        pids = it.pids()
        assert len(pids) == 2
    assert all(map(is_gone, pids))
    assert it.pids() == []


async def test_workers_that_do_not_come_up_are_reported_and_the_start_goes_on(
    tmp_path: Path,
) -> None:
    broken = [sys.executable, "-S", "-c", "raise SystemExit(1)"]
    async with rig(tmp_path, workers=FAILING_DEATHS, command=broken) as it:
        assert it.executor.failing is not None
        assert it.executor.ready_workers == 0
        assert it.executor.rooms() == []


# -- shards ----------------------------------------------------------------------------------------


async def test_a_shard_runs_until_every_line_is_committed(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        work = it.work(ONE, 40)
        key = it.open(work)
        assert dict(it.executor.holders(ONE)) == {key: it.workers()[0]}
        (room,) = it.executor.rooms()
        assert (room.shards, room.others, list(room.open)) == (
            OPEN_SHARDS - 1,
            MOST_OPEN - 1,
            [ONE],
        )
        released = await it.events.release(key)
        assert released == Released(key=key, epoch=1, settled=True)
        last = it.events.commits[key][-1]
        assert (last.completed, last.failed, bitmap.count(last.settled)) == (40, 0, 40)
        assert last.usage.total_tokens == 40 * 18
        assert set(it.results(key)) == {line_id(number) for number in range(40)}
        assert dict(it.executor.holders(ONE)) == {}
        assert it.executor.rooms()[0].shards == OPEN_SHARDS
        assert (await it.backend.stats()).arrivals == 40


async def test_heartbeats_tell_of_a_backend_that_answers_and_of_no_other(tmp_path: Path) -> None:
    """Looks at it may be silent meanwhile; what is held answers nothing."""
    held = Script(by_id={"line-0001000": (Answer(hold=True),)}, answer=Answer())
    async with rig(tmp_path, held) as one:
        admission, began = one.executor.admission, time.monotonic()
        assert not admission.has_answered_since("scripted", 0.0)
        one.open(one.work(ONE, 1, number=1))
        await one.all_heard(*one.workers())
        assert not admission.has_answered_since("scripted", 0.0)
        await one.events.release(one.open(one.work(ONE, 1, number=2)))
        async with asyncio.timeout(SOON_S):
            while not admission.has_answered_since("scripted", began):  # noqa: ASYNC110  # see below
                await asyncio.sleep(0.02)  # a heartbeat is told to nobody


async def test_lines_that_were_settled_before_are_not_sent(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        key = it.open(it.work(ONE, 10, settled=[0, 3, 9]))
        assert (await it.events.release(key)).settled
        sent = {event.id for event in (await it.backend.log()).arrivals}
        assert sent == {line_id(number) for number in (1, 2, 4, 5, 6, 7, 8)}
        assert it.events.completed(key) == 10


async def test_a_shard_whose_tail_was_settled_before_comes_back_when_its_last_line_ends(
    tmp_path: Path,
) -> None:
    """Also when nothing could be dispatched then. If this fails, its batch never ends."""
    async with rig(tmp_path, HELD, max_in_flight=3) as it:
        (worker,) = it.workers()
        key = it.open(it.work(ONE, 5, settled=[3, 4]))
        await it.backend.wait_until(min_held=3)
        it.executor.pause("disk_full")
        await it.all_heard(worker)
        await it.backend.stop_holding()
        await it.events.until(lambda: it.events.completed(key) == 5)
        await it.all_heard(worker)  # the answer to that commit, too
        it.executor.resume()
        assert (await it.events.release(key)).settled


async def test_a_shard_to_be_refused_is_settled_and_nothing_is_sent(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        key = it.open(replace(it.work(ONE, 10), refuse="model_not_found"))
        assert (await it.events.release(key)).settled
        last = it.events.commits[key][-1]
        assert (last.completed, last.failed) == (0, 10)
        assert (await it.backend.stats()).arrivals == 0


async def test_a_refused_commit_ends_the_shard_and_its_requests(tmp_path: Path) -> None:
    """Somebody else holds the shard by now."""
    hold = (Answer(hold=True),)
    script = Script(by_id={line_id(number): hold for number in range(2, 10)})
    async with rig(tmp_path, script) as it:
        it.events.accepts = False
        key = it.open(it.work(ONE, 10))
        released = await it.events.release(key)
        assert not released.settled
        await it.backend.wait_until(in_flight=0)
        assert bitmap.count(it.events.commits[key][-1].settled) <= 2


def spoil(work: ShardWork, damage: str) -> None:
    input_path, plan_path = Path(work.input_path), Path(work.plan_path)
    match damage:
        case "truncated input":
            os.truncate(input_path, input_path.stat().st_size // 2)
        case "no input":
            input_path.unlink()
        case "no plan":
            plan_path.unlink()
        case _:
            plan_path.write_bytes(b"x" * plan_path.stat().st_size)


@pytest.mark.parametrize("damage", ["truncated input", "no input", "no plan", "foreign plan"])
async def test_an_unreadable_input_is_reported_before_the_shard_comes_back(
    tmp_path: Path, damage: str
) -> None:
    async with rig(tmp_path) as it:
        work = it.work(ONE, 20)
        spoil(work, damage)
        key = it.open(work)
        released = await it.events.release(key)
        assert not released.settled
        assert it.events.unreadable[0] == key
        assert it.events.lost == {}
        assert it.events.completed(key) == (await it.backend.stats()).answered  # paid for: kept
        assert it.executor.ready_workers == 1


# -- gates -----------------------------------------------------------------------------------------


async def test_after_close_gate_returned_nothing_more_of_the_batch_is_sent(
    tmp_path: Path,
) -> None:
    """Running requests finish within the grace, count, and are not followed by others."""
    async with rig(tmp_path, HELD, workers=2, max_in_flight=8) as it:
        first, second = it.workers()
        keys = [
            it.open(it.work(ONE, 50), worker=first),
            it.open(it.work(ONE, 50, number=1), worker=second),
        ]
        await it.backend.wait_until(min_held=8)
        report = await it.executor.close_gate(ONE, grace_s=SOON_S, last_s=NEVER_S)
        assert (report.in_flight, report.killed) == (8, [])
        assert not it.executor.open_shard(first, it.work(ONE, 5, number=2))
        await it.backend.stop_holding()
        released = [await it.events.release(key) for key in keys]
        assert [(r.settled, r.aborted) for r in released] == [(False, 0)] * 2
        assert sum(r.finished_late for r in released) == 8
        assert sum(map(it.events.completed, keys)) == 8
        other = it.open(it.work(TWO, 10, number=2), worker=first)
        assert (await it.events.release(other)).settled
        assert (await it.backend.stats()).arrivals == 8 + 10


async def test_without_grace_running_requests_are_closed_at_once(tmp_path: Path) -> None:
    async with rig(tmp_path, Script(answer=Answer(fault=Fault.SILENT))) as it:
        key = it.open(it.work(ONE, 50))
        await it.backend.wait_until(min_in_flight=8)
        report = await it.executor.close_gate(ONE, grace_s=0, last_s=NEVER_S)
        assert (report.in_flight, report.killed) == (8, [])
        released = await it.events.release(key)
        assert (released.settled, released.aborted, released.finished_late) == (False, 8, 0)
        assert (await it.backend.wait_until(in_flight=0)).aborted == 8
        assert it.events.commits[key] == []


async def test_lines_that_had_not_begun_when_the_gate_closed_hold_nothing(tmp_path: Path) -> None:
    """Both messages are read in one loop step: the gate closes on slots that have not run yet."""
    async with rig(tmp_path, HELD) as it:
        it.open(it.work(ONE, 2))
        await it.backend.wait_until(min_held=2)  # so that the worker has its permits
        (pid,) = it.pids()
        os.kill(pid, signal.SIGSTOP)
        key = it.open(it.work(TWO, 4))
        closing = asyncio.create_task(it.executor.close_gate(TWO, grace_s=0, last_s=NEVER_S))
        await asyncio.sleep(0)  # now both are written
        os.kill(pid, signal.SIGCONT)
        report = await closing
        assert (report.in_flight, report.killed) == (0, [])
        released = await it.events.release(key)
        assert (released.settled, released.aborted) == (False, 0)
        # Their permits serve others.
        it.open(it.work(ONE, 6, number=1))
        await it.backend.wait_until(min_held=8)


async def test_a_second_call_shortens_the_grace(tmp_path: Path) -> None:
    async with rig(tmp_path, HELD) as it:
        key = it.open(it.work(ONE, 50))
        await it.backend.wait_until(min_held=8)
        await it.executor.close_gate(ONE, grace_s=NEVER_S, last_s=NEVER_S)
        assert key not in it.events.released
        again = await it.executor.close_gate(ONE, grace_s=0, last_s=NEVER_S)
        assert again.killed == []
        assert (await it.events.release(key)).aborted == 8
        assert (await it.executor.close_gate(ONE, grace_s=0, last_s=NEVER_S)).in_flight == 0


async def test_a_worker_that_does_not_acknowledge_is_dead_when_close_gate_returns(
    tmp_path: Path,
) -> None:
    async with rig(tmp_path, HELD, ack_s=0.2) as it:
        key = it.open(it.work(ONE, 50))
        await it.backend.wait_until(min_held=8)
        (worker,), (pid,) = it.executor.holders(ONE).values(), it.pids()
        os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
        report = await it.executor.close_gate(ONE, grace_s=NEVER_S, last_s=NEVER_S)
        assert is_gone(pid)
        assert report.killed == [worker]
        assert 0.2 <= report.acknowledged_s <= time.monotonic() - began < SOON_S / 3
        assert report.in_flight == 0
        await it.events.until(lambda: worker in it.events.lost)
        assert it.events.lost[worker] == [key]
        assert key not in it.events.released
        assert (await it.backend.wait_until(in_flight=0)).arrivals == 8


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who is held up")
async def test_a_worker_that_is_merely_held_up_is_waited_for(tmp_path: Path) -> None:
    """It computes past the time that a silent one has, and then answers."""
    async with rig(tmp_path, HELD, ack_s=0.05, probes="gate.closed=busy") as it:
        key = it.open(it.work(ONE, 50))
        await it.backend.wait_until(min_held=8)
        report = await it.executor.close_gate(ONE, grace_s=0, last_s=NEVER_S)
        assert (report.killed, report.in_flight) == ([], 8)
        assert report.acknowledged_s > 0.4
        assert (await it.events.release(key)).aborted == 8
        assert it.events.lost == {}


async def test_a_fence_kills_whoever_holds_the_batch_and_nobody_else(tmp_path: Path) -> None:
    async with rig(tmp_path, HELD, workers=2) as it:
        holder, other = it.workers()
        key = it.open(it.work(ONE, 50), worker=holder)
        await it.backend.wait_until(min_held=8)
        before = it.pids()
        assert await it.executor.fence(ONE) == [holder]
        assert sum(map(is_gone, before)) == 1
        await it.events.until(lambda: holder in it.events.lost)
        assert dict(it.executor.holders(ONE)) == {}
        assert it.events.lost == {holder: [key]}
        assert other in it.workers()


# -- death -----------------------------------------------------------------------------------------


async def test_a_killed_worker_is_lost_once_it_is_reaped_and_another_goes_on(
    tmp_path: Path,
) -> None:
    """What was committed is not sent again; what was in flight is."""
    hold = (Answer(hold=True),)
    script = Script(by_id={line_id(number): hold for number in range(4, 20)})
    async with rig(tmp_path, script) as it:
        (worker,), (pid,) = it.workers(), it.pids()
        gone_at_loss: list[bool] = []
        it.events.on_loss = lambda: gone_at_loss.append(is_gone(pid))
        work = it.work(ONE, 20)
        key = it.open(work)
        await it.events.until(lambda: it.events.completed(key) == 4)
        await it.backend.wait_until(min_held=8)
        os.kill(pid, signal.SIGKILL)
        await it.events.until(lambda: worker in it.events.lost)
        assert gone_at_loss == [True]
        assert it.events.lost[worker] == [key]
        assert not it.executor.open_shard(worker, work)
        await it.events.until(lambda: it.executor.ready_workers == 1)
        (successor,) = it.workers()
        assert successor != worker
        assert pid not in it.pids()

        await it.backend.stop_holding()
        last = it.events.commits[key][-1]
        again = replace(
            work.shard, epoch=2, settled=last.settled, completed=last.completed, usage=last.usage
        )
        it.open(replace(work, shard=again), worker=successor)
        released = await it.events.release(key)
        assert (released.epoch, released.settled) == (2, True)
        assert it.events.completed(key) == 20
        assert set(it.results(key)) == {line_id(number) for number in range(20)}
        attempts = (await it.backend.log()).attempts()
        assert [attempts[line_id(number)] for number in range(20)] == [1] * 4 + [2] * 8 + [1] * 8


async def test_a_silent_worker_is_killed_also_when_grants_and_trials_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig(tmp_path, silent_s=3.0) as it:
        monkeypatch.setattr(Admission, "tick", lambda _: 1 / 0)
        (worker,), (pid,) = it.workers(), it.pids()
        os.kill(pid, signal.SIGSTOP)
        await it.events.until(lambda: worker in it.events.lost)
        assert is_gone(pid)


# -- permits, pause, drain -------------------------------------------------------------------------


async def test_workers_together_never_have_more_in_flight_than_the_limit(tmp_path: Path) -> None:
    """The first has every permit in use when the second asks for its half."""
    async with rig(tmp_path, HELD, workers=2, max_in_flight=6) as it:
        first, second = it.workers()
        keys = [it.open(it.work(ONE, 80), worker=first)]
        await it.backend.wait_until(min_held=6)
        keys.append(it.open(it.work(ONE, 80, number=1), worker=second))
        await it.all_heard(first, second)
        with pytest.raises(TimeoutError):
            await it.backend.wait_until(min_in_flight=7, timeout_s=0.3)
        # Three of the six end: the second worker gets theirs, and the first no more.
        await it.backend.release(*(line_id(number) for number in range(3)))
        await it.backend.wait_until(min_arrivals=9, in_flight=6)
        log = await it.backend.log()
        assert {event.id for event in log.arrivals[6:]} == {line_id(1_000 + n) for n in range(3)}
        await it.backend.stop_holding()
        for key, worker in zip(keys, (first, second), strict=True):
            assert (await it.events.release(key)).settled
            assert it.events.committed_by[key] == {worker}
        assert (await it.backend.stats()).max_in_flight == 6


async def test_while_paused_nothing_is_dispatched_and_what_runs_goes_on(tmp_path: Path) -> None:
    async with rig(tmp_path, HELD, max_in_flight=4) as it:
        (worker,) = it.workers()
        key = it.open(it.work(ONE, 30))
        await it.backend.wait_until(min_held=4)
        it.executor.pause("disk_full")
        assert it.executor.paused == "disk_full"
        assert it.executor.rooms() == []
        await it.all_heard(worker)
        await it.backend.stop_holding()
        await it.events.until(lambda: it.events.completed(key) == 4)
        assert (await it.backend.stats()).arrivals == 4
        it.executor.resume()
        assert (await it.events.release(key)).settled
        assert it.events.completed(key) == 30


async def test_a_drain_lets_running_requests_end_and_commits_them(tmp_path: Path) -> None:
    async with rig(tmp_path, HELD, workers=2, max_in_flight=4) as it:
        pids, (worker, _) = it.pids(), it.workers()
        key = it.open(it.work(ONE, 30), worker=worker)
        await it.backend.wait_until(min_held=4)
        draining = asyncio.create_task(it.executor.drain(grace_s=SOON_S))
        await asyncio.sleep(0)
        assert it.executor.rooms() == []
        assert not it.executor.open_shard(worker, it.work(TWO, 1))
        # Heard after the drain.
        report = await it.executor.close_gate(ONE, grace_s=SOON_S, last_s=NEVER_S)
        assert (report.in_flight, report.killed) == (4, [])
        await it.backend.stop_holding()
        async with asyncio.timeout(SOON_S):
            await draining
        assert it.events.completed(key) == 4
        released = it.events.released[key]
        assert (released.settled, released.aborted) == (False, 0)
        assert (await it.backend.stats()).arrivals == 4
        assert all(map(is_gone, pids))
        assert it.pids() == []
        assert list(it.events.lost.values()) == [[], []]


async def test_a_drain_closes_past_its_grace_what_is_not_closed_otherwise(tmp_path: Path) -> None:
    async with rig(tmp_path, HELD, way=CancelBy.DRAIN) as it:
        key = it.open(it.work(ONE, 50))
        await it.backend.wait_until(min_held=8)
        await it.executor.drain(grace_s=0)
        assert it.events.released[key].ends == {"scripted": Ends(unanswered=8)}


async def test_a_drain_commits_at_once_what_waits_for_its_interval(tmp_path: Path) -> None:
    """With an hour between commits and no grace."""
    hold = (Answer(hold=True),)
    script = Script(by_id={line_id(number): hold for number in range(6, 20)})
    async with rig(tmp_path, script, max_in_flight=4, commit_interval_s=NEVER_S) as it:
        key = it.open(it.work(ONE, 20))
        await it.backend.wait_until(min_held=4)  # so the worker has read all six answers
        async with asyncio.timeout(SOON_S):
            await it.executor.drain(grace_s=0)
        assert it.events.completed(key) == 6
        assert len(it.results(key)) == 6
        assert it.events.released[key].aborted == 4


# -- when the server is gone -----------------------------------------------------------------------

AT_ONCE: Final = 200
# Its thread does not get to run, as on a busy machine: the event loop sees the end first.
LATE_THREAD: Final = """
from batchline.executor import processes
processes.exit_with_peer = lambda fd: None
from batchline.cli import worker_child
worker_child.main()
"""


@pytest.mark.parametrize(("last_words", "status"), [(b"", 0), (b"\0\0\0\x01?", 1)])
async def test_a_worker_that_ends_sends_nothing_more(
    tmp_path: Path, last_words: bytes, status: int
) -> None:
    """Its server is gone, or speaks in tongues: what it aborts would otherwise be free to be sent
    again, by itself."""
    async with rig(tmp_path, HELD) as it:
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-c", LATE_THREAD, "--children", str(it.children)),
                    *("--fd", str(theirs.fileno())),
                ],
                pass_fds=[theirs.fileno()],
            )
        with ours:
            settings = it.executor._settings.worker
            for message in (
                m.Configure(settings=settings, probes=""),
                m.SetPermits(backend="scripted", permits=AT_ONCE, order=1),
                m.OpenShard(work=it.work(ONE, 1_000)),
            ):
                ours.sendall(frame(message))
            await it.backend.wait_until(min_held=AT_ONCE)
            ours.sendall(last_words)
        assert await asyncio.to_thread(process.wait, SOON_S) == status
        assert (await it.backend.wait_until(in_flight=0)).arrivals == AT_ONCE
