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

    With fewer permits than workers that want them each has one or none, and they go by turns. Who
    has none stands in a queue; `pass_on` has the others give theirs up, and whatever comes back
    goes to the first. A permit that takes long to come back (its request runs on) is nobody's turn
    meanwhile, and holds up no other permit.
    """

    limit: int
    told: dict[str, int] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)
    orders: dict[str, int] = field(default_factory=dict)
    _queue: dict[str, None] = field(default_factory=dict)  # who has none, the longest first
    _has: dict[str, None] = field(default_factory=dict)  # who has one, the longest first
    _had: set[str] = field(default_factory=set)  # those of them at the last `pass_on`

    def rebalance(
        self, wanting: Collection[str], *, single: Collection[str] = ()
    ) -> Mapping[str, int]:
        """New shares for the workers that want permits; what to tell whom.

        The limit is split evenly between `wanting`, after one permit for each of them that is in
        `single` and can use no more; workers outside it go to zero. Where there is not one for
        each, see the class. A share grows only into permits that nobody may still be using; call
        again when one was given back.
        """
        orders: dict[str, int] = {}
        targets = self._targets(set(wanting), set(single))
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
                self._queue.pop(worker, None)
                self._has.setdefault(worker)
        self._number(orders)
        return orders

    def pass_on(self, wanting: Collection[str]) -> Mapping[str, int]:
        """To be called twice in a turn: who gives its permit up for others of `wanting`, where
        there is not one for each; what to tell whom.

        Those do who had theirs at the last call too, the longest first, and as many as there are
        others that no permit is on its way to already. `rebalance` gives out what comes back.
        """
        if len(wanting) <= self.limit:
            self._had.clear()
            return {}
        has = [one for one in self._has if one in wanting and self.told.get(one)]
        coming = sum(self.held.values()) - sum(self.told.values())
        waiting = len(wanting) - len(has) - coming
        over = [one for one in has if one in self._had][: max(0, waiting)]
        for worker in over:
            self.told[worker] = 0
            del self._has[worker]
            self._queue[worker] = None
        self._had = set(has).difference(over)
        orders = dict.fromkeys(over, 0)
        self._number(orders)
        return orders

    def _targets(self, wanting: set[str], single: set[str]) -> dict[str, int]:
        few = len(wanting) > self.limit
        self._queue = {one: None for one in self._queue if few and one in wanting}
        if few:
            return self._by_turns(wanting)
        first = dict.fromkeys(sorted(wanting & single), 1)
        return first | _even_split(self.limit - len(first), sorted(wanting - single))

    def _by_turns(self, wanting: set[str]) -> dict[str, int]:
        """Who has one keeps it; the queue has the rest."""
        has = [one for one in (*self._has, *sorted(wanting)) if self.told.get(one)]
        keep = [one for one in dict.fromkeys(has) if one in wanting][: self.limit]
        self._has = dict.fromkeys(keep)
        for worker in sorted(wanting.difference(keep)):
            self._queue.setdefault(worker)
        first = list(self._queue)[: self.limit - len(keep)]
        return dict.fromkeys((*keep, *first), 1)

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
        for of_each in (self.told, self.held, self.orders, self._has, self._queue):
            of_each.pop(worker, None)
        self._had.discard(worker)


def _even_split(limit: int, workers: list[str]) -> dict[str, int]:
    if not workers:
        return {}
    share, rest = divmod(limit, len(workers))
    return {worker: share + (index < rest) for index, worker in enumerate(workers)}
