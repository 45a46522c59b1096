"""The shards of a batch that are left to run, in few bytes: ten million lines are ten thousand."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator

from batchline.domain.model import PendingShard


class PendingShards:
    """Shards with an unsettled line, ascending: 10 bytes each, where a PendingShard has 100."""

    __slots__ = ("_deaths", "_models", "_names", "_numbers")

    def __init__(self, shards: Iterable[tuple[int, str, int]] = ()) -> None:
        """`shards` are the fields of each PendingShard."""
        names: dict[str, int] = {}
        self._numbers = array("I")
        self._models = array("H")  # the place of each one's model in `_names`
        self._deaths = array("I")
        for number, model, deaths in shards:
            self._numbers.append(number)
            self._models.append(names.setdefault(model, len(names)))
            self._deaths.append(deaths)
        self._names = list(names)

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[PendingShard]:
        return map(self._at, range(len(self)))

    def __reversed__(self) -> Iterator[PendingShard]:
        return map(self._at, reversed(range(len(self))))

    def _at(self, place: int) -> PendingShard:
        model = self._names[self._models[place]]
        return PendingShard(self._numbers[place], model, self._deaths[place])
