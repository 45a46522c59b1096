"""The control process's end of a worker: what becomes of questions when the worker is gone."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from batchline.domain import ids
from batchline.domain.ids import WorkerId
from batchline.executor.worker_link import WorkerLink

BATCH = ids.batch_id(1_750_000_000, b"\1" * ids.RANDOM_BYTES)


async def test_a_worker_that_is_reaped_already_is_not_waited_for(tmp_path: Path) -> None:
    """Its last commits may wait for the store meanwhile. If this fails, a cancel waits for the
    acknowledgement of nobody, and its receipt says that a silent worker was killed."""
    link = await WorkerLink.start(
        WorkerId("w"),
        [sys.executable, "-S", "-c", "pass"],
        children=tmp_path,
        environment=os.environ,
    )
    asked = link.ask_gate(BATCH, grace_s=0.0, last_s=1.0)
    assert await link.reap() == 0
    assert asked.cancelled()
    assert link.ask_gate(BATCH, grace_s=0.0, last_s=1.0).cancelled()
