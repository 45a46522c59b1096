"""Looking at a batch again and again until it has ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from batchline.cli.client.api import Api, Shape
from batchline.cli.client.estimate import left_of
from batchline.cli.outcome import UNREACHABLE, CommandFailed
from batchline.cli.progress import ProgressView, Sight, Told
from batchline.domain.lifecycle import TERMINAL

LOOK_S: Final = 0.5
AWAY_S: Final = 60.0  # a server that restarts is back long before


def follow(api: Api, batch_id: str) -> Shape:
    """The batch once it has ended, its progress shown on stderr until then.

    Raises:
        CommandFailed: there is no such batch, or the server was away for AWAY_S.
    """
    batch = api.batch(batch_id)  # not yet patient: a wrong address shows at once
    with ProgressView() as view:
        tells, progress = True, None
        while batch["status"] not in TERMINAL:
            if tells:
                with suppress(CommandFailed):  # if it is away, the next look at the batch tells
                    progress = api.progress(batch_id)
                    tells = progress is not None  # another product has no such route
            view.show(sight(batch, progress))
            time.sleep(LOOK_S)
            batch = _patient(lambda: api.batch(batch_id), view, batch)
        view.show(sight(batch))
    return batch


def sight(batch: Shape, progress: Shape | None = None, *, note: str = "") -> Sight:
    counts = batch["request_counts"]
    return Sight(
        status=batch["status"],
        completed=counts["completed"],
        failed=counts["failed"],
        total=counts["total"],
        note=note or "; ".join(wait["message"] for wait in (progress or {}).get("waiting", ())),
        told=None if progress is None else Told(progress["rate_per_s"], left_of(progress)),
    )


def _patient(look: Callable[[], Shape], view: ProgressView, last: Shape) -> Shape:
    """`look`, tried again while no server answers."""
    gone_at = time.monotonic()
    while True:
        try:
            return look()
        except CommandFailed as exc:
            if exc.exit_code != UNREACHABLE or time.monotonic() - gone_at > AWAY_S:
                raise
        view.show(sight(last, note="the server is away, trying again"))
        time.sleep(LOOK_S)
