"""A shard in which identical requests run once: the first of a group is sent, all get its result.

The lines of a group settle in one step, so that they are in one commit: a crash finds all of them
settled or none. To the rest of the worker it is a shard like any other with fewer lines to give.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final, Self

from batchline.domain import bitmap, plan
from batchline.domain.errors import BlobUnreadable
from batchline.domain.lines import custom_id_raw_at
from batchline.domain.model import Usage
from batchline.domain.results import common_tail, with_tail
from batchline.executor.contract import ShardWork
from batchline.executor.line import Gate, Line
from batchline.executor.shard_run import ShardRun, Snapshot

# What the results of one group may take in memory; the rest of it runs as a group of its own. A
# thousand answers of the usual size are a few MB.
GROUP_BYTES: Final = 64 * 1024 * 1024


def _ignore(_: ShardRun) -> None:
    """For shards that nobody reads."""


@dataclass(slots=True, eq=False)
class RunOnce(ShardRun):
    """Reads the ids of those that follow when they settle, and so does I/O where `ShardRun` does
    not. `on_unreadable` hears that the input does not hold them any more; they stay unsettled."""

    followers: dict[int, list[int]] = field(default_factory=dict)  # by the entry that is sent
    saved_lines: bytearray = field(default_factory=bytearray)  # settled by another line's call
    on_unreadable: Callable[[ShardRun], None] = _ignore

    @classmethod
    def begin(
        cls,
        work: ShardWork,
        input_fd: int,
        entries: bytes,
        *,
        on_unreadable: Callable[[ShardRun], None],
    ) -> Self:
        run = cls.open(work, input_fd=input_fd, entries=entries)
        run.on_unreadable = on_unreadable
        run.saved_lines = bitmap.empty(work.shard.entries)
        run.passed = bytearray(run.settled)
        run.has_gaps = True
        # Of the unsettled entries of a group: damage may have taken some results back.
        first: int | None = None
        for index, (_, _, _, prefix_hash) in enumerate(plan.ENTRY.iter_unpack(entries)):
            if prefix_hash != plan.FOLLOWS:
                first = None
            if bitmap.is_marked(run.settled, index):
                continue
            if prefix_hash == plan.FOLLOWS and first is not None:
                run.followers.setdefault(first, []).append(index)
                bitmap.mark(run.passed, index)
            else:
                first = index
        return run

    def settle(
        self, line: Line, result: bytes, usage: Usage | None, *, succeeded: bool = True
    ) -> int:
        """Give `line` its result, and with it every line that is the same request.

        Tokens were spent once and are counted once.
        """
        # Not super(): the decorator makes a class with slots anew, and super() means the old one.
        held = ShardRun.settle(self, line, result, usage, succeeded=succeeded)
        bitmap.mark(self.passed, line.index)
        following = self.followers.pop(line.index, None)
        if not following:
            return held
        tail = common_tail(result)
        fitting = max(0, GROUP_BYTES // len(tail) - 1)
        for index in following[:fitting]:
            other = self.line_at(index)
            custom_id_raw = self._custom_id_of(other)
            if custom_id_raw is None:
                self.on_unreadable(self)
                return held
            copy = with_tail(other.line_id, custom_id_raw, tail)
            held += ShardRun.settle(self, other, copy, None, succeeded=succeeded)
            if line.attempt:  # else nothing was sent for any of them
                bitmap.mark(self.saved_lines, index)
        self._run_again(following[fitting:])
        return held

    def _custom_id_of(self, line: Line) -> bytes | None:
        try:
            raw = os.pread(self.input_fd, line.length, line.offset)
            return custom_id_raw_at(raw, 0, len(raw)) if len(raw) == line.length else None
        except (OSError, BlobUnreadable):
            return None

    def _run_again(self, rest: list[int]) -> None:
        """The results of all would be too large to be held: the next one runs for the rest."""
        if not rest:
            return
        first, *following = rest
        if following:
            self.followers[first] = following
        if self.gate is Gate.OPEN:
            self.returned.append(self.line_at(first))

    def snapshot(self) -> Snapshot:
        group = replace(ShardRun.snapshot(self), saved_lines=bytes(self.saved_lines))
        self.saved_lines = bitmap.empty(self.work.shard.entries)
        return group
