"""Listing: pages of the list and one batch, with 100,000 batches in the database and with 100.

Both servers run at once and are asked in turn, so that whatever else the machine does happens to
both. Their databases are filled before they start, in the store's own schema and tables.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from sqlalchemy import insert

from batchline.cli.data_directory import DataDirectory
from batchline.domain import ids
from batchline.domain.ids import DEFAULT_PROJECT, BatchId
from batchline.domain.lifecycle import BatchStatus
from batchline.domain.model import DAY_S
from batchline.store import rows, tables
from batchline.store.contract import NewBatch
from batchline.store.engine import open_engine, sqlite_url
from batchline.store.schema import migrate
from bench.report import Floor, Measurement, Row, Table, percentile
from bench.rig import Api, Rig

FEW: Final = 100
MANY: Final = 100_000
ROUNDS: Final = 500
MOST_OF_FEW: Final = 1.5
_PAGE: Final = 20
_DEEP: Final = 0.75  # of the list, newest first, lies before the deep page
_AT_ONCE: Final = 1_000
_BEGAN: Final = 1_750_000_000
_SEED: Final = 7


def measure(rig: Rig) -> Measurement:
    """The same calls to both servers, in turn."""
    sizes = [FEW, rig.size.lines(MANY, least=2 * FEW)]
    with ExitStack() as servers:
        calls = {}
        for batches in sizes:
            name = f"listing-{batches}"
            known = _filled(rig.work / name / "data", batches)
            fresh = servers.enter_context(rig.with_fresh_server(name))
            calls[batches] = _calls(servers.enter_context(fresh.api()), known)
        took = _in_turn(calls, rig.size.lines(ROUNDS, least=10))
    few, many = (took[batches] for batches in sizes)
    ratios = {call: percentile(many[call], 50) / percentile(few[call], 50) for call in few}
    table: list[Row] = [
        {
            "call": call,
            f"p50 ms, {sizes[0]:,} batches": percentile(few[call], 50),
            "p99 ms": percentile(few[call], 99),
            f"p50 ms, {sizes[1]:,} batches": percentile(many[call], 50),
            "p99 ms ": percentile(many[call], 99),
            "ratio of p50": ratios[call],
        }
        for call in few
    ]
    return Measurement(
        tables=[Table(f"Pages of {_PAGE} and one batch, {len(few['get']):,} calls each", table)],
        floors=[
            Floor(f"{call}: time with many batches / with {FEW}", ratio, at_most=MOST_OF_FEW)
            for call, ratio in ratios.items()
        ],
        raw={"batches": sizes, "ms": {str(batches): took[batches] for batches in sizes}},
    )


def _calls(api: Api, known: list[BatchId]) -> dict[str, Callable[[], object]]:
    """`known` is newest first."""
    deep = known[round(len(known) * _DEEP) - 1]
    first, after = known[:_PAGE], known[known.index(deep) + 1 :][:_PAGE]
    return {
        "first page": lambda: _page(api, f"/v1/batches?limit={_PAGE}", first),
        "deep page": lambda: _page(api, f"/v1/batches?limit={_PAGE}&after={deep}", after),
        "get": lambda: api.get(f"/v1/batches/{deep}"),
    }


def _page(api: Api, path: str, expected: list[BatchId]) -> None:
    found = [one["id"] for one in api.get(path)["data"]]
    if found != expected:
        raise RuntimeError(f"{path}: {found} and not {expected}")


def _in_turn(
    calls: Mapping[int, Mapping[str, Callable[[], object]]], rounds: int
) -> dict[int, dict[str, list[float]]]:
    """Milliseconds of each call, by the number of batches."""
    took: dict[int, dict[str, list[float]]] = {
        batches: {call: [] for call in of_server} for batches, of_server in calls.items()
    }
    for _ in range(rounds):
        for batches, of_server in calls.items():
            for name, call in of_server.items():
                began = time.perf_counter()
                call()
                took[batches][name].append((time.perf_counter() - began) * 1e3)
    return took


def _filled(data: Path, batches: int) -> list[BatchId]:
    """Make a data directory with so many completed batches; their ids, newest first."""
    seeded = random.Random(_SEED)  # noqa: S311  # ids that differ, not secrets
    directory = DataDirectory.take(data)
    engine = open_engine(sqlite_url(directory.database))
    try:
        migrate(engine)
        values = [_completed(number, seeded) for number in range(batches)]
        with engine.begin() as connection:
            for start in range(0, batches, _AT_ONCE):
                connection.execute(insert(tables.batch), values[start : start + _AT_ONCE])
    finally:
        engine.dispose()
        directory.release()
    return [BatchId(str(one["id"])) for one in reversed(values)]


def _completed(number: int, seeded: random.Random) -> dict[str, object]:
    """The row of a batch that completed, with what a caller usually gives it."""
    at = _BEGAN + number
    new = NewBatch(
        id=ids.batch_id(at, seeded.randbytes(ids.RANDOM_BYTES)),
        project_id=DEFAULT_PROJECT,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        input_file_id=ids.file_id(seeded.randbytes(ids.RANDOM_BYTES)),
        created_at=at,
        expires_at=at + DAY_S,
        metadata={"job": f"nightly-{number}", "owner": "evaluation", "stage": "production"},
        output_expires_after_s=None,
    )
    return {
        **rows.new_batch_values(new),
        "status": BatchStatus.COMPLETED.value,
        **{f"{status}_at": at + 1 for status in ("in_progress", "finalizing", "completed")},
        "model": "bench",
        "output_file_id": ids.file_id(seeded.randbytes(ids.RANDOM_BYTES)),
        "input_bytes": 1_000_000,
        "total": 1_000,
        "completed": 1_000,
        **dict.fromkeys(tables.USAGE_COLUMNS, 100_000),
    }
