"""An executor in the test's hands: a line is answered, committed, lost when the test says so.

It reads real plans and inputs, writes real segments and speaks the whole of
`executor.contract.Executor`; only processes, sockets and time are missing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import google_crc32c

from batchline.domain import bitmap, ids, plan
from batchline.domain.ids import BatchId, BlobName, WorkerId
from batchline.domain.model import BlobRange, ShardCommit, ShardKey, Usage
from batchline.executor.contract import Ends, ExecutorEvents, GateReport, Released, Room, ShardWork

WORKERS: Final = 2
MOST_SHARDS: Final = 2  # that a worker holds at a time
BACKEND: Final = "backend"
_USAGE: Final = {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
_TOKENS: Final = Usage(input_tokens=2, output_tokens=3, total_tokens=5)


@dataclass
class HeldShard:
    """A shard in a worker's hands: what it settled, and what of that is not committed yet."""

    work: ShardWork
    settled: bytearray
    completed: int
    failed: int
    usage: Usage
    answered: dict[int, bool] = field(default_factory=dict)  # uncommitted: entry -> succeeded

    @classmethod
    def of(cls, work: ShardWork) -> HeldShard:
        shard = work.shard
        return cls(work, bytearray(shard.settled), shard.completed, shard.failed, shard.usage)

    @property
    def key(self) -> ShardKey:
        return self.work.shard.key

    @property
    def in_flight(self) -> list[int]:
        """The entries without an answer, from 0."""
        entries = self.work.shard.entries
        return [i for i in bitmap.clear_indexes(self.settled, entries) if i not in self.answered]

    @property
    def all_settled(self) -> bool:
        return bitmap.count(self.settled) == self.work.shard.entries

    def line(self, entry: int) -> tuple[int, str]:
        """The line's number and custom_id, read as a worker reads it."""
        start, length = plan.span(self.work.shard.first_entry, self.work.shard.entries)
        entries = Path(self.work.plan_path).read_bytes()[start : start + length]
        offset, size, number, _ = plan.ENTRY.unpack_from(entries, entry * plan.ENTRY_BYTES)
        line = json.loads(Path(self.work.input_path).read_bytes()[offset : offset + size])
        return number, line["custom_id"]

    def results(self) -> dict[str, bool]:
        """The uncommitted results by custom_id."""
        return {self.line(entry)[1]: succeeded for entry, succeeded in self.answered.items()}


class Worker:
    """Holds shards and appends to one segment."""

    def __init__(self, name: WorkerId, segments: Path) -> None:
        self.name = name
        self.held: dict[ShardKey, HeldShard] = {}
        self._segment = BlobName(f"segment-{name}-000001")
        self._file = segments / self._segment

    def write(self, shard: HeldShard) -> ShardCommit:
        """Put what was answered into the segment, and what the store is to be told of it."""
        output, errors = self._lines(shard, succeeded=True), self._lines(shard, succeeded=False)
        failed = bitmap.empty(shard.work.shard.entries)
        for entry, succeeded in shard.answered.items():
            bitmap.mark(shard.settled, entry)
            if not succeeded:
                bitmap.mark(failed, entry)
        shard.failed += bitmap.count(failed)
        for _ in range(len(shard.answered) - bitmap.count(failed)):
            shard.completed += 1
            shard.usage += _TOKENS
        shard.answered.clear()
        return ShardCommit(
            key=shard.key,
            epoch=shard.work.shard.epoch,
            output=self._append(output),
            errors=self._append(errors),
            settled=bytes(shard.settled),
            completed=shard.completed,
            failed=shard.failed,
            usage=shard.usage,
            failed_lines=bytes(failed),
        )

    def _lines(self, shard: HeldShard, *, succeeded: bool) -> bytes:
        return b"".join(
            _result(shard, entry, succeeded=succeeded)
            for entry, was in shard.answered.items()
            if was is succeeded
        )

    def _append(self, data: bytes) -> BlobRange | None:
        if not data:
            return None
        with self._file.open("ab") as file:
            start = file.tell()
            file.write(data)
        crc = google_crc32c.value(data)
        return BlobRange(blob=self._segment, start=start, stop=start + len(data), crc=crc)


def _result(shard: HeldShard, entry: int, *, succeeded: bool) -> bytes:
    number, custom_id = shard.line(entry)
    body = {"usage": _USAGE} if succeeded else {"error": {"message": "no"}}
    line = {
        "id": ids.line_id(shard.key.batch_id, number),
        "custom_id": custom_id,
        "response": {"status_code": 200 if succeeded else 400, "request_id": "", "body": body},
        "error": None,
    }
    return json.dumps(line).encode() + b"\n"


