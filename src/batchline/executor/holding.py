"""The shards that one worker may be running, as the control process counts them. Pure.

Asked for at every shard that comes or goes, of a worker that may hold any number whose last lines
are slow: so what is asked for often is counted, and never looked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from batchline.domain.ids import BatchId
from batchline.domain.model import ShardKey
from batchline.executor.contract import ShardWork


class Holding:
    """Shards by key, and how many of them are open (not handed out yet) at each backend."""

    def __init__(self) -> None:
        self._works: dict[ShardKey, ShardWork] = {}
        self._open: dict[str, dict[ShardKey, None]] = {}  # by backend, oldest first
        self._wanting: Counter[str] = Counter()  # of backend: shards that may use it

    @property
    def works(self) -> Mapping[ShardKey, ShardWork]:
        """All of them."""
        return self._works

    @property
    def backends(self) -> Collection[str]:
        """Those that some shard may use."""
        return self._wanting.keys()

    def open_at(self, backend: str) -> Sequence[BatchId]:
        """The batch of each shard that has lines left for `backend`."""
        return [key.batch_id for key in self._open.get(backend, ())]

    def begin(self, work: ShardWork) -> None:
        """The worker is about to get the shard."""
        key = work.shard.key
        self._works[key] = work
        for backend in work.backends:
            self._wanting[backend] += 1
            self._open.setdefault(backend, {})[key] = None

    def handed(self, key: ShardKey) -> None:
        """Every line of the shard was sent once."""
        work = self._works.get(key)
        for backend in work.backends if work is not None else ():
            self._open[backend].pop(key, None)

    def end(self, key: ShardKey) -> None:
        """The worker has it no more; harmless when that is known."""
        self.handed(key)
        work = self._works.pop(key, None)
        for backend in work.backends if work is not None else ():
            self._wanting[backend] -= 1
            if not self._wanting[backend]:
                del self._wanting[backend], self._open[backend]

    def clear(self) -> None:
        """The worker is gone."""
        self._works.clear()
        self._open.clear()
        self._wanting.clear()
