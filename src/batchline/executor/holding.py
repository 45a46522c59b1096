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
        self._models: Counter[tuple[str, str]] = Counter()  # the same by backend and model

    @property
    def works(self) -> Mapping[ShardKey, ShardWork]:
        """All of them."""
        return self._works

    @property
    def backends(self) -> Collection[str]:
        """Those that some shard may use."""
        return self._wanting.keys()

    def open_at(self, backend: str, away: Collection[str] = ()) -> Sequence[BatchId]:
        """The batch of each shard that has lines left for `backend`, but for models that are
        `away` there: those only wait, and must not take the place of others."""
        keys = self._open.get(backend, ())
        if away:
            return [key.batch_id for key in keys if self._works[key].model not in away]
        return [key.batch_id for key in keys]

    def has(self, backend: str, model: str) -> bool:
        """Whether there is a shard of `model`, by the backends' name, that may use `backend`."""
        return (backend, model) in self._models

    def begin(self, work: ShardWork) -> None:
        """The worker is about to get the shard."""
        key = work.shard.key
        self._works[key] = work
        for backend in work.backends:
            self._wanting[backend] += 1
            self._models[backend, work.model] += 1
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
        if work is None:
            return
        for backend in work.backends:
            self._wanting[backend] -= 1
            if not self._wanting[backend]:
                del self._wanting[backend], self._open[backend]
            self._models[backend, work.model] -= 1
            if not self._models[backend, work.model]:
                del self._models[backend, work.model]

    def serve(self, model: str, backends: Sequence[str], listed_by: Sequence[str]) -> bool:
        """These may serve `model` too; whether that is news for a shard that is held."""
        news = False
        for key, work in self._works.items():
            if work.model != model:
                continue
            wider = work.served_by(backends, listed_by)
            if wider == work:
                continue
            news = True
            self._works[key] = wider
            is_open = any(key in self._open[backend] for backend in work.backends)
            for backend in wider.backends[len(work.backends) :]:
                self._wanting[backend] += 1
                self._models[backend, model] += 1
                at = self._open.setdefault(backend, {})
                if is_open:
                    at[key] = None
        return news

    def clear(self) -> None:
        """The worker is gone."""
        self._works.clear()
        self._open.clear()
        self._wanting.clear()
        self._models.clear()