class HandExecutor:
    """Implements `service.runner.GateKeeper`. `prefix` is unique per start of the server."""

    def __init__(self, segments: Path, prefix: str) -> None:
        self._segments = segments
        self._prefix = prefix
        self._started = 0
        self._closed: set[BatchId] = set()
        self._draining = False
        self._events: ExecutorEvents | None = None
        self.workers: list[Worker] = []
        self.late: list[tuple[WorkerId, ShardCommit]] = []  # of workers that are dead
        self.opened: Counter[str] = Counter()  # how often a shard of a batch was handed out
        self.accepted: list[tuple[WorkerId, ShardCommit]] = []

    @property
    def events(self) -> ExecutorEvents:
        assert self._events is not None
        return self._events

    # -- what the test does ----------------------------------------------------------------

    def shards(self) -> Iterator[tuple[Worker, HeldShard]]:
        """Every held shard, in an order that does not depend on ids."""
        for worker in self.workers:
            for shard in worker.held.values():
                yield worker, shard

    def holds(self, batch_id: str) -> bool:
        return bool(self.holders(BatchId(batch_id)))

    def is_closed(self, batch_id: BatchId) -> bool:
        return batch_id in self._closed

    async def commit(self, worker: Worker, shards: Sequence[HeldShard]) -> Sequence[bool]:
        """Commit what these shards of one worker have, in one group; settled ones go back."""
        commits = [worker.write(shard) for shard in shards]
        accepted = await self.events.on_commit(worker.name, commits)
        for shard, commit, ok in zip(shards, commits, accepted, strict=True):
            if ok:
                self.accepted.append((worker.name, commit))
            if not ok or shard.all_settled:
                await self._release(worker, shard, settled=ok)
        return accepted

    async def let_go(self, batch_id: BatchId) -> None:
        """The grace is over: commit what was answered, abort the rest, give the shards back."""
        for worker, shard in list(self.shards()):
            if shard.key.batch_id == batch_id:
                aborted = len(shard.in_flight)
                if shard.answered:
                    await self.commit(worker, [shard])
                if shard.key in worker.held:
                    await self._release(worker, shard, settled=False, aborted=aborted)

    async def lose(self, worker: Worker, *, last_commits: bool) -> None:
        """The worker dies and is reaped; what it had on disk is committed before that, or never."""
        self.workers.remove(worker)
        for shard in list(worker.held.values()):
            if not shard.answered:
                continue
            if last_commits:
                # The link is gone: a shard that is settled now does not come back by itself.
                commit = worker.write(shard)
                if all(await self.events.on_commit(worker.name, [commit])):
                    self.accepted.append((worker.name, commit))
            else:
                self.late.append((worker.name, worker.write(shard)))
        if not self._draining:
            self._start_worker()
        await self.events.on_lost(worker.name, list(worker.held), under_way={})
        self.events.on_room()

    async def deliver(self, worker: WorkerId, commit: ShardCommit) -> bool:
        """Have a commit arrive (again)."""
        return all(await self.events.on_commit(worker, [commit]))

    async def _release(
        self, worker: Worker, shard: HeldShard, *, settled: bool, aborted: int = 0
    ) -> None:
        del worker.held[shard.key]
        epoch = shard.work.shard.epoch
        ends = {BACKEND: Ends(closed=aborted)} if aborted else {}
        await self.events.on_released(
            worker.name, Released(key=shard.key, epoch=epoch, settled=settled, ends=ends)
        )
        self.events.on_room()

    def _start_worker(self) -> None:
        self._started += 1
        self.workers.append(Worker(WorkerId(f"{self._prefix}-{self._started}"), self._segments))

    # -- what the server asks --------------------------------------------------------------

    async def start(self, events: ExecutorEvents) -> None:
        self._events = events
        for _ in range(WORKERS):
            self._start_worker()
        events.on_room()

    def rooms(self) -> Sequence[Room]:
        if self._draining:
            return []
        return [
            Room(worker=worker.name, backend=BACKEND, shards=MOST_SHARDS - len(worker.held))
            for worker in self.workers
            if len(worker.held) < MOST_SHARDS
        ]

    def open_shard(self, worker: WorkerId, work: ShardWork) -> bool:
        key = work.shard.key
        if key.batch_id in self._closed or self._draining:
            return False
        for one in self.workers:
            if one.name == worker:
                one.held[key] = HeldShard.of(work)
                self.opened[key.batch_id] += 1
                return True
        return False

    def serve(self, model: str, backends: Sequence[str], listed_by: Sequence[str]) -> None:
        """There is one backend."""

    def set_quarantine(self, wanted: bool) -> None:
        """No worker says which line it died of, so there is never a suspect."""
        assert not wanted

    def holders(self, batch_id: BatchId) -> Mapping[ShardKey, WorkerId]:
        return {
            shard.key: worker.name
            for worker, shard in self.shards()
            if shard.key.batch_id == batch_id
        }

    async def close_gate(self, batch_id: BatchId, *, grace_s: float, last_s: float) -> GateReport:  # noqa: ARG002  # the test says when it is over
        self._closed.add(batch_id)
        return GateReport(acknowledged_s=0.0, backends=[], killed=[], lets_go_s=grace_s)

    def forget_gate(self, batch_id: BatchId) -> None:
        self._closed.discard(batch_id)

    async def fence(self, batch_id: BatchId) -> Sequence[WorkerId]:
        holders = set(self.holders(batch_id).values())
        for worker in [one for one in self.workers if one.name in holders]:
            if worker in self.workers:  # else it was killed meanwhile, for another batch
                await self.lose(worker, last_commits=False)
        return sorted(holders)

    def pause(self, reason: str) -> None:
        raise NotImplementedError  # the disk of the model is never full

    def resume(self) -> None:
        raise NotImplementedError

    async def drain(self, *, grace_s: float) -> None:  # noqa: ARG002  # as above
        self._draining = True
        for worker, shard in list(self.shards()):
            if shard.answered:
                await self.commit(worker, [shard])
            if shard.key in worker.held:
                await self._release(worker, shard, settled=False)
        for worker in list(self.workers):
            await self.lose(worker, last_commits=True)
