"""Permits of one backend, lent to workers so that the limit holds for all of them together.

A permit is counted where it *may* be in use: a raised share counts at once, a lowered one only when
the worker says that it holds no more than that, in answer to its newest order (an answer to an
older one says nothing of what is still on its way), and a dead worker's share only after it is
reaped. So the sum over workers never exceeds the limit, whatever is on its way. Arithmetic only.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field


@dataclass(slots=True)
class PermitPool:
    """Shares of one limit. `told` is what a worker was last told, `held` what it may be using.

    `orders` counts what each worker was told: the number of its newest order.
    """

    limit: int
    told: dict[str, int] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)
    orders: dict[str, int] = field(default_factory=dict)
    _last: str = ""  # with fewer permits than workers, those after this one come first

    def rebalance(
        self, wanting: Collection[str], *, single: Collection[str] = ()
    ) -> Mapping[str, int]:
        """New shares for the workers that want permits; what to tell whom.

        The limit is split evenly between `wanting`, after one permit for each of them that is in
        `single` and can use no more; workers outside it go to zero. Where there is not one for
        each, see `pass_on`. A share grows only into permits that nobody may still be using; call
        again when one was given back.
        """
        orders: dict[str, int] = {}
        targets = dict.fromkeys(sorted(single)[: self.limit], 1)
        several = self._in_turn(set(wanting) - set(single))
        targets |= _even_split(self.limit - len(targets), several)
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
        self._number(orders)
        return orders

    def pass_on(self, wanting: Collection[str], *, single: Collection[str] = ()) -> bool:
        """Let others of those that want permits have them, where there is not one for each.

        Call `rebalance` when it says so: nothing changes while a permit is on its way, or one that
        takes long to come would go back to whom it comes from.
        """
        several = self._in_turn(set(wanting) - set(single))
        having = [worker for worker in several if self.told.get(worker)]
        if not 0 < len(having) < len(several) or self.held != self.told:
            return False
        self._last = having[-1]
        return True

    def _in_turn(self, workers: Collection[str]) -> list[str]:
        return sorted(workers, key=lambda worker: (worker <= self._last, worker))

    def again(self, workers: Collection[str]) -> Mapping[str, int]:
        """The shares of `workers` as they are, as new orders: something else about them changed."""
        orders = {one: self.told[one] for one in sorted(workers) if one in self.told}
        self._number(orders)
        return orders

    def _number(self, orders: Mapping[str, int]) -> None:
        for worker in orders:
            self.orders[worker] = self.orders.get(worker, 0) + 1

    def given_back(self, worker: str, permits: int, *, order: int) -> None:
        """The worker's answer to an order: with that one it holds no more than `permits`."""
        if order == self.orders.get(worker):
            self.held[worker] = permits

    def gone(self, worker: str) -> None:
        """The worker is reaped: its permits are free."""
        self.told.pop(worker, None)
        self.held.pop(worker, None)
        self.orders.pop(worker, None)


def _even_split(limit: int, workers: list[str]) -> dict[str, int]:
    if not workers:
        return {}
    share, rest = divmod(limit, len(workers))
    return {worker: share + (index < rest) for index, worker in enumerate(workers)}
