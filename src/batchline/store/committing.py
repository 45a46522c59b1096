"""Shards: claimed, fenced, and committed to. Here is decided what counts as done.

Each function that writes locks the rows of the batches concerned first, ascending (`tables.py`),
and so decides on values that nobody changes before it has written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    RowMapping,
    bindparam,
    insert,
    select,
    update,
)

from batchline.domain import bitmap, lifecycle
from batchline.domain.ids import BatchId, BlobName
from batchline.domain.lifecycle import BatchStatus
from batchline.domain.model import BlobRange, Shard, ShardCommit, ShardKey
from batchline.domain.pending import PendingShards
from batchline.store import references, rows
from batchline.store.tables import (
    ERROR,
    OUTPUT,
    USAGE_COLUMNS,
    batch,
    partial_commit,
    segment_commit,
    shard,
)

_COUNTERS = ("completed", "failed", *USAGE_COLUMNS)
_BYTES = {OUTPUT: "output_bytes", ERROR: "error_bytes"}
_GROWING = (*_COUNTERS, "calls_saved", *_BYTES.values())  # of a batch; its shards have the first


def _has_unsettled_lines() -> ColumnElement[bool]:
    """As counts and not as bits: `commit` lets no shard in whose two do not agree."""
    return shard.c.completed + shard.c.failed < shard.c.entries


def pending(connection: Connection, batch_id: BatchId) -> PendingShards:
    found = connection.execute(_PENDING, {"of_batch": batch_id})
    return PendingShards((row.number, row.model, row.deaths) for row in found)


def bitmaps(connection: Connection, batch_id: BatchId) -> list[tuple[int, int, bytes]]:
    query = (
        select(shard.c.first_entry, shard.c.entries, shard.c.settled)
        .join(batch, batch.c.sequence == shard.c.batch_sequence)
        .where(batch.c.id == batch_id, _has_unsettled_lines())
        .order_by(shard.c.number)
    )
    return [
        (first, entries, bytes(settled) if any(settled) else b"")
        for first, entries, settled in connection.execute(query)
    ]


def partials(connection: Connection, batch_id: BatchId) -> list[BlobRange]:
    query = (
        select(partial_commit)
        .join(batch, batch.c.sequence == partial_commit.c.batch_sequence)
        .where(batch.c.id == batch_id)
        .order_by(partial_commit.c.sequence)
    )
    return [rows.range_of(row) for row in connection.execute(query).mappings()]


def claim(connection: Connection, key: ShardKey) -> Shard | None:
    sequence = connection.execute(_OPEN_GATE, {"of_batch": key.batch_id}).scalar_one_or_none()
    if sequence is None:
        return None
    this_shard = {"in_batch": sequence, "with_number": key.number}
    if connection.execute(_CLAIM, this_shard).rowcount == 0:
        return None
    row = connection.execute(_SHARD, this_shard).mappings().one()
    return rows.shard_of(key.batch_id, row)


def fence(connection: Connection, keys: Sequence[ShardKey], *, died: bool) -> None:
    batches = _lock_batches(connection, keys)
    fenced = [
        {"in_batch": batches[key.batch_id]["sequence"], "with_number": key.number}
        for key in set(keys)
        if key.batch_id in batches
    ]
    if fenced:
        connection.execute(
            update(shard)
            .where(
                shard.c.batch_sequence == bindparam("in_batch"),
                shard.c.number == bindparam("with_number"),
            )
            .values(epoch=shard.c.epoch + 1, deaths=shard.c.deaths + int(died)),
            fenced,
        )


def _lock_batches(connection: Connection, keys: Iterable[ShardKey]) -> dict[str, RowMapping]:
    """The batches of `keys` by id, locked until the transaction ends."""
    ids = sorted({key.batch_id for key in keys})
    return {row["id"]: row for row in connection.execute(_LOCK, {"ids": ids}).mappings()}


@dataclass(slots=True)
class _Shard:
    """What the store knows of one shard, brought forward by each commit of a group."""

    batch_sequence: int
    number: int
    entries: int
    epoch: int
    settled: bytes
    counters: dict[str, int]


@dataclass(slots=True)
class _Accepted:
    """What the accepted commits of one group add up to, written at the end all at once."""

    shards: dict[ShardKey, _Shard] = field(default_factory=dict)
    growth: dict[int, dict[str, int]] = field(default_factory=dict)  # by batch sequence
    ranges: list[dict[str, Any]] = field(default_factory=list)  # rows of segment_commit
    partials: list[dict[str, Any]] = field(default_factory=list)  # rows of partial_commit
    segment_ends: dict[BlobName, int] = field(default_factory=dict)
    holders: set[tuple[BlobName, str]] = field(default_factory=set)


def commit(
    connection: Connection, worker: str, commits: Sequence[ShardCommit], *, now: int
) -> list[bool]:
    """Accept or refuse each commit of a group; see `Store.commit`."""
    keys = [one.key for one in commits]
    batches = _lock_batches(connection, keys)
    stored = _load_shards(connection, keys, batches)
    accepted = _Accepted()
    answers = []
    for one in commits:
        state = stored.get(one.key)
        if state is None or not _may_commit(batches[one.key.batch_id], state, one):
            answers.append(False)
            continue
        answers.append(True)
        if one.settled != state.settled:
            _accept(accepted, state, one, worker, batches[one.key.batch_id])
        # Else it settles nothing that is not settled: the same commit sent again because its answer
        # was lost. Its ranges are there already, and once more would double their lines.
        if one.partials is not None:
            # Of lines that stay unsettled, so no bit tells whether it was here before. Twice is as
            # good as once: the error file takes the last record of a line.
            accepted.partials.append(
                {"batch_sequence": state.batch_sequence, **rows.range_values(one.partials)}
            )
            _hold(accepted, one.partials, one.key.batch_id, worker)
    _write(connection, accepted, worker, now=now)
    return answers


def _load_shards(
    connection: Connection, keys: Iterable[ShardKey], batches: Mapping[str, RowMapping]
) -> dict[ShardKey, _Shard]:
    ids: dict[int, BatchId] = {}
    numbers: dict[int, set[int]] = {}
    for key in keys:
        if key.batch_id in batches:
            sequence = batches[key.batch_id]["sequence"]
            ids[sequence] = key.batch_id
            numbers.setdefault(sequence, set()).add(key.number)
    # One query for all batches of whom the same numbers are wanted, as of many small ones: for
    # pairs, (batch, number) IN (…), SQLite would read the whole table. No lock: whoever writes a
    # shard holds its batch, as we do.
    alike: dict[tuple[int, ...], list[int]] = {}
    for sequence, some in numbers.items():
        alike.setdefault(tuple(sorted(some)), []).append(sequence)
    found = {}
    for wanted, sequences in alike.items():
        values = {"in_batches": sequences, "with_numbers": wanted}
        for row in connection.execute(_SHARDS, values).mappings():
            key = ShardKey(batch_id=ids[row["batch_sequence"]], number=row["number"])
            found[key] = _Shard(
                batch_sequence=row["batch_sequence"],
                number=row["number"],
                entries=row["entries"],
                epoch=row["epoch"],
                settled=bytes(row["settled"]),
                counters={name: row[name] for name in _COUNTERS},
            )
    return found


def _may_commit(in_batch: RowMapping, state: _Shard, one: ShardCommit) -> bool:
    """Whether the worker still has the right, and takes nothing back that was settled.

    Raises:
        ValueError: bits and counts of the commit do not agree: a defect of the worker, which would
            make lines disappear. Not a refusal, after which the worker would do the same again.
    """
    sizes = {len(one.settled), len(one.failed_lines), len(state.settled)}
    if one.saved_lines:
        sizes.add(len(one.saved_lines))
    if len(sizes) != 1 or bitmap.count(one.settled) != one.completed + one.failed:
        raise ValueError(f"commit to {one.key} under epoch {one.epoch}: counts and bits differ")
    return (
        one.epoch == state.epoch
        and BatchStatus(in_batch["status"]) not in lifecycle.TERMINAL
        and bitmap.contains(one.settled, state.settled)
    )


def _accept(
    accepted: _Accepted, state: _Shard, one: ShardCommit, worker: str, in_batch: RowMapping
) -> None:
    after = {
        "completed": one.completed,
        "failed": one.failed,
        **rows.usage_values(one.usage),
    }
    more = {name: after[name] - state.counters[name] for name in _COUNTERS}
    growth = accepted.growth.setdefault(state.batch_sequence, dict.fromkeys(_GROWING, 0))
    for name in _COUNTERS:
        growth[name] += more[name]
    fresh = bitmap.without(one.settled, state.settled)
    failed = bitmap.common(fresh, one.failed_lines)
    if bitmap.count(failed) != more["failed"]:
        raise ValueError(f"commit to {one.key} under epoch {one.epoch}: not the lines that failed")
    saved = bitmap.common(fresh, one.saved_lines) if one.saved_lines else bytes(len(fresh))
    growth["calls_saved"] += bitmap.count(saved)
    state.settled = bytes(one.settled)
    state.counters = after
    accepted.shards[one.key] = state
    # Only successful lines have usage, so that of the group is the output's.
    usage = {name: more[name] for name in USAGE_COLUMNS}
    none = dict.fromkeys(USAGE_COLUMNS, 0)
    for kind, part, lines, used in (
        (OUTPUT, one.output, bitmap.without(fresh, failed), usage),
        (ERROR, one.errors, failed, none),
    ):
        if part is not None:
            accepted.ranges.append(
                {
                    "batch_sequence": state.batch_sequence,
                    "kind": kind,
                    **rows.range_values(part),
                    "begin": in_batch[_BYTES[kind]] + growth[_BYTES[kind]],
                    # What is to be taken back should the range be damaged; see `repairing.py`.
                    "shard_number": state.number,
                    "lines": bitmap.packed(lines),
                    "calls_saved": bitmap.count(bitmap.common(lines, saved)),
                    **used,
                }
            )
            growth[_BYTES[kind]] += part.stop - part.start
            _hold(accepted, part, one.key.batch_id, worker)


def _hold(accepted: _Accepted, part: BlobRange, batch_id: BatchId, worker: str) -> None:
    """The segment is needed by the batch, and by the worker that still writes to it."""
    end = accepted.segment_ends.get(part.blob, 0)
    accepted.segment_ends[part.blob] = max(end, part.stop)
    accepted.holders |= {(part.blob, batch_id), (part.blob, references.worker_holder(worker))}


def _write(connection: Connection, accepted: _Accepted, worker: str, *, now: int) -> None:
    if accepted.shards:
        _write_shards(connection, accepted.shards.values())
        _write_growth(connection, accepted.growth)
    if accepted.ranges:
        connection.execute(_INSERT_RANGES, accepted.ranges)
    if accepted.partials:
        connection.execute(_INSERT_PARTIALS, accepted.partials)
    if not accepted.segment_ends:
        return
    references.register_segments(connection, accepted.segment_ends, now=now)
    references.take(connection, sorted(accepted.holders))
    # A worker has one segment open: a new one means that it is done with the one before, whose
    # bytes may go with the last file that has some of them.
    references.drop_held_by(
        connection, [references.worker_holder(worker)], but=sorted(accepted.segment_ends)
    )


def _write_shards(connection: Connection, shards: Iterable[_Shard]) -> None:
    connection.execute(
        _WRITE_SHARD,
        [
            {
                "in_batch": state.batch_sequence,
                "with_number": state.number,
                "new_settled": state.settled,
                **{f"new_{name}": state.counters[name] for name in _COUNTERS},
            }
            for state in shards
        ],
    )


def _write_growth(connection: Connection, growth: dict[int, dict[str, int]]) -> None:
    connection.execute(
        _GROW,
        [
            {"of_batch": sequence, **{f"more_{name}": more[name] for name in _GROWING}}
            for sequence, more in growth.items()
        ],
    )


# Made once: to put a statement together takes SQLAlchemy ten times as long as to execute it, and
# these are those of every shard and every group of commits.
_THIS_SHARD: Final = (
    shard.c.batch_sequence == bindparam("in_batch"),
    shard.c.number == bindparam("with_number"),
)
_PENDING: Final = (
    select(shard.c.number, shard.c.model, shard.c.deaths)
    .join(batch, batch.c.sequence == shard.c.batch_sequence)
    .where(batch.c.id == bindparam("of_batch"), _has_unsettled_lines())
    .order_by(shard.c.number)
)
# A batch that is IN_PROGRESS has no `stopping`: the schema sees to that. The lock makes a cancel
# beside a claim come wholly before or wholly after it.
_OPEN_GATE: Final = (
    select(batch.c.sequence)
    .where(batch.c.id == bindparam("of_batch"), batch.c.status == BatchStatus.IN_PROGRESS.value)
    .with_for_update()
)
_CLAIM: Final = (
    update(shard).where(*_THIS_SHARD, _has_unsettled_lines()).values(epoch=shard.c.epoch + 1)
)
_SHARD: Final = select(shard).where(*_THIS_SHARD)
_LOCK: Final = (
    select(
        batch.c.id, batch.c.sequence, batch.c.status, *(batch.c[name] for name in _BYTES.values())
    )
    .where(batch.c.id.in_(bindparam("ids", expanding=True)))
    .order_by(batch.c.sequence)
    .with_for_update()
)
_SHARDS: Final = select(shard).where(
    shard.c.batch_sequence.in_(bindparam("in_batches", expanding=True)),
    shard.c.number.in_(bindparam("with_numbers", expanding=True)),
)
_WRITE_SHARD: Final = (
    update(shard)
    .where(*_THIS_SHARD)
    .values({name: bindparam(f"new_{name}") for name in ("settled", *_COUNTERS)})
)
_GROW: Final = (
    update(batch)
    .where(batch.c.sequence == bindparam("of_batch"))
    .values({name: batch.c[name] + bindparam(f"more_{name}") for name in _GROWING})
)
_INSERT_RANGES: Final = insert(segment_commit)
_INSERT_PARTIALS: Final = insert(partial_commit)
