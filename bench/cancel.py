"""Cancel at random moments of a running batch, seen by the caller and by the backend.

The backend's stamps are the kernel's, so that a request counts by when it came and not by when a
busy process got around to reading it. The cancels are plain HTTP for the same reason: the 200 is
stamped as it is read from the socket.
"""

from __future__ import annotations

import random
import time
from typing import Final

from bench.report import Floor, Measurement, Row, Table, percentile
from bench.rig import DELAY_S, IN_FLIGHT, Api, Rig

CANCELS: Final = 50
LINES: Final = 20_000
_LEAST_LINES: Final = 4_000  # fewer could be over before a cancel arrives
_POLL_S: Final = 0.002
_SEED: Final = 7


def measure(rig: Rig) -> Measurement:
    """Each cancel has a batch of its own."""
    lines = rig.size.lines(LINES, least=_LEAST_LINES)
    moments = random.Random(_SEED)  # noqa: S311  # a schedule, not a secret
    cancels = max(2, round(CANCELS * min(1.0, rig.size.percent / 100)))
    with rig.with_kernel_stamps() as stamped, stamped.api() as api:
        file_id = stamped.uploaded(lines)
        found = [_cancel(stamped, api, file_id, lines, moments) for _ in range(cancels)]
    rows = [
        _row("the call: 200, gates closed", [one["acknowledged_ms"] for one in found]),
        _row("last request to reach the backend", [one["last_write_ms"] for one in found]),
        _row("`cancelled` seen", [one["cancelled_ms"] for one in found]),
    ]
    late = sum(one["arrivals_after_200"] for one in found)
    title = f"{cancels} cancels of {lines:,} lines, {IN_FLIGHT} in flight: ms since the call"
    return Measurement(
        tables=[Table(title, rows)],
        floors=[Floor("requests that reached the backend after the 200", late, at_most=0)],
        raw={"lines": lines, "cancels": found},
    )


def _row(what: str, values: list[float]) -> Row:
    return {
        "until": what,
        "median": percentile(values, 50),
        "p99": percentile(values, 99),
        "most": max(values),
    }


def _cancel(
    rig: Rig, api: Api, file_id: str, lines: int, moments: random.Random
) -> dict[str, float]:
    backend = rig.backend
    moment = moments.randint(1, lines // 2)
    backend.reset(DELAY_S)
    batch = rig.create(file_id)
    while backend.stats().arrivals < moment:
        time.sleep(_POLL_S)
    called_ns = time.time_ns()
    api.call("POST", f"/v1/batches/{batch.id}/cancel")
    told_ns = time.time_ns()
    rig.wait(batch.id, "cancelled", lines=lines, poll_s=_POLL_S)
    cancelled_ns = time.time_ns()
    seen = backend.stats(after_ns=told_ns)
    if seen.in_flight:
        raise RuntimeError(f"{seen.in_flight} requests are in flight after `cancelled`")
    if seen.unstamped:
        raise RuntimeError("the kernel did not stamp every request")
    return {
        "after_arrivals": moment,
        "acknowledged_ms": (told_ns - called_ns) / 1e6,
        "last_write_ms": (seen.last_arrival_ns - called_ns) / 1e6,
        "cancelled_ms": (cancelled_ns - called_ns) / 1e6,
        "arrivals_after_200": seen.arrivals_after,
    }
