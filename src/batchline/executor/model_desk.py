"""The models that one backend does not have now, as the control process sees them.

A server of several models may lack one that it lists: it was unloaded, evicted, or never came up.
Its other models go on. So each model that is away has a circuit of its own, with trials of that
model's lines (decision 0033). Nothing is kept of models that are there.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence

from batchline import telemetry
from batchline.domain.attempts import Outcome
from batchline.domain.waiting import Reason
from batchline.executor import messages as m
from batchline.executor.circuit import Circuit


class ModelDesk:
    """What workers are told of the models of one backend; `tell` is the admission's.

    `holds` says whether a worker has shards of a model, `on_change` hears when a model went away
    or came back. `patience_s`: for so long trials that meet server errors are not believed.
    """

    def __init__(
        self,
        backend: str,
        *,
        tell: Callable[[str, m.ToWorker], None],
        holds: Callable[[str, str], bool],
        on_change: Callable[[], None],
        patience_s: float,
    ) -> None:
        self._backend = backend
        self._tell = tell
        self._holds = holds
        self._on_change = on_change
        self._patience_s = patience_s
        self._circuits: dict[str, Circuit] = {}
        self._told: set[str] = set()  # workers whose last word names a model
        self._listed: Collection[str] = ()  # by the backend, when it was last asked

    @property
    def away(self) -> Collection[str]:
        """By the backend's names."""
        return tuple(self._circuits)

    def reasons(self, now: float) -> Mapping[str, Reason]:
        """Model to why its lines wait here."""
        return {model: circuit.shown_of(model, now) for model, circuit in self._circuits.items()}

    # -- workers ---------------------------------------------------------------------------

    def wanted_by(self, worker: str) -> None:
        """The worker is about to send there."""
        if self._circuits or worker in self._told:
            self._say(worker)

    def gone(self, worker: str, now: float) -> None:
        """The worker is reaped: what it tried is to be tried by another."""
        self._told.discard(worker)
        for circuit in self._circuits.values():
            circuit.trial_returned(worker, now)

    def missed(
        self,
        worker: str,
        message: m.ModelAway,
        workers: Collection[str],
        now: float,
        *,
        asked_s: float,
        roll: float,
    ) -> None:
        """A worker met the backend without the model; `workers` are those that send there."""
        circuit = self._circuits.get(message.model)
        if message.trial and (circuit is None or circuit.trial_with != worker):
            return  # of a trial that is not the present one
        if circuit is None:
            circuit = self._circuits[message.model] = Circuit()
        closed = circuit.fault(
            Outcome.BROKEN if message.broken else Outcome.AWAY,
            message.reason,
            now=now,
            asked_s=asked_s,
            trial=message.trial,
            roll=roll,
        )
        if closed:
            telemetry.trouble(
                "model_away", backend=self._backend, model=message.model, reason=message.reason
            )
            # Also the one that met it: an earlier word may be on its way to it.
            self._say_all({worker, *workers})
        elif circuit.believes(self._patience_s):
            telemetry.trouble(
                "errors_believed", backend=self._backend, model=message.model, reason=message.reason
            )
            self._forget([message.model], workers)

    def tried(
        self, worker: str, message: m.ModelTried, workers: Collection[str], now: float
    ) -> None:
        """A trial is over, without the model being missed."""
        circuit = self._circuits.get(message.model)
        if circuit is None:
            return
        if not message.worked:
            circuit.trial_returned(worker, now)
            return
        telemetry.event("model_back", backend=self._backend, model=message.model)
        self._forget([message.model], workers)

    def listed(self, models: Collection[str], now: float) -> None:
        """What the backend's catalogue has now: a model that was missing there is tried at once."""
        for model, circuit in self._circuits.items():
            if model in models and model not in self._listed:
                circuit.retry_at = min(circuit.retry_at, now)
        self._listed = models

    # -- time ------------------------------------------------------------------------------

    def tick(
        self, workers: Collection[str], now: float, *, admits: bool, chance: random.Random
    ) -> None:
        """Have one worker try each model for which that is due, while the backend `admits`.

        A model that no worker has lines of is forgotten: nobody could try it, and whoever gets
        lines of it finds out.
        """
        unheld = []
        for model, circuit in self._circuits.items():
            able = [one for one in sorted(workers) if self._holds(one, model)]
            if not able:
                unheld.append(model)
            elif admits and circuit.trial_due(now):
                circuit.trial_with = chance.choice(able)
                self._tell(circuit.trial_with, m.TryModel(self._backend, model))
        if unheld:
            self._forget(unheld, workers)

    def _forget(self, models: Sequence[str], workers: Collection[str]) -> None:
        for model in models:
            del self._circuits[model]
        self._say_all(workers)

    def _say_all(self, workers: Collection[str]) -> None:
        for worker in sorted({*workers, *self._told}):
            self._say(worker)
        self._on_change()

    def _say(self, worker: str) -> None:
        self._tell(worker, m.SetAway(self._backend, sorted(self._circuits)))
        if self._circuits:
            self._told.add(worker)
        else:
            self._told.discard(worker)
