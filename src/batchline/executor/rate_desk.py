"""One backend's allowances as the control process lends them to workers.

The control process alone knows the allowances; a worker sends what it was granted. A grant is spent
when it is given, so what a dead worker had of it counts as sent. Who asks first is served first,
and a line that needs much holds up the ones behind it: what they would take is what it waits for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

from batchline import telemetry
from batchline.domain.waiting import Reason, of_rate
from batchline.executor import messages as m
from batchline.executor.contract import BackendSettings
from batchline.executor.rates import Kind, Rates, Want


class RateDesk:
    """Grants for the workers of one backend; `tell` is the admission's."""

    def __init__(
        self,
        backend: BackendSettings,
        *,
        tell: Callable[[str, m.ToWorker], None],
        now: float,
        retry_after_cap_s: float,
    ) -> None:
        self._name = backend.name
        self._tell = tell
        self._retry_after_cap_s = retry_after_cap_s
        self._rates = Rates()
        self._asks: dict[str, Want] = {}  # by worker, the one that has waited longest first
        if backend.requests_per_minute is not None:
            self._rates.limit(Kind.REQUESTS, backend.requests_per_minute, now)
        if backend.tokens_per_minute is not None:
            self._rates.limit(Kind.TOKENS, backend.tokens_per_minute, now)

    def wanted_by(self, worker: str) -> None:
        """The worker is about to send there: it hears what is counted, if anything is."""
        if self._rates.buckets:
            self._tell(worker, self._terms())

    def gone(self, worker: str) -> None:
        self._asks.pop(worker, None)

    def ask(self, worker: str, want: Want, now: float) -> None:
        self._asks.pop(worker, None)
        self._asks[worker] = want
        self.serve(now)

    def serve(self, now: float) -> None:
        """Grant what may go by now, to the first that asked first."""
        while self._asks:
            worker, want = next(iter(self._asks.items()))
            granted = self._rates.grant(want, now)
            if granted is None:
                return
            del self._asks[worker]
            self._tell(worker, m.Grant(self._name, granted.requests, granted.tokens))

    def due_s(self, now: float) -> float:
        """Seconds until `serve` may have something to grant."""
        return self._rates.due_s(now) if self._asks else math.inf

    def heard(
        self, message: m.RatesHeard, workers: Collection[str], now: float, *, roll: float
    ) -> None:
        """A worker's report of answers; `workers` are those that send there."""
        rates = self._rates
        before = self._terms()
        rates.correct(message.tokens, now)
        told = {Kind.REQUESTS: message.requests_told, Kind.TOKENS: message.tokens_told}
        for kind, one in told.items():
            if one is not None:
                rates.told(kind, one, now, age_s=message.age_s)
        if message.refused:
            if now >= rates.hold_until:
                telemetry.event("backend_rate_met", backend=self._name)
            asked_s = message.retry_after_s
            rates.refused(
                now,
                retry_after_s=None if asked_s is None else min(asked_s, self._retry_after_cap_s),
                told=frozenset(kind for kind, one in told.items() if one is not None),
                roll=roll,
            )
        terms = self._terms()
        if message.refused or terms != before:
            # What workers still have of earlier grants is void; those with lines ask again.
            self._asks.clear()
            for worker in workers:
                self._tell(worker, terms)
        else:
            self.serve(now)

    def _terms(self) -> m.SetRates:
        return m.SetRates(
            self._name,
            requests=self._rates.smallest(Kind.REQUESTS) is not None,
            tokens=self._rates.smallest(Kind.TOKENS),
        )

    def reason(self, now: float) -> Reason | None:
        """Why lines wait here; None when none does."""
        if not self._asks:
            return None
        if now < self._rates.hold_until:
            return of_rate("", next_try_s=self._rates.hold_until - now)
        limits = [
            f"{bucket.limit:,.0f} {kind if bucket.limit != 1 else kind.removesuffix('s')}"
            f" {_PERIODS.get(period_s, 'a minute')}"
            for (kind, period_s), bucket in self._rates.buckets.items()
        ]
        return of_rate(", ".join(limits))


_PERIODS = {3600.0: "an hour", 86_400.0: "a day"}
