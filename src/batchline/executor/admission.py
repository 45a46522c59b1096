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

from batchline import telemetry
from batchline.domain.attempts import Outcome
from batchline.executor import messages as m
from batchline.executor.circuit import Circuit
from batchline.executor.contract import BackendSettings
from batchline.executor.limiter import FixedLimit
from batchline.executor.permits import PermitPool
from batchline.executor.rate_desk import RateDesk

_RETRY_AFTER_CAP_S = 300.0


@dataclass(slots=True)
class _Desk:
    circuit: Circuit
    pool: PermitPool
    rates: RateDesk
    wanting: set[str] = field(default_factory=set)
    single: set[str] = field(default_factory=set)  # of these, who can use one permit only


class Admission:
    """Permits and circuits of every backend."""

    def __init__(
        self,
        backends: Sequence[BackendSettings],
        *,
        tell: Callable[[str, m.ToWorker], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tell = tell
        self._clock = clock
        self._random = random.Random()  # noqa: S311  # jitter, not a secret
        self._desks = {
            b.name: _Desk(
                Circuit(),
                PermitPool(FixedLimit(max_in_flight=b.max_in_flight).limit()),
                RateDesk(b, tell=tell, now=clock()),
            )
            for b in backends
        }

    def gated(self) -> frozenset[str]:
        """The backends whose circuit is closed."""
        return frozenset(name for name, desk in self._desks.items() if not desk.circuit.admitting)

    def waiting_reasons(self) -> Mapping[str, str]:
        """Backend to why lines wait for it: a closed circuit, or a pace that its limits set."""
        now = self._clock()
        reasons = {
            name: desk.rates.reason(now)
            if desk.circuit.admitting
            else f"{desk.circuit.outcome}: {desk.circuit.reason}"
            for name, desk in self._desks.items()
        }
        return {name: reason for name, reason in reasons.items() if reason is not None}

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
                desk.rates.wanted_by(worker)
            else:
                desk.rates.gone(worker)
                desk.wanting.discard(worker)
                desk.single.discard(worker)
            self._rebalance(name, desk)

    def worker_gone(self, worker: str) -> None:
        """The worker is reaped: its permits and its trial are free."""
        for name, desk in self._desks.items():
            desk.wanting.discard(worker)
            desk.single.discard(worker)
            desk.pool.gone(worker)
            desk.rates.gone(worker)
            desk.circuit.trial_returned(worker, self._clock())
            self._rebalance(name, desk)

    def _rebalance(self, name: str, desk: _Desk) -> None:
        for worker, permits in desk.pool.rebalance(desk.wanting, single=desk.single).items():
            self._tell(worker, m.SetPermits(name, permits, desk.pool.orders[worker]))

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
        closed = circuit.fault(
            Outcome(message.outcome),
            message.reason,
            now=self._clock(),
            asked_s=min(message.retry_after_s or 0.0, _RETRY_AFTER_CAP_S),
            trial=message.trial,
            roll=self._random.random(),
        )
        if closed:
            telemetry.trouble(
                "backend_gated",
                backend=message.backend,
                outcome=message.outcome,
                reason=message.reason,
            )
            # Also the one that met the fault: an earlier word to admit may be on its way to it.
            for each in desk.wanting:
                self._tell(each, m.SetCircuit(message.backend, admitting=False))

    def trial_over(self, worker: str, message: m.TrialOver) -> None:
        desk = self._desks[message.backend]
        if not message.worked:
            desk.circuit.trial_returned(worker, self._clock())
            return
        if desk.circuit.answered():
            telemetry.event("backend_admitted", backend=message.backend)
        for other in desk.wanting:
            self._tell(other, m.SetCircuit(message.backend, admitting=True))

    def rates_asked(self, worker: str, message: m.AskRates) -> None:
        desk = self._desks[message.backend]
        if worker in desk.wanting:
            desk.rates.ask(worker, message.want, self._clock())

    def rates_heard(self, message: m.RatesHeard) -> None:
        desk = self._desks[message.backend]
        desk.rates.heard(message, desk.wanting, self._clock(), roll=self._random.random())

    # -- time ------------------------------------------------------------------------------

    def due_s(self) -> float:
        """Seconds until a tick may have something to grant to a worker that waits for it."""
        now = self._clock()
        return min((desk.rates.due_s(now) for desk in self._desks.values()), default=math.inf)

    def tick(self) -> None:
        """Grant what is due, and ask one worker per closed circuit to try a line."""
        now = self._clock()
        for name, desk in self._desks.items():
            desk.rates.serve(now)
            if desk.wanting and desk.circuit.trial_due(now):
                worker = self._random.choice(sorted(desk.wanting))
                desk.circuit.trial_with = worker
                self._tell(worker, m.SetCircuit(name, admitting=False, trials=1))
