"""Closing the gate of a batch in every worker that holds a shard of it, and what was running then.

The control process's half; a worker's is in `worker.Worker` and `aborts.Aborts`. The promise: when
`close` returned, each of the workers has acknowledged, or is dead and reaped.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from batchline import telemetry
from batchline.domain.ids import BatchId
from batchline.executor import messages as m
from batchline.executor import processes
from batchline.executor.aborts import CALL_S
from batchline.executor.contract import AtGate, BackendSettings, CancelBy, GateReport
from batchline.executor.worker_link import WorkerLink

HELD_UP_S: Final = 2.0  # the most that a worker gets that has no processor to answer with
_LOOK_S: Final = 0.02  # how often such a worker is looked at

Acks = Mapping[WorkerLink, asyncio.Future[m.GateClosed]]


class Gates:
    """Which gates are closed. `ack_s`: how long a worker may keep silent that could answer."""

    def __init__(self, backends: Sequence[BackendSettings], *, ack_s: float) -> None:
        self._backends = {backend.name: backend for backend in backends}
        self._ack_s = ack_s
        self._closed: set[BatchId] = set()

    def is_closed(self, batch_id: BatchId) -> bool:
        return batch_id in self._closed

    def forget(self, batch_id: BatchId) -> None:
        """Nothing will ask for the gate of this batch again."""
        self._closed.discard(batch_id)

    async def close(
        self, batch_id: BatchId, holders: Iterable[WorkerLink], *, grace_s: float, last_s: float
    ) -> GateReport:
        """As `Executor.close_gate`; `holders` are the workers that hold a shard of the batch."""
        began = time.monotonic()
        self._closed.add(batch_id)
        telemetry.probe("gate.closing")
        at_risk = {link: link.backends_of(batch_id) for link in holders}
        acks = {link: link.ask_gate(batch_id, grace_s=grace_s, last_s=last_s) for link in at_risk}
        telemetry.probe("gate.asked")
        silent = await self._heard(acks)
        untold: set[str] = set()
        for link in silent:
            telemetry.trouble("gate_not_acknowledged", worker=link.worker, batch_id=batch_id)
            link.kill()
        for link, ack in acks.items():
            if link in silent or ack.cancelled():  # or it died by itself
                untold |= at_risk[link]
        for link in silent:
            await link.gone.wait()
        telemetry.probe("gate.heard")
        running = _running(acks)
        return GateReport(
            acknowledged_s=time.monotonic() - began,
            backends=[self._at_gate(name, running, untold) for name in sorted({*running, *untold})],
            killed=[link.worker for link in silent],
            lets_go_s=self._lets_go_s(running, grace_s=grace_s, last_s=last_s),
        )

    async def _heard(self, acks: Acks) -> list[WorkerLink]:
        """Wait for the acknowledgements; who did not give one.

        A worker that would answer had it the processor (or the disk) is waited for up to
        `HELD_UP_S`: it is as good as one that answers, and killing it would cost other batches
        what it has in flight. One that is stopped, or sleeps over its message, is not.
        """
        give_up = time.monotonic() + max(self._ack_s, HELD_UP_S)
        wait_s = self._ack_s
        missing = set(acks.values())
        while missing:
            _, missing = await asyncio.wait(missing, timeout=wait_s)
            if time.monotonic() >= give_up or not any(
                processes.is_held_up(link.pid) for link, ack in acks.items() if ack in missing
            ):
                break
            wait_s = _LOOK_S
        if missing:
            # Late as we may be ourselves: what has come by now is read before anybody is killed.
            await asyncio.wait(missing, timeout=_LOOK_S)
        return [link for link, ack in acks.items() if not ack.done()]

    def _at_gate(self, name: str, running: Mapping[str, int], untold: set[str]) -> AtGate:
        backend = self._backends[name]
        return AtGate(
            backend=name,
            cancel=backend.cancel,
            stops_on_close=backend.stops_on_close,
            in_flight=None if name in untold else running[name],
        )

    def _lets_go_s(self, running: Iterable[str], *, grace_s: float, last_s: float) -> float:
        """When the slowest of the backends' ways is through."""
        through = {
            CancelBy.CLOSE: grace_s,
            CancelBy.CALL: grace_s + CALL_S,
            CancelBy.DRAIN: last_s,
        }
        return min(last_s, max([grace_s, *(through[self._backends[n].cancel] for n in running)]))


def _running(acks: Acks) -> Counter[str]:
    """Requests on the wire by backend, as the workers told."""
    told = (ack.result() for ack in acks.values() if ack.done() and not ack.cancelled())
    return sum((Counter(one.in_flight) for one in told), Counter[str]())
