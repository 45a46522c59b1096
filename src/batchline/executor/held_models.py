"""The models that a lane's backend does not have now: their shards are kept out of its turns.

The lane is not asked about them for each line: a shard of a held model is not among those that it
looks at, and comes back when the model does. One line of it may try the backend meanwhile, when the
control process says so, and goes before others of its batch (decision 0033).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from batchline.domain.ids import BatchId
from batchline.executor.contract import ShardWork
from batchline.executor.line import Line, Trial
from batchline.executor.turns import Source, Turns


class _Held:
    """Shards of one model, and who of them tries it."""

    __slots__ = ("sources", "trying")

    def __init__(self) -> None:
        self.sources: dict[Source, None] = {}
        self.trying: _Trying | None = None  # the last one, also once it has given its line


class _Trying:
    """In a lane's turns, for as long as it takes to give one line of the model."""

    __slots__ = ("_first", "_missed", "_sources", "has_line")

    def __init__(
        self, sources: Mapping[Source, None], first: Source, missed: Callable[[], None]
    ) -> None:
        """`missed` hears when there is no line after all."""
        self._sources = sources
        self._first = first
        self._missed = missed
        self.has_line = True

    @property
    def work(self) -> ShardWork:
        return self._first.work

    @property
    def batch_id(self) -> BatchId:
        return self._first.batch_id

    def take(self) -> Line | None:
        return self._given(lambda source: source.take())

    def take_small(self, most_bytes: int) -> Line | None:
        return self._given(lambda source: source.take_small(most_bytes))

    def _given(self, take: Callable[[Source], Line | None]) -> Line | None:
        if not self.has_line:
            return None
        for source in self._sources:
            line = take(source)
            if line is not None:
                self.has_line = False
                line.trial = Trial.MODEL
                return line
        if not any(source.has_line for source in self._sources):
            self.give_up()
        return None

    def give_up(self) -> None:
        """It gives no line any more; said once, and not of one that gave its line."""
        if self.has_line:
            self.has_line = False
            self._missed()


class HeldModels:
    """Of one lane, whose `turns` these are. `missed` hears of a model that no line could try."""

    __slots__ = ("_held", "_turns", "missed")

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._held: dict[str, _Held] = {}
        self.missed: Callable[[str], None] = _nobody

    def __bool__(self) -> bool:
        return bool(self._held)

    def __contains__(self, model: str) -> bool:
        return model in self._held

    def add(self, source: Source) -> None:
        """`source` may have lines: for the lane, or for when its model is back."""
        held = self._held.get(source.work.model) if self._held else None
        if held is None:
            self._turns.add(source)
        else:
            held.sources[source] = None

    def discard(self, source: Source) -> None:
        """`source` has no lines any more."""
        self._turns.discard(source)
        held = self._held.get(source.work.model) if self._held else None
        if held is None:
            return
        held.sources.pop(source, None)
        if held.trying is not None and not held.sources:
            self._turns.discard(held.trying)
            held.trying.give_up()

    def hold(self, model: str) -> None:
        """The backend does not have `model`; harmless when that is known."""
        if model in self._held:
            return
        held = self._held[model] = _Held()
        for source in [one for one in self._turns if one.work.model == model]:
            self._turns.discard(source)
            held.sources[source] = None

    def admit_but(self, models: Collection[str]) -> None:
        """The backend has all others again."""
        for model in [one for one in self._held if one not in models]:
            held = self._held.pop(model)
            if held.trying is not None:
                self._turns.discard(held.trying)
            for source in held.sources:
                self._turns.add(source)

    def try_one(self, model: str) -> None:
        """The next line of `model` that may go is its trial."""
        held = self._held.get(model)
        first = None
        if held is not None:
            if held.trying is not None:
                if held.trying.has_line:
                    return
                self._turns.discard(held.trying)
            first = next((source for source in held.sources if source.has_line), None)
        if held is None or first is None:
            self.missed(model)
            return
        held.trying = _Trying(held.sources, first, lambda: self.missed(model))
        self._turns.add_first(held.trying)

    def take_back(self, line: Line) -> Source | None:
        """`line`, a model's trial, was taken and may not go yet: who gives the trial again.

        None where its model is not held any more.
        """
        line.trial = None
        model = line.run.work.model
        self.try_one(model)
        held = self._held.get(model)
        return None if held is None else held.trying

    def take(self) -> Line | None:
        """Any line of a held model: for the trial of a backend that nobody else has lines for."""
        for held in self._held.values():
            for source in held.sources:
                line = source.take()
                if line is not None:
                    return line
        return None


def _nobody(_: str) -> None:
    """Before the worker says who hears."""
