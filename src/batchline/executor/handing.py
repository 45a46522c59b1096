"""When the control process hears that a shard is handed out, and so gives the worker another.

Shards whose last lines are slow do not count as open, so a worker may hold many of them. Each is
an open file and some ten KiB: so very many keep further ones away, until one is given back.
Their lines that are in flight are bounded by permits. Those that wait for another try are not, and
with a backend that breaks every request a worker would go through all shards there are, in memory:
so very many lines that wait do the same, until fewer wait.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Final

from batchline.domain.model import ShardKey
from batchline.executor.shard_run import ShardRun

MOST_HELD: Final = 1_000  # shards; a line in a hundred of 600 s each, at 1,600 lines a second
MOST_WAITING: Final = 10_000  # lines; 5 MB, and at 5 s on average 2,000 of them a second


class Handing:
    """Of one worker. `tell` says that a shard is handed out, `runs` are the shards it holds."""

    def __init__(
        self,
        tell: Callable[[ShardKey], None],
        runs: Mapping[ShardKey, ShardRun],
        *,
        most_held: int = MOST_HELD,
        most_waiting: int = MOST_WAITING,
    ) -> None:
        self._tell = tell
        self._runs = runs
        self._most_held = most_held
        self._most_waiting = most_waiting
        self.unsaid: deque[ShardKey] = deque()

    def handed_out(self, run: ShardRun) -> None:
        """Every line of `run` was sent once: said now, or once fewer lines wait."""
        run.handed = True
        self.unsaid.append(run.work.shard.key)
        self.say()

    def say(self) -> None:
        """Say what may be said. To be called when fewer lines wait, and when a shard was given
        back, if anything is `unsaid`."""
        if len(self._runs) > self._most_held:
            return
        while self.unsaid and self._waiting() < self._most_waiting:
            key = self.unsaid.popleft()
            if key in self._runs:  # one that was given back needs no word
                self._tell(key)

    def _waiting(self) -> int:
        # Those that came back may wait too: for a backend at which they have not failed yet.
        return sum(len(run.waiting) + len(run.returned) for run in self._runs.values())
