"""Start-up: from the start of a server's process to the first request that it sends.

Each state is written with the store's own functions, taken up by a server, and that server is
killed with `kill -9` while its requests run; the next server on the directory is measured.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from http.client import HTTPException
from pathlib import Path
from statistics import median
from typing import Any, Final

from sqlalchemy import Connection, Select, insert, select
from sqlalchemy import Table as DatabaseTable

from batchline.cli.data_directory import DataDirectory
from batchline.domain import bitmap, ids, plan
from batchline.domain.ids import DEFAULT_PROJECT, BatchId, BlobName
from batchline.domain.lifecycle import BatchEvent, BatchStatus
from batchline.domain.model import (
    DAY_S,
    Batch,
    Blob,
    BlobKind,
    BlobRange,
    File,
    PlannedShard,
    Purpose,
    ShardCommit,
    ShardKey,
    Usage,
)
from batchline.store import batches, committing, files, finalizing, tables
from batchline.store.blobs import LocalBlobs
from batchline.store.contract import FinalFiles, NewBatch
from batchline.store.engine import open_engine, sqlite_url
from batchline.store.schema import migrate
from bench.fast_backend import MODEL
from bench.inputs import CHAT, LINE_BYTES
from bench.processes import anonymous_bytes, cpu_s
from bench.report import Floor, Measurement, Row, Table, spread
from bench.rig import IN_FLIGHT, Rig, common_settings
from tests.support.server import ServerProcess, server

RUNS: Final = 3
MOST_S_MANY: Final = 5.0
MOST_S_ONE: Final = 3.0
MOST_BYTES_A_LINE: Final = 2.0
_ANSWER_S: Final = 0.2
_ENDED_LINES: Final = 100  # of a batch that is over before the start
_AT_ONCE: Final = 1_000
_COPIES_FROM: Final = 2  # sequences of copied rows: behind those of one batch and its two files
_GIVE_UP_S: Final = 120.0
_POLL_S: Final = 0.002
_SEED: Final = 7
_MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class State:
    """What the server finds: batches that run, and others that ended long ago."""

    what: str
    running: int
    lines: int  # of each that runs
    ended: int = 0


@dataclass(frozen=True, slots=True)
class Start:
    """Seconds from the start of the process; CPU and memory of the control process at their end."""

    listening_s: float
    ready_s: float
    first_request_s: float
    cpu_s: float
    anonymous_bytes: int


def measure(rig: Rig) -> Measurement:
    """Every state, several starts each."""
    many, few = rig.size.lines(1_000, least=4), rig.size.lines(10_000, least=4)
    small = State("as many batches, short", many, 10)
    big = State("many batches", many, 10_000)
    one = State("one batch", 1, rig.size.lines(200_000))
    states = [small, big, one, State("many ended", min(many, 50), 10_000, ended=few)]
    starts = {state: _starts(rig, state) for state in states}
    rows: list[Row] = [
        {
            "state": state.what,
            "batches that run": state.running,
            "lines": state.running * state.lines,
            "ended": state.ended,
            "listens, s": spread([start.listening_s for start in found]),
            "ready, s": spread([start.ready_s for start in found]),
            "first request, s": spread([start.first_request_s for start in found]),
            "control, CPU s": spread([start.cpu_s for start in found]),
            "control, MiB": spread([start.anonymous_bytes / _MIB for start in found]),
        }
        for state, found in starts.items()
    ]
    grown = _memory(starts[big]) - _memory(starts[small])
    slope = grown / (big.running * (big.lines - small.lines))
    return Measurement(
        tables=[Table("From the start of the process, after kill -9", rows)],
        floors=[
            Floor("many batches, seconds to the first request", _slowest(starts[big]), MOST_S_MANY),
            Floor("one batch, seconds to the first request", _slowest(starts[one]), MOST_S_ONE),
            Floor("control process at start, bytes a line", slope, MOST_BYTES_A_LINE),
        ],
        raw={state.what: [asdict(start) for start in found] for state, found in starts.items()},
    )


def _slowest(starts: Sequence[Start]) -> float:
    return max(start.first_request_s for start in starts)


def _memory(starts: Sequence[Start]) -> float:
    return median(start.anonymous_bytes for start in starts)


def _starts(rig: Rig, state: State) -> list[Start]:
    folder = rig.work / f"startup-{state.what.replace(' ', '-')}"
    folder.mkdir()
    began = time.perf_counter()
    _write(rig, folder / "data", state)
    rig.say(f"{state.what}: written in {time.perf_counter() - began:.1f} s")
    rig.backend.reset(_ANSWER_S)
    # Of a small run too, some lines have to be left for each of its starts.
    at_once = max(1, min(IN_FLIGHT, state.running * state.lines // 16))
    settings = common_settings(rig.backend, in_flight=at_once)
    starts = []
    with server(folder, settings=settings, fork=False, start=False) as running:
        for _ in range(rig.size.times(RUNS)):
            running.start()
            _work_and_die(rig, running, wanted=at_once)
            starts.append(_start(rig, running))
            running.kill_all()
    return starts


def _work_and_die(rig: Rig, running: ServerProcess, *, wanted: int) -> None:
    """Have `wanted` requests answered and others under way, and kill every process."""
    give_up = time.monotonic() + _GIVE_UP_S
    while (stats := rig.backend.stats()).answered < wanted or not stats.in_flight:
        if time.monotonic() > give_up:
            raise TimeoutError(f"{stats}\n{running.tail()}")
        time.sleep(_POLL_S)
    running.kill_all()
    while running.children():
        time.sleep(_POLL_S)
    rig.backend.reset(_ANSWER_S)


def _start(rig: Rig, running: ServerProcess) -> Start:
    began_ns = time.time_ns()
    running.start(wait=False)
    give_up = time.monotonic() + _GIVE_UP_S
    listening_ns = ready_ns = 0
    while not (ready_ns and rig.backend.stats().arrivals):
        if time.monotonic() > give_up or not running.is_running:
            raise TimeoutError(f"no request was sent:\n{running.tail()}")
        if not listening_ns and running.note is not None:
            listening_ns = time.time_ns()
        if listening_ns and not ready_ns:
            with suppress(OSError, HTTPException):
                ready_ns = time.time_ns() if running.readiness()["status"] == "ready" else 0
        time.sleep(_POLL_S)
    cpu = cpu_s(running.pid)
    first_ns = rig.backend.stats().first_arrival_ns
    return Start(
        listening_s=(listening_ns - began_ns) / 1e9,
        ready_s=(ready_ns - began_ns) / 1e9,
        first_request_s=(first_ns - began_ns) / 1e9,
        cpu_s=cpu,
        anonymous_bytes=anonymous_bytes(running.pid),
    )


# -- the state ---------------------------------------------------------------------------------


class _Writer:
    """Writes rows as a server does, all in one transaction, and the bytes that they speak of.

    Plans of one length are one file under many names: nobody reads more of them for that.
    """

    def __init__(self, connection: Connection, blobs: LocalBlobs, now: int) -> None:
        self._connection = connection
        self._blobs = blobs
        self._now = now
        self._random = random.Random(_SEED)  # noqa: S311  # ids that differ, not secrets
        self._plans: dict[int, Path] = {}

    def _name(self, kind: BlobKind) -> BlobName:
        return BlobName(f"{kind.value}-{self._random.randbytes(16).hex()}")

    def input(self, source: Path) -> File:
        """The file of an upload of `source`."""
        blob = Blob(
            name=self._name(BlobKind.INPUT), kind=BlobKind.INPUT, bytes=source.stat().st_size
        )
        os.link(source, self._blobs.path(blob.name))
        file = File(
            id=ids.file_id(self._random.randbytes(ids.RANDOM_BYTES)),
            project_id=DEFAULT_PROJECT,
            purpose=Purpose.BATCH,
            filename=source.name,
            bytes=blob.bytes,
            created_at=self._now,
            expires_at=self._now + 30 * DAY_S,
        )
        files.create(self._connection, file, blob)
        return file

    def running(self, file: File, lines: int) -> BatchId:
        """A batch of the first `lines` lines of `file` that has just been started."""
        new = NewBatch(
            id=ids.batch_id(self._now, self._random.randbytes(ids.RANDOM_BYTES)),
            project_id=DEFAULT_PROJECT,
            endpoint=CHAT,
            completion_window="24h",
            input_file_id=file.id,
            created_at=self._now,
            expires_at=self._now + DAY_S,
            metadata={"job": "nightly", "owner": "evaluation"},
            output_expires_after_s=None,
        )
        batches.create(self._connection, new)
        shards = [
            PlannedShard(first_entry=first, entries=entries, model=MODEL)
            for first, entries in plan.shard_spans(lines)
        ]
        batches.start(
            self._connection,
            new.id,
            plan=self._plan(lines),
            shards=shards,
            lines=lines,
            model=MODEL,
            skipped=None,
            now=self._now,
        )
        return new.id

    def _plan(self, lines: int) -> Blob:
        blob = Blob(
            name=self._name(BlobKind.PLAN), kind=BlobKind.PLAN, bytes=sum(plan.span(0, lines))
        )
        path = self._blobs.path(blob.name)
        if lines in self._plans:
            os.link(self._plans[lines], path)
        else:
            entries = (
                plan.ENTRY.pack(number * LINE_BYTES, LINE_BYTES - 1, number + 1, 0)
                for number in range(lines)
            )
            path.write_bytes(plan.header() + b"".join(entries))
            self._plans[lines] = path
        return blob

    def ended(self, file: File, count: int) -> None:
        """So many batches that completed, each with an output file: one, and copies of its rows."""
        first = self._complete(self.running(file, _ENDED_LINES))
        rows = {
            table: [dict(row) for row in self._connection.execute(of).mappings()]
            for table, of in _rows_of(first.id, first.output_file_id or "").items()
        }
        for start in range(1, count, _AT_ONCE):
            copies = [self._copy(rows, at) for at in range(start, min(count, start + _AT_ONCE))]
            for table in rows:
                self._connection.execute(
                    insert(table), [row for one in copies for row in one[table]]
                )

    def _complete(self, batch_id: BatchId) -> Batch:
        shard = committing.claim(self._connection, ShardKey(batch_id=batch_id, number=0))
        if shard is None:
            raise RuntimeError("a new shard could not be claimed")
        segment = BlobName(f"{BlobKind.SEGMENT.value}-bench")
        self._blobs.path(segment).write_bytes(bytes(_ENDED_LINES))
        done = bitmap.empty(_ENDED_LINES)
        for index in range(_ENDED_LINES):
            bitmap.mark(done, index)
        commit = ShardCommit(
            key=shard.key,
            epoch=shard.epoch,
            output=BlobRange(blob=segment, start=0, stop=_ENDED_LINES, crc=0),
            errors=None,
            settled=bytes(done),
            completed=_ENDED_LINES,
            failed=0,
            usage=Usage(input_tokens=1, output_tokens=1, total_tokens=2),
            failed_lines=bytes(bitmap.empty(_ENDED_LINES)),
        )
        committing.commit(self._connection, "bench", [commit], now=self._now)
        batches.advance(
            self._connection,
            batch_id,
            from_status=BatchStatus.IN_PROGRESS,
            event=BatchEvent.ALL_LINES_FINISHED,
            now=self._now,
        )
        ended = finalizing.finalize(
            self._connection,
            batch_id,
            from_status=BatchStatus.FINALIZING,
            stopping=None,
            finals=FinalFiles(
                output_id=ids.file_id(self._random.randbytes(ids.RANDOM_BYTES)),
                output_filename=f"{batch_id}_output.jsonl",
                error_id=ids.file_id(self._random.randbytes(ids.RANDOM_BYTES)),
                error_filename=f"{batch_id}_error.jsonl",
                expires_at=self._now + 30 * DAY_S,
                never_run=None,
            ),
            now=self._now,
        )
        if ended is None:
            raise RuntimeError("a batch of which all is settled could not be ended")
        return ended

    def _copy(
        self, rows: Mapping[DatabaseTable, Sequence[Mapping[str, object]]], at: int
    ) -> dict[DatabaseTable, list[dict[str, object]]]:
        """The rows under ids and sequences of their own."""
        batch_id = ids.batch_id(self._now, self._random.randbytes(ids.RANDOM_BYTES))
        output = ids.file_id(self._random.randbytes(ids.RANDOM_BYTES))
        place = _COPIES_FROM + at
        new: dict[DatabaseTable, dict[str, object]] = {
            tables.batch: {"id": batch_id, "sequence": place, "output_file_id": output},
            tables.file: {"id": output, "sequence": place, "filename": f"{batch_id}_output.jsonl"},
            tables.file_range: {"file_sequence": place},
            tables.shard: {"batch_sequence": place},
            tables.blob_reference: {"holder": output},
        }
        return {table: [{**row, **new[table]} for row in some] for table, some in rows.items()}


def _rows_of(batch_id: str, output: str) -> dict[DatabaseTable, Select[Any]]:
    """What a batch that ended has left, table by table; parents first."""
    batch, file = tables.batch, tables.file
    sequence = select(batch.c.sequence).where(batch.c.id == batch_id).scalar_subquery()
    of_file = select(file.c.sequence).where(file.c.id == output).scalar_subquery()
    return {
        batch: select(batch).where(batch.c.id == batch_id),
        tables.shard: select(tables.shard).where(tables.shard.c.batch_sequence == sequence),
        file: select(file).where(file.c.id == output),
        tables.file_range: select(tables.file_range).where(
            tables.file_range.c.file_sequence == of_file
        ),
        tables.blob_reference: select(tables.blob_reference).where(
            tables.blob_reference.c.holder == output
        ),
    }


def _write(rig: Rig, data: Path, state: State) -> None:
    source = rig.input(state.lines)
    directory = DataDirectory.take(data)
    engine = open_engine(sqlite_url(directory.database))
    try:
        migrate(engine)
        blobs = LocalBlobs(directory.blobs)
        with engine.begin() as connection:
            writer = _Writer(connection, blobs, int(time.time()))
            file = writer.input(source)
            if state.ended:
                writer.ended(file, state.ended)
            for _ in range(state.running):
                writer.running(file, state.lines)
    finally:
        engine.dispose()
        directory.release()
