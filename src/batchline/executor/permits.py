"""Permits of one backend, lent to workers so that the limit holds for all of them together.

A permit is counted where it *may* be in use: a raised share counts at once, a lowered one only when
the worker says that it holds no more than that, and a dead worker's share only after it is reaped.
So the sum over workers never exceeds the limit, whatever is still on its way. Arithmetic only.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field


@dataclass(slots=True)
class PermitPool:
    """Shares of one limit. `told` is what a worker was last told, `held` what it may be using."""

    limit: int
    told: dict[str, int] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)

    def rebalance(self, wanting: Collection[str]) -> Mapping[str, int]:
        """New shares for the workers that want permits; what to tell whom.

        The limit is split evenly between `wanting`; workers outside it go to zero. A share grows
        only into permits that nobody may still be using; call again when one was given back.
        """
        orders: dict[str, int] = {}
        targets = _even_split(self.limit, sorted(wanting))
        for worker in list(self.told):
            target = targets.get(worker, 0)
            if target < self.told[worker]:
                orders[worker] = self.told[worker] = target
        for worker, target in targets.items():
            now = self.told.get(worker, 0)
            free = self.limit - sum(self.held.values())
            # What the worker may still use beyond `now` is counted in its own `held` already.
            slack = self.held.get(worker, 0) - now
            grown = min(target, now + free + slack)
            if grown > now:
                orders[worker] = self.told[worker] = grown
                self.held[worker] = max(self.held.get(worker, 0), grown)
        return orders

    def given_back(self, worker: str, permits: int) -> None:
        """The worker holds no more than `permits` now (or what it was told since, if more)."""
        self.held[worker] = max(permits, self.told.get(worker, 0))

    def gone(self, worker: str) -> None:
        """The worker is reaped: its permits are free."""
        self.told.pop(worker, None)
        self.held.pop(worker, None)


def _even_split(limit: int, workers: list[str]) -> dict[str, int]:
    if not workers:
        return {}
    share, rest = divmod(limit, len(workers))
    return {worker: share + (index < rest) for index, worker in enumerate(workers)}
