"""Models that no backend lists now: whose lines wait for one, and whose fail (decision 0037).

A batch whose models were all listed when its file was read was accepted for them, and waits until
its window ends: an operator may have the model back any time, and who does not wait for that
cancels the batch. Where some catalogue was not known then, the model may be one that nobody has
ever had. That comes out once all catalogues are known, and its lines fail.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from batchline.domain.ids import BatchId
from batchline.service.running import Running


class Listings(Protocol):
    """What is asked of the catalogue."""

    def lists(self, backend: str, model: str) -> bool:
        """Whether the backend's own catalogue is known and lists `model`."""

    def known(self) -> bool:
        """Whether there is a backend and the catalogue of every one is known."""

    def has_listed(self, model: str) -> bool:
        """Whether some backend lists `model`, or did since the start."""


class Unlisted:
    """Knows the running batches whose models nobody could check."""

    def __init__(self, listings: Listings) -> None:
        self._listings = listings
        self._unchecked: dict[BatchId, Running] = {}

    def begin(self, running: Running, *, models_known: bool) -> None:
        """The batch runs; `models_known`: they were, all of them, when its file was read."""
        if not models_known:
            self._unchecked[running.batch.id] = running

    def end(self, batch_id: BatchId) -> None:
        """The batch is terminal; harmless for any."""
        self._unchecked.pop(batch_id, None)

    def next(self) -> tuple[Running, str] | None:
        """A batch, and its model, whose lines only need to be told that nobody has it: that takes
        no time, whosever turn it is."""
        for running in self._unchecked.values():
            for model in running.pending:
                if self.fails(running, model):
                    return running, model
        return None

    def fails(self, running: Running, model: str) -> bool:
        """Whether lines of the batch fail for their model, instead of waiting for a backend."""
        return (
            running.batch.id in self._unchecked
            and self._listings.known()
            and not self._listings.has_listed(model)
        )

    def listed_by(
        self, serving: Sequence[str], model: str, *, running: Running | None = None
    ) -> list[str]:
        """Who of `serving` lists the model; all of them where it was known before, to be true of
        shards of `running`, or of all."""
        listing = [name for name in serving if self._listings.lists(name, model)]
        if listing:
            return listing
        known = running is not None and running.batch.id not in self._unchecked
        return list(serving) if known or self._listings.has_listed(model) else []
