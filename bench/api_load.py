"""The API while a batch runs at full speed: latencies at a steady rate of calls.

The calls come on a schedule and each latency counts from the scheduled moment, so that a slow
answer is not hidden by the calls that it held up.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Final

from bench.inputs import write_input
from bench.report import Measurement, Row, Table, percentile
from bench.rig import DELAY_S, Api, Rig

LINES: Final = 200_000
CALLS_PER_S: Final = 50
_IDLE_CALLS: Final = 250

Latencies = dict[str, list[float]]


def measure(rig: Rig) -> Measurement:
    """The same calls to an idle server and to one that dispatches."""
    lines = rig.size.lines(LINES)
    file_id = rig.uploaded(lines)
    idle_calls = rig.size.lines(_IDLE_CALLS, least=10)
    with rig.api() as api:
        known = rig.create(rig.uploaded(1)).id  # one line: over at once
        rig.wait(known, "completed", lines=1)
        idle = _calls(rig, api, known, more=lambda made: made < idle_calls)
        rig.backend.reset(DELAY_S)
        batch_id = rig.create(file_id).id
        rig.wait(batch_id, "in_progress", "completed", lines=lines)
        loaded = _calls(rig, api, batch_id, more=lambda _: rig.backend.stats().answered < lines)
        rig.completed(batch_id, lines)
    rows: list[Row] = [
        {
            "call": name,
            "calls": len(loaded[name]),
            "idle p50 ms": percentile(idle[name], 50),
            "idle p99 ms": percentile(idle[name], 99),
            "loaded p50 ms": percentile(loaded[name], 50),
            "loaded p99 ms": percentile(loaded[name], 99),
            "loaded most ms": max(loaded[name]),
        }
        for name in idle
    ]
    return Measurement(
        tables=[Table(f"API at {CALLS_PER_S} calls/s while {lines:,} lines run", rows)],
        raw={"lines": lines, "idle_ms": idle, "loaded_ms": dict(loaded)},
    )


def _calls(rig: Rig, api: Api, batch_id: str, *, more: Callable[[int], bool]) -> Latencies:
    """Call the routes in turn, each at least once; latencies in milliseconds by route."""
    small = rig.work / "small.jsonl"
    write_input(small, 4)
    routes: list[tuple[str, Callable[[], object]]] = [
        ("GET batch", lambda: api.call("GET", f"/v1/batches/{batch_id}")),
        ("GET batches", lambda: api.call("GET", "/v1/batches?limit=20")),
        ("GET models", lambda: api.call("GET", "/v1/models")),
        ("GET ready", lambda: api.call("GET", "/healthz/ready")),
        ("POST file", lambda: api.upload(small)),
    ]
    found: Latencies = defaultdict(list)
    began = time.perf_counter()
    made = 0
    while made < len(routes) or more(made):
        due = began + made / CALLS_PER_S
        time.sleep(max(0.0, due - time.perf_counter()))
        name, call = routes[made % len(routes)]
        call()
        found[name].append((time.perf_counter() - due) * 1e3)
        made += 1
    return found
