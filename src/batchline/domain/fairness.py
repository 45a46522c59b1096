"""Whose turn it is among those who wait: start-time fair queueing, arithmetic only.

Goyal, Vin and Cheng's start-time fair queueing (1996). Everybody has a *tag*: the virtual time at
which their next piece of work may begin. The lowest tag is next; a piece of `work` moves the tag of
its owner on by `work / weight`. Whoever comes, or comes back, begins at the tag of whoever was
served last, never before it: time in which nobody waited saves up nothing. So of those who wait all
the time each gets work by its weight, and no two of them are ever further apart than one piece of
each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import Any, Final, Generic, TypeVar

K = TypeVar("K")

_SLACK: Final = 64  # outdated entries that a small heap may hold before it is made anew


@dataclass(slots=True, eq=False)
class Tags(Generic[K]):
    """The tags of everybody who competes for one thing, and its virtual time `now`.

    Several queues may share them: those for which the same thing works.
    """

    now: float = 0.0
    of: dict[K, float] = field(default_factory=dict)

    def begin(self, key: K) -> None:
        """`key` comes, or comes back: it begins now, or where its last work ends."""
        self.of[key] = max(self.of.get(key, 0.0), self.now)

    def charge(self, key: K, amount: float) -> None:
        """`key` has, or has had, work that is `amount` of virtual time; negative to give back."""
        self.of[key] = self.of.get(key, self.now) + amount

    def serve(self, key: K) -> None:
        """`key` is next: time moves on to its tag."""
        self.now = max(self.now, self.of.get(key, 0.0))

    def forget(self, key: K) -> None:
        """Forget a tag that means nothing any more, for its owner would begin after it anyway."""
        if self.of.get(key, 0.0) <= self.now:
            self.of.pop(key, None)


class FairQueue(Generic[K]):
    """Those who wait, lowest tag first, then by rank. Every call costs O(log n).

    The heap keeps outdated entries until they come up: an entry holds while its tag is its owner's.
    """

    def __init__(self, tags: Tags[K] | None = None) -> None:
        self.tags: Tags[K] = Tags() if tags is None else tags
        self._ranks: dict[K, Any] = {}
        self._heap: list[tuple[float, Any, K]] = []

    def __len__(self) -> int:
        return len(self._ranks)

    def __contains__(self, key: K) -> bool:
        return key in self._ranks

    def enter(self, key: K, rank: Any) -> None:
        """`key` waits from now on. `rank` orders equal tags; no two who wait have the same."""
        if key not in self._ranks:
            self._ranks[key] = rank
            self.tags.begin(key)
            self._push(key)

    def leave(self, key: K) -> None:
        """`key` waits no longer. Its tag stays, so that coming back at once gains nothing."""
        self._ranks.pop(key, None)

    def moved(self, key: K) -> None:
        """The tag of `key` has changed."""
        if key in self._ranks:
            self._push(key)

    def first(self, fits: Callable[[K], bool] | None = None) -> tuple[float, Any, K] | None:
        """Tag, rank and key of who is next, of those who fit. None: nobody waits who does."""
        heap, aside = self._heap, []
        found = None
        while heap:
            entry = heap[0]
            if self._outdated(entry):
                heappop(heap)
            elif fits is None or fits(entry[2]):
                found = entry
                break
            else:
                aside.append(heappop(heap))
        for entry in aside:
            heappush(heap, entry)
        return found

    def _outdated(self, entry: tuple[float, Any, K]) -> bool:
        tag, rank, key = entry
        return self._ranks.get(key) != rank or self.tags.of[key] != tag

    def _push(self, key: K) -> None:
        heap = self._heap
        heappush(heap, (self.tags.of[key], self._ranks[key], key))
        if len(heap) > 2 * len(self._ranks) + _SLACK:
            heap[:] = [(self.tags.of[one], rank, one) for one, rank in self._ranks.items()]
            heapify(heap)
