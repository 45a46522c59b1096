"""What the receipt of a cancel says: plain data, from what the executor told and what is counted.

It is kept beside the batch as JSON, first with what was running when the gates closed, then whole.
What is between the two in a crash is not known any more, and null in the receipt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Final

from batchline.domain.model import Batch
from batchline.executor.contract import AtGate, CancelBy, Ends, GateReport

Shape = dict[str, object]

_AT_GATE: Final = "at_gate"  # not shown: the backends as they were, for a receipt after a crash


class Proof(StrEnum):
    """Why nothing of the batch runs at a backend any more; the weakest that one request had."""

    ANSWERED = "answered"  # the backend ended every request itself
    CALLED = "called"  # it took our calls to abort the others
    CLOSED = "closed"  # their connections are closed, and it is known to stop then
    UNPROVEN = "unproven"  # their connections are closed: whether it stopped, nobody has seen


def at_gate(report: GateReport) -> Shape:
    """What can be said once the gates are closed."""
    return {
        _AT_GATE: [
            {
                "name": one.backend,
                "cancel": one.cancel.value,
                "stops_on_close": one.stops_on_close,
                "in_flight": one.in_flight,
            }
            for one in report.backends
        ],
        **_acknowledged(report),
    }


def whole(
    batch: Batch, *, report: GateReport | None, ends: Mapping[str, Ends], quiet_s: float
) -> Shape:
    """What is to be added to the receipt of `batch`, which nobody runs any more.

    `report` None: another process, now dead, closed the gates. Its connections are closed like
    those of a worker that was killed, and what became of its requests is not known.
    """
    already = batch.receipt or {}
    backends: list[Shape] | None
    if report is not None:
        backends = [_backend(one, ends.get(one.backend, Ends())) for one in report.backends]
    elif isinstance(left := already.get(_AT_GATE), Sequence):
        backends = [_backend(_read(one), None) for one in left]
    else:
        backends = None if batch.in_progress_at is not None else []
    finished = batch.counts.completed + batch.counts.failed
    aborted = _aborted(backends)
    receipt: Shape = {
        "quiet": None if backends is None else all(one["quiet"] for one in backends),
        "lines_finished": finished,
        "lines_aborted": aborted,
        "lines_never_sent": None if aborted is None else batch.counts.total - finished - aborted,
        "quiet_ms": _ms(quiet_s),
        "backends": backends,
        **({} if report is None else _acknowledged(report)),
    }
    return {name: value for name, value in receipt.items() if already.get(name) is None}


def _acknowledged(report: GateReport) -> Shape:
    return {
        "acknowledged_ms": _ms(report.acknowledged_s),
        "in_flight_at_acknowledgement": report.in_flight,
        "workers_killed": list(report.killed),
    }


def _backend(gate: AtGate, ends: Ends | None) -> Shape:
    """One backend's part. `ends` None: nobody is left who would know them."""
    known = ends is not None and gate.in_flight is not None
    counted = _with_lost(gate, ends or Ends())
    drained = gate.cancel is not CancelBy.DRAIN or (known and counted.unanswered == 0)
    none_ran = gate.in_flight == 0
    counts = {
        "finished_late": counted.finished_late,
        "answered": counted.answered,
        "closed": counted.closed,
        "called": counted.called,
        "calls_failed": counted.calls_failed,
        "unanswered": counted.unanswered,
    }
    return {
        "name": gate.backend,
        "cancel": gate.cancel.value,
        "in_flight": gate.in_flight,
        **(counts if known else dict.fromkeys(counts)),
        "quiet": none_ran or drained,
        "proof": _proof(gate, counted, known=known).value,
    }


def _with_lost(gate: AtGate, ends: Ends) -> Ends:
    """With the requests of workers that died since: the system closed their connections."""
    counted = Ends()
    counted.add(ends)
    lost = max(0, (gate.in_flight or 0) - ends.answered - ends.aborted)
    if gate.cancel is CancelBy.DRAIN:
        counted.unanswered += lost
    else:
        counted.closed += lost
    return counted


def _proof(gate: AtGate, ends: Ends, *, known: bool) -> Proof:
    if known and ends.aborted == 0:
        return Proof.ANSWERED
    if known and ends.aborted == ends.called:
        return Proof.CALLED
    return Proof.CLOSED if gate.stops_on_close else Proof.UNPROVEN


def _aborted(backends: Sequence[Shape] | None) -> int | None:
    """Lines that were sent and ended by us; None where nobody knows."""
    total = 0
    for one in backends if backends is not None else [{"closed": None}]:
        for name in ("closed", "called", "calls_failed", "unanswered"):
            count = one[name]
            if not isinstance(count, int):
                return None
            total += count
    return total


def _read(one: Mapping[str, object]) -> AtGate:
    """A backend of `at_gate` as it was stored."""
    in_flight = one["in_flight"]
    return AtGate(
        backend=str(one["name"]),
        cancel=CancelBy(str(one["cancel"])),
        stops_on_close=bool(one["stops_on_close"]),
        in_flight=in_flight if isinstance(in_flight, int) else None,
    )


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)
