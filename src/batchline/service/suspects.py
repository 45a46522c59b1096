"""Which line kills its workers: found by what was under way at each death.

A shard that was held by a worker that died is *announced* from then on: the control process knows
of each of its lines before the worker touches it. So at the next deaths the lines under way are
known, and a line that was not under way at one of them has not caused it. What is common to all,
once `SUSPECT_AFTER_DEATHS` workers died, are the *suspects*: they run alone, one at a time, in a
worker of their own. A line that was under way at `LOST_AFTER_DEATHS` deaths of that worker is
settled as `worker_lost` and not sent again; the others are cleared.

Kept in memory: a server that starts anew knows from the shard's row that it is to be announced, and
finds the line by the deaths that follow (decision 0007).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Final

from batchline.domain.ids import BatchId
from batchline.domain.model import ShardKey

SUSPECT_AFTER_DEATHS: Final = 3
ANNOUNCED_DEATHS: Final = 2  # of these, with the same line under way: all but the first one
LOST_AFTER_DEATHS: Final = 2


@dataclass(slots=True)
class _Case:
    """What is known of one shard: what was under way at each of so many deaths in a row."""

    common: frozenset[int] = frozenset()
    deaths: int = 0
    alone: Counter[int] = field(default_factory=Counter)


class Suspects:
    """The cases of all shards that were held by workers that died."""

    def __init__(self) -> None:
        self._cases: dict[ShardKey, _Case] = {}

    def died(self, key: ShardKey, under_way: Collection[int], *, quarantined: bool) -> None:
        """A worker died while these entries (from 0) of an announced shard were under way.

        `quarantined`: it held nothing else, and at most one of them.
        """
        case = self._cases.setdefault(key, _Case())
        if quarantined:
            case.alone.update(under_way)
        elif common := case.common.intersection(under_way):
            case.common, case.deaths = common, case.deaths + 1
        else:  # nothing that explains both deaths: they had other causes, or two
            case.common, case.deaths = frozenset(under_way), 1

    def suspects(self, key: ShardKey, *, deaths: int) -> Sequence[int]:
        """The entries of a shard that may run in quarantine only, ascending; none: it may run
        anywhere. `deaths` is how many workers died with the shard."""
        case = self._cases.get(key)
        if case is None or deaths < SUSPECT_AFTER_DEATHS or case.deaths < ANNOUNCED_DEATHS:
            return ()
        return sorted(case.common)

    def lost(self, key: ShardKey) -> Sequence[int]:
        """The entries that are not to be sent again, ascending."""
        case = self._cases.get(key, _Case())
        return sorted(entry for entry, count in case.alone.items() if count >= LOST_AFTER_DEATHS)

    def cleared(self, key: ShardKey) -> None:
        """Every suspect of the shard has settled, or none is left: a new death is a new case."""
        self._cases.pop(key, None)

    def forget(self, batch_id: BatchId) -> None:
        """The batch is terminal."""
        for key in [key for key in self._cases if key.batch_id == batch_id]:
            del self._cases[key]
