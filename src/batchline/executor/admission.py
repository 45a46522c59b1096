"""What the control process decides about backends for all workers together: permits and circuits.

One desk for all backends of an executor. It is told what workers report and which of them hold
shards for which backend; it tells workers their permits and whether a circuit admits. It owns no
socket: messages go out through `tell`.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from batchline import telemetry
from batchline.domain.attempts import RETRY_AFTER_CAP_S, TRIAL_PATIENCE_S, Outcome
from batchline.domain.waiting import Reason
from batchline.executor import messages as m
from batchline.executor.circuit import Circuit
from batchline.executor.contract import BackendSettings
from batchline.executor.engine_load import EngineLoad
from batchline.executor.limiter import FixedLimit
from batchline.executor.model_desk import ModelDesk
from batchline.executor.permits import PermitPool
from batchline.executor.rate_desk import RateDesk
from batchline.executor.standing import Standing
from batchline.executor.steering import Steering, steering_of

# Looks go on meanwhile, and one that is answered ends it; but lines may fare better than looks.
SILENT_WAIT_S: Final = 60.0
TURN_S: Final = 1.0  # for which some workers have the permits, where there are not enough for all


@dataclass(slots=True)
class _Desk:
    settings: BackendSettings
    circuit: Circuit
    pool: PermitPool
    rates: RateDesk
    models: ModelDesk
    places: int | None = None  # of the engine, where nobody said how many requests to send
    drained: bool = False  # by a person: no permits for anybody
    steering: Steering | None = None  # None: the pool's limit is what was configured
    turns_at: float = 0.0  # with fewer permits than workers, it is looked whose turn is over
    measure: int = 0  # what its workers report under
    answered_at: float = -math.inf  # a line, as of the last heartbeat that told of one
    settled: bool = False  # the log has been told of the limit
    shedding: bool = False  # its circuit closed, when it last did, over a refusal for load
    wanting: set[str] = field(default_factory=set)
    single: set[str] = field(default_factory=set)  # of these, who can use one permit only
    idle: set[str] = field(default_factory=set)  # who said last that no line of theirs could go

    @property
    def ceiling(self) -> int:
        if self.places is None:
            return self.settings.max_in_flight
        return max(self.settings.min_in_flight, self.places)

    @property
    def takers(self) -> set[str]:
        """Who gets permits. Where all are idle there may be a trial to be had from any of them."""
        return set() if self.drained else self.wanting - self.idle or self.wanting


class Admission:
    """Permits and circuits of every backend."""

    def __init__(
        self,
        backends: Sequence[BackendSettings],
        *,
        tell: Callable[[str, m.ToWorker], None],
        clock: Callable[[], float] = time.monotonic,
        on_unreachable: Callable[[str, str], None] | None = None,
        chance: random.Random | None = None,
        retry_after_cap_s: float = RETRY_AFTER_CAP_S,
        trial_patience_s: float = TRIAL_PATIENCE_S,
        holds: Callable[[str, str, str], bool] = lambda *_: True,
        on_models: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_unreachable` hears of a backend, and why, whose circuit closed over that.

        `holds` says whether a worker has shards for a backend of a model, by its name there;
        `on_models` hears when a model went away from a backend, or came back.
        """
        self._tell = tell
        self._on_unreachable = on_unreachable
        self._clock = clock
        self._random = chance or random.Random()  # noqa: S311  # jitter, not a secret
        self._retry_after_cap_s = retry_after_cap_s
        self._trial_patience_s = trial_patience_s
        self._desks = {
            b.name: _desk_of(
                b,
                RateDesk(b, tell=tell, now=clock(), retry_after_cap_s=retry_after_cap_s),
                ModelDesk(
                    b.name,
                    tell=tell,
                    holds=_at(b.name, holds),
                    on_change=on_models,
                    patience_s=trial_patience_s,
                ),
            )
            for b in backends
        }

    def waiting_reasons(self) -> Mapping[str, Reason]:
        """Backend to why lines wait for it: a closed circuit, a person who drained it, or a pace
        that its limits set."""
        return {one.name: one.waits for one in self.standings({}) if one.waits is not None}

    def standings(self, in_flight: Mapping[str, int]) -> Sequence[Standing]:
        """Every backend in the order of the settings; `in_flight` is what workers told."""
        found, now = [], self._clock()
        for name, desk in self._desks.items():
            circuit, permits = desk.circuit, sum(desk.pool.held.values())
            found.append(
                Standing(
                    name=name,
                    weight=desk.settings.weight,
                    max_in_flight=desk.ceiling,
                    permits=permits,
                    in_flight=min(permits, in_flight.get(name, 0)),
                    gated=circuit.shown(now),
                    drained=desk.drained,
                    paced=desk.rates.reason(now),
                    away=desk.models.reasons(now),
                )
            )
        return found

    def limits(self) -> Mapping[str, int]:
        """Backend to how many requests may be in flight there now."""
        return {name: desk.pool.limit for name, desk in self._desks.items()}

    def models_away(self, backend: str) -> Collection[str]:
        """The models, by its names for them, that the backend does not have now."""
        return self._desks[backend].models.away

    def is_wanted(self, backend: str) -> bool:
        """Whether some worker has lines for it."""
        return bool(self._desks[backend].wanting)

    def note_answering(self, backends: Collection[str]) -> None:
        """These answered lines since the worker's last heartbeat, a second ago or so."""
        now = self._clock()
        for name in backends:
            self._desks[name].answered_at = now

    def has_answered_since(self, name: str, instant: float) -> bool:
        """Whether a line was answered by the backend since `instant`, or a heartbeat before it."""
        return self._desks[name].answered_at >= instant

    # -- who holds what --------------------------------------------------------------------

    def set_wanting(
        self, worker: str, backends: Collection[str], *, one_permit: bool = False
    ) -> None:
        """`worker` holds shards for exactly `backends`; `one_permit` is all it can use of each."""
        for name, desk in self._desks.items():
            wants = name in backends
            if wants == (worker in desk.wanting):
                continue
            if wants:
                desk.wanting.add(worker)
                if one_permit:
                    desk.single.add(worker)
                self._tell(worker, m.SetCircuit(name, admitting=desk.circuit.admitting))
                desk.models.wanted_by(worker)
                desk.rates.wanted_by(worker)
            else:
                desk.rates.gone(worker)
                desk.wanting.discard(worker)
                desk.single.discard(worker)
                if desk.steering is not None:
                    desk.steering.gone(worker)
            self._rebalance(name, desk)

    def worker_gone(self, worker: str) -> None:
        """The worker is reaped: its permits and its trial are free."""
        for name, desk in self._desks.items():
            desk.wanting.discard(worker)
            desk.single.discard(worker)
            desk.idle.discard(worker)
            desk.pool.gone(worker)
            if desk.steering is not None:
                desk.steering.gone(worker)
            desk.rates.gone(worker)
            desk.circuit.trial_returned(worker, self._clock())
            desk.models.gone(worker, self._clock())
            self._rebalance(name, desk)

    def lane_idle(self, worker: str, message: m.LaneIdle) -> None:
        """The worker has no use for its permits, or has again."""
        desk = self._desks[message.backend]
        if message.idle:
            desk.idle.add(worker)
        else:
            desk.idle.discard(worker)
        self._rebalance(message.backend, desk)

    def _rebalance(self, name: str, desk: _Desk) -> None:
        orders = desk.pool.rebalance(desk.takers, single=desk.single & desk.takers)
        self._order(name, desk, orders)

    def _order(self, name: str, desk: _Desk, orders: Mapping[str, int]) -> None:
        for worker, permits in orders.items():
            number = desk.pool.orders[worker]
            self._tell(worker, m.SetPermits(name, permits, number, desk.measure))

    def _follow(self, name: str, desk: _Desk, steering: Steering) -> None:
        """Hand out what the limit is now."""
        if steering.is_settled and not desk.settled:
            telemetry.event("backend_limit_found", backend=name, in_flight=steering.limit)
        desk.settled = steering.is_settled
        new_measure = steering.measure != desk.measure
        if steering.limit == desk.pool.limit and not new_measure:
            return
        desk.pool.limit, desk.measure = steering.limit, steering.measure
        orders = desk.pool.rebalance(desk.takers, single=desk.single & desk.takers)
        self._order(name, desk, orders)
        if new_measure:  # also for those whose share is what it was
            self._order(name, desk, desk.pool.again(desk.takers - orders.keys()))

    # -- what workers report ---------------------------------------------------------------

    def permits_held(self, worker: str, message: m.PermitsHeld) -> None:
        desk = self._desks[message.backend]
        desk.pool.given_back(worker, message.permits, order=message.order)
        self._rebalance(message.backend, desk)

    def fault(self, worker: str, message: m.BackendFault) -> None:
        desk = self._desks[message.backend]
        circuit = desk.circuit
        if message.trial and circuit.trial_with not in (None, worker):
            return
        closed = self._close(
            desk,
            Outcome(message.outcome),
            message.reason,
            asked_s=self._believed(message.retry_after_s),
            trial=message.trial,
        )
        # Once a backend has gone away, refusals tell of that and not of its limit.
        of_load = message.outcome == Outcome.SHED and desk.shedding
        if desk.steering is not None and of_load and not message.trial:
            desk.steering.shed(
                worker,
                message,
                now=self._clock(),
                first=closed,
                pool=desk.pool,
            )
            self._follow(message.backend, desk, desk.steering)
        if message.trial and circuit.believes(self._trial_patience_s):
            telemetry.trouble("errors_believed", backend=message.backend, reason=message.reason)
            self._admit(desk)

    def _believed(self, retry_after_s: float | None) -> float:
        return min(retry_after_s or 0.0, self._retry_after_cap_s)

    def _close(
        self,
        desk: _Desk,
        outcome: Outcome,
        reason: str,
        *,
        asked_s: float = 0.0,
        trial: bool = False,
    ) -> bool:
        """Tell the circuit of a fault; whether it closed over it."""
        closed = desk.circuit.fault(
            outcome,
            reason,
            now=self._clock(),
            asked_s=asked_s,
            trial=trial,
            roll=self._random.random(),
        )
        if closed:
            desk.shedding = outcome is Outcome.SHED
            name = desk.settings.name
            telemetry.trouble("backend_gated", backend=name, outcome=outcome, reason=reason)
            # Also the one that met the fault: an earlier word to admit may be on its way to it.
            for each in sorted(desk.wanting):
                self._tell(each, m.SetCircuit(name, admitting=False))
            if outcome is Outcome.NOT_SENT and self._on_unreachable is not None:
                self._on_unreachable(name, reason)
        return closed

    def lane_report(self, worker: str, message: m.LaneReport) -> None:
        desk = self._desks[message.backend]
        if desk.steering is not None and worker in desk.wanting:
            order = desk.pool.orders.get(worker, 0)
            desk.steering.report(worker, message, now=self._clock(), order=order)
            self._follow(message.backend, desk, desk.steering)

    def engine_load(self, backend: str, load: EngineLoad) -> None:
        """What the backend's own page says of it."""
        desk = self._desks[backend]
        if desk.steering is not None:
            desk.steering.look(
                load,
                now=self._clock(),
                pool=desk.pool,
                wanting=desk.takers,
            )
            self._follow(backend, desk, desk.steering)

    def trial_over(self, worker: str, message: m.TrialOver) -> None:
        desk = self._desks[message.backend]
        if not message.worked:
            desk.circuit.trial_returned(worker, self._clock())
            return
        self._admit(desk)

    def _admit(self, desk: _Desk) -> None:
        name = desk.settings.name
        if desk.circuit.answered():
            telemetry.event("backend_admitted", backend=name)
        for worker in sorted(desk.wanting):
            self._tell(worker, m.SetCircuit(name, admitting=True))

    def model_away(self, worker: str, message: m.ModelAway) -> None:
        desk = self._desks[message.backend]
        desk.models.missed(
            worker,
            message,
            desk.wanting,
            self._clock(),
            asked_s=self._believed(message.retry_after_s),
            roll=self._random.random(),
        )

    def model_tried(self, worker: str, message: m.ModelTried) -> None:
        desk = self._desks[message.backend]
        desk.models.tried(worker, message, desk.wanting, self._clock())

    def rates_asked(self, worker: str, message: m.AskRates) -> None:
        desk = self._desks[message.backend]
        if worker in desk.wanting:
            desk.rates.ask(worker, message.want, self._clock())

    def rates_heard(self, message: m.RatesHeard) -> None:
        desk = self._desks[message.backend]
        desk.rates.heard(message, desk.wanting, self._clock(), roll=self._random.random())

    # -- what others know ------------------------------------------------------------------

    def set_drained(self, name: str, *, drained: bool) -> None:
        """Give nobody a permit (any more), or give them again; what is in flight goes on."""
        desk = self._desks[name]
        desk.drained = drained
        self._rebalance(name, desk)

    def set_places(self, name: str, places: int | None) -> None:
        """The engine runs so many requests at once, and nobody said how many to send: so many.

        None: it does not say (any more); then it is what it is by default.
        """
        desk = self._desks[name]
        before, desk.places = desk.ceiling, places
        ceiling = desk.ceiling
        if ceiling == before:
            return
        telemetry.event("backend_places", backend=name, in_flight=ceiling)
        if desk.steering is not None:
            desk.steering.set_ceiling(ceiling, now=self._clock())
            self._follow(name, desk, desk.steering)
        else:
            desk.pool.limit = ceiling
            self._rebalance(name, desk)

    def note_down(self, name: str, reason: str, *, silent: bool) -> None:
        """Looks at the backend find nobody: no line need find that out.

        `silent`: it takes connections and says nothing, so that a trial would be held.
        """
        desk = self._desks[name]
        if desk.circuit.admitting or desk.circuit.outcome in (Outcome.NOT_SENT, Outcome.BROKEN):
            asked_s = SILENT_WAIT_S if silent else 0.0
            self._close(desk, Outcome.NOT_SENT, reason, asked_s=asked_s)

    def note_up(self, name: str) -> None:
        """Looks at the backend find it again: a line tries it, where there is one."""
        desk = self._desks[name]
        desk.circuit.came_up(self._clock())
        if not desk.wanting and desk.circuit.outcome is Outcome.NOT_SENT:
            desk.circuit.answered()

    def note_models(self, name: str, models: Collection[str]) -> None:
        """The backend's catalogue lists these."""
        self._desks[name].models.listed(models, self._clock())

    # -- time ------------------------------------------------------------------------------

    def due_s(self) -> float:
        """Seconds until a tick may have something to grant to a worker that waits for it."""
        now = self._clock()
        return min((desk.rates.due_s(now) for desk in self._desks.values()), default=math.inf)

    def tick(self) -> None:
        """Grant what is due, pass on permits that are too few, and ask one worker per closed
        circuit to try a line."""
        now = self._clock()
        for name, desk in self._desks.items():
            desk.rates.serve(now)
            if desk.models.away:
                admits = desk.circuit.admitting and not desk.drained
                desk.models.tick(desk.wanting, now, admits=admits, chance=self._random)
            if now >= desk.turns_at:
                desk.turns_at = now + TURN_S / 2
                self._order(name, desk, desk.pool.pass_on(desk.takers))
            if not desk.drained and desk.circuit.trial_due(now):
                able = [one for one in sorted(desk.wanting) if desk.pool.told.get(one)]
                if not able:
                    continue
                worker = self._random.choice(able)
                desk.circuit.trial_with = worker
                self._tell(worker, m.SetCircuit(name, admitting=False, trials=1))


def _at(backend: str, holds: Callable[[str, str, str], bool]) -> Callable[[str, str], bool]:
    return lambda worker, model: holds(worker, backend, model)


def _desk_of(backend: BackendSettings, rates: RateDesk, models: ModelDesk) -> _Desk:
    steering = steering_of(backend)
    if steering is None:
        fixed = FixedLimit(max_in_flight=backend.max_in_flight)
        return _Desk(backend, Circuit(), PermitPool(fixed.limit()), rates, models)
    pool = PermitPool(steering.limit)
    return _Desk(
        backend, Circuit(), pool, rates, models, steering=steering, measure=steering.measure
    )
