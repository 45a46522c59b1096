"""What the backend saw, told by the backend: the demo's second source beside the files.

Owns reading `GET /stats` of `examples/embeddings_backend` and turning two readings into what
happened between them.
"""

from __future__ import annotations

import time
from typing import Final

import msgspec

from batchline.cli.demo.accounting import Mismatch, Seen
from batchline.cli.demo.children import get

QUIET_S: Final = 5.0
POLL_S: Final = 0.01


class BackendStats(msgspec.Struct, frozen=True, kw_only=True):
    """Requests since the backend started; instants in Unix seconds, None when there was none."""

    received: int
    answered: int
    aborted: int
    in_flight: int
    last_arrival_at: float | None
    quiet_at: float | None


def read_stats(upstream: str) -> BackendStats:
    """The counts of this moment.

    Raises:
        OSError: the backend is gone.
    """
    _, body = get(f"{upstream}/stats")
    return msgspec.json.decode(body, type=BackendStats)


def wait_for_quiet(upstream: str) -> BackendStats:
    """The counts once nothing is in flight.

    To be called when the batch is terminal, so that its connections are closed; the backend may
    still have to read that from its sockets, which takes as long as its event loop is busy.

    Raises:
        Mismatch: something was still in flight after QUIET_S.
    """
    deadline = time.monotonic() + QUIET_S
    while (stats := read_stats(upstream)).in_flight:
        if time.monotonic() > deadline:
            raise Mismatch(
                f"the batch has ended, but {QUIET_S:.0f} s later the backend has {stats}"
            )
        time.sleep(POLL_S)
    return stats


def seen_between(before: BackendStats, after: BackendStats) -> Seen:
    """What arrived and ended between two quiet moments.

    Raises:
        Mismatch: nothing arrived.
    """
    if after.received == before.received or after.last_arrival_at is None or after.quiet_at is None:
        raise Mismatch("the backend did not receive a single request")
    return Seen(
        received=after.received - before.received,
        answered=after.answered - before.answered,
        aborted=after.aborted - before.aborted,
        last_arrival_at=after.last_arrival_at,
        quiet_at=after.quiet_at,
    )
