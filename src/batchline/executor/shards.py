"""The shards that a worker holds, from `OpenShard` to `ShardReleased`."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from typing import Final

from batchline.domain import plan
from batchline.domain.errors import BlobUnreadable
from batchline.domain.ids import BatchId
from batchline.domain.model import ShardKey
from batchline.executor import messages as m
from batchline.executor import routed
from batchline.executor.contract import Released, ShardWork
from batchline.executor.handing import Handing
from batchline.executor.lane import Lane
from batchline.executor.line import CLOSED, FENCED
from batchline.executor.run_once import RunOnce
from batchline.executor.shard_run import ShardRun
from batchline.telemetry import probe

_OUT_OF: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


class Shards:
    """One worker's. `hurry` has the next commit happen now; `released` hears of each that left."""

    def __init__(
        self,
        lanes: Mapping[str, Lane],
        *,
        send: Callable[[m.ToControl], None],
        hurry: Callable[[], None],
        released: Callable[[], None],
    ) -> None:
        self.runs: dict[ShardKey, ShardRun] = {}
        self.handing = Handing(lambda key: send(m.Handed(key)), self.runs)
        self._lanes = lanes
        self._send = send
        self._hurry = hurry
        self._released = released

    def open(self, work: ShardWork) -> ShardRun | None:
        """Take the shard up; None where its files cannot be read: then that is said.

        Raises:
            OSError: there is no file descriptor or memory for it: nothing is wrong with the input,
                and its batch would fail for good.
        """
        key = work.shard.key
        try:
            run = _open_run(work, on_unreadable=self.unreadable)
        except (OSError, BlobUnreadable) as exc:
            if isinstance(exc, OSError) and exc.errno in _OUT_OF:
                raise
            self._send(m.InputUnreadable(key))
            self._send(m.ShardReleased(Released(key=key, epoch=work.shard.epoch, settled=False)))
            return None
        routed.share_out(run, self._lanes)
        self.runs[key] = run
        return run

    def serve(self, order: m.Serve) -> list[ShardRun]:
        """Shards of a model may go to more backends than they could; those that may."""
        wider = []
        for run in self.runs.values():
            if run.work.model == order.model:
                work = run.work.served_by(order.backends, order.listed_by)
                if work != run.work:
                    routed.serve_too(run, work, self._lanes)
                    wider.append(run)
        return wider

    def of_batch(self, batch_id: BatchId) -> list[ShardRun]:
        """Those of one batch."""
        return [run for run in self.runs.values() if run.batch_id == batch_id]

    def unreadable(self, run: ShardRun) -> None:
        """Its input is damaged: nothing more of it is sent."""
        run.close(CLOSED)
        self._send(m.InputUnreadable(run.work.shard.key))

    def release_if_over(self, run: ShardRun) -> None:
        """Give the shard back, if nothing of it is left to do or to commit."""
        key = run.work.shard.key
        if not run.is_over or self.runs.get(key) is not run:
            return
        if not run.is_durable:
            if run.gate is CLOSED or run.all_settled:
                self._hurry()  # somebody waits for this shard's end
            return
        del self.runs[key]
        if self.handing.unsaid:
            self.handing.say()
        routed.leave(run, self._lanes)
        os.close(run.input_fd)
        probe("shard.releasing")
        self._send(
            m.ShardReleased(
                Released(
                    key=key,
                    epoch=run.work.shard.epoch,
                    settled=run.all_settled and run.gate is not FENCED,
                    ends=run.ends,
                )
            )
        )
        probe("shard.released")
        self._released()


def _open_run(work: ShardWork, *, on_unreadable: Callable[[ShardRun], None]) -> ShardRun:
    shard = work.shard
    offset, length = plan.span(shard.first_entry, shard.entries)
    plan_fd = os.open(work.plan_path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        followers = plan.check_header(os.pread(plan_fd, plan.HEADER_BYTES, 0))
        entries = os.pread(plan_fd, length, offset)
    except ValueError as exc:
        raise BlobUnreadable(str(exc)) from exc
    finally:
        os.close(plan_fd)
    if len(entries) != length:
        raise BlobUnreadable("the plan is shorter than its shards")
    input_fd = os.open(work.input_path, os.O_RDONLY | os.O_CLOEXEC)
    if followers:
        return RunOnce.begin(work, input_fd, entries, on_unreadable=on_unreadable)
    return ShardRun.open(work, input_fd=input_fd, entries=entries)
