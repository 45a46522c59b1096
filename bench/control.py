"""The control process alone: what its work for a shard, a group of commits and a batch costs.

Workers that cost nothing and answer nothing (`puppet_worker.py`) stand in for those that dispatch,
so that what is left is the store, the scheduler and the messages: what all workers share. Beside it
stands what SQLite itself takes for a transaction of one row that is durable when it ends: for a
line nothing is to be done, and for a shard and for a group of commits at least one of those.
"""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from bench.report import Measurement, Row, Table, spread
from bench.rig import Rig

RUNS: Final = 5
_TRANSACTIONS: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    """So many batches of so many lines, whose results come in groups of so many."""

    name: str
    batches: int
    lines: int
    group_lines: int
    in_each: bool  # are the batches of a smaller size smaller, or fewer?


_SHAPES: Final = (
    _Shape(
        name="one batch, results in groups of 3,000",
        batches=1,
        lines=300_000,
        group_lines=3_000,
        in_each=True,
    ),
    _Shape(
        name="one batch, results in groups of 250",
        batches=1,
        lines=60_000,
        group_lines=250,
        in_each=True,
    ),
    _Shape(
        name="batches of 100 lines, all at once",
        batches=200,
        lines=100,
        group_lines=3_000,
        in_each=False,
    ),
)


class _Ran(msgspec.Struct):
    cpu_s: float
    wall_s: float


def measure(rig: Rig) -> Measurement:
    """Every shape in turn, and SQLite alone."""
    ran: dict[str, list[float]] = {shape.name: [] for shape in _SHAPES}
    bare: list[float] = []
    sizes = {shape.name: _size(rig, shape) for shape in _SHAPES}
    for run in range(rig.size.times(RUNS)):
        bare.append(_bare_transaction_s(rig.work))
        for shape in _SHAPES:
            batches, lines = sizes[shape.name]
            ran[shape.name].append(_control_alone(rig.work, shape, batches, lines).cpu_s)
        rig.say(f"run {run + 1}: " + ", ".join(f"{n}: {t[-1]:.2f} s" for n, t in ran.items()))
    rows: list[Row] = []
    for name, (batches, lines) in sizes.items():
        rows.append(
            {
                "what": name,
                "batches": batches,
                "lines of each": lines,
                "CPU us a line": spread(ran[name], 1e6 / (batches * lines)),
                "CPU ms a batch": spread(ran[name], 1e3 / batches),
            }
        )
    return Measurement(
        tables=[
            Table("The control process alone", rows),
            Table(
                "A durable transaction of one row",
                [{"what": "SQLite alone", "CPU us": spread(bare, 1e6)}],
            ),
        ],
        raw={"cpu_s": ran, "sizes": sizes, "bare_transaction_s": bare},
    )


def _size(rig: Rig, shape: _Shape) -> tuple[int, int]:
    if shape.in_each:
        return shape.batches, rig.size.lines(shape.lines, 1_000)
    return rig.size.lines(shape.batches, 2), shape.lines


def _control_alone(work: Path, shape: _Shape, batches: int, lines: int) -> _Ran:
    with tempfile.TemporaryDirectory(prefix="control-", dir=work) as directory:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "bench.control_alone", "--directory", directory),
                *("--batches", str(batches), "--lines", str(lines)),
                *("--group-lines", str(shape.group_lines)),
            ],
            check=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # its log
        )
    return msgspec.json.decode(done.stdout, type=_Ran)


def _bare_transaction_s(work: Path) -> float:
    """CPU seconds of one, by the driver alone."""
    with tempfile.TemporaryDirectory(prefix="bare-", dir=work) as directory:
        connection = sqlite3.connect(Path(directory) / "database", isolation_level=None)
        for statement in (
            "PRAGMA journal_mode = WAL",
            "PRAGMA synchronous = FULL",
            "CREATE TABLE one (number INTEGER PRIMARY KEY, settled BLOB)",
            "INSERT INTO one VALUES (1, zeroblob(125))",
        ):
            connection.execute(statement).close()
        began = time.thread_time()
        for number in range(_TRANSACTIONS):
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("UPDATE one SET settled = ?", (number.to_bytes(125, "big"),))
            connection.execute("COMMIT")
        used = time.thread_time() - began
        connection.close()
    return used / _TRANSACTIONS
