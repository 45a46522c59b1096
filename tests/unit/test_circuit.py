"""When a circuit admits, when it is tried again, and how long it waits."""

from __future__ import annotations

import pytest

from batchline.domain.attempts import Outcome
from batchline.executor.circuit import FIRST_WAIT_S, LONGEST_WAIT_S, Circuit


def fault(
    circuit: Circuit,
    *,
    now: float = 0.0,
    asked_s: float = 0.0,
    trial: bool = False,
    roll: float = 1.0,
    outcome: Outcome = Outcome.SHED,
) -> bool:
    return circuit.fault(outcome, "status 429", now=now, asked_s=asked_s, trial=trial, roll=roll)


def test_the_first_fault_closes_it_and_says_so_once() -> None:
    circuit = Circuit()
    assert fault(circuit)
    assert not circuit.admitting
    assert (circuit.outcome, circuit.reason) == (Outcome.SHED, "status 429")
    assert not fault(circuit)


@pytest.mark.parametrize(("roll", "wait_s"), [(0.0, FIRST_WAIT_S / 2), (1.0, FIRST_WAIT_S)])
def test_a_trial_is_due_after_half_to_all_of_the_wait(roll: float, wait_s: float) -> None:
    circuit = Circuit()
    fault(circuit, now=100.0, roll=roll)
    assert not circuit.trial_due(100.0 + wait_s - 0.001)
    assert circuit.trial_due(100.0 + wait_s)


def test_a_circuit_that_admits_needs_no_trial() -> None:
    assert not Circuit().trial_due(1e9)


def test_an_outage_counts_once_however_many_requests_meet_it() -> None:
    circuit = Circuit()
    for moment in range(500):
        fault(circuit, now=moment / 10_000)
    assert circuit.wait_s == FIRST_WAIT_S
    assert circuit.retry_at == FIRST_WAIT_S


def test_failed_trials_double_the_wait_up_to_the_longest() -> None:
    circuit = Circuit()
    fault(circuit)
    waits = []
    for _ in range(9):
        now = circuit.retry_at
        assert circuit.trial_due(now)
        circuit.trial_with = "w"
        assert not fault(circuit, now=now, trial=True)
        waits.append(circuit.retry_at - now)
    assert waits == [0.5, 1, 2, 4, 8, 16, LONGEST_WAIT_S, LONGEST_WAIT_S, LONGEST_WAIT_S]


def test_what_the_backend_asks_for_outweighs_a_shorter_wait() -> None:
    circuit = Circuit()
    fault(circuit, now=10.0, asked_s=60.0)
    assert circuit.retry_at == 70.0


def test_a_late_fault_can_only_lengthen_the_wait() -> None:
    circuit = Circuit()
    fault(circuit, now=0.0, asked_s=20.0)
    fault(circuit, now=1.0)
    assert circuit.retry_at == 20.0
    fault(circuit, now=2.0, asked_s=60.0)
    assert circuit.retry_at == 62.0


def test_a_late_fault_leaves_the_trial_to_its_worker() -> None:
    circuit = Circuit()
    fault(circuit)
    circuit.trial_with = "w"
    fault(circuit, now=1.0)
    assert circuit.trial_with == "w"
    assert not circuit.trial_due(1e9)


def test_one_answer_admits_again_and_forgets_the_wait() -> None:
    circuit = Circuit()
    fault(circuit)
    fault(circuit, trial=True)
    circuit.trial_with = "w"
    assert circuit.answered()
    assert circuit == Circuit(retry_at=circuit.retry_at)
    assert not circuit.answered()
    fault(circuit, now=50.0)
    assert circuit.retry_at == 50.0 + FIRST_WAIT_S


def test_a_trial_that_did_not_happen_is_due_again_shortly() -> None:
    circuit = Circuit()
    fault(circuit)
    circuit.trial_with = "w"
    circuit.trial_returned("another", 5.0)
    assert circuit.trial_with == "w"
    circuit.trial_returned("w", 5.0)
    assert not circuit.trial_due(5.0)
    assert circuit.trial_due(5.0 + FIRST_WAIT_S)
    assert circuit.wait_s == FIRST_WAIT_S  # nothing was learnt, so the wait did not double


def test_a_returned_trial_does_not_shorten_what_the_backend_asked_for() -> None:
    circuit = Circuit()
    fault(circuit, asked_s=60.0)
    circuit.trial_with = "w"
    circuit.trial_returned("w", 1.0)
    assert circuit.retry_at == 60.0


def test_server_errors_of_trials_are_believed_once_they_were_waited_for_long_enough() -> None:
    circuit = Circuit()
    fault(circuit, outcome=Outcome.NOT_SENT)
    waited = 0.0
    while waited < 3_600.0:
        assert not circuit.believes(3_600.0)
        before = circuit.retry_at
        fault(circuit, now=before, trial=True, outcome=Outcome.BROKEN)
        waited += circuit.retry_at - before
    assert circuit.believes(3_600.0)
    assert circuit.answered()
    fault(circuit)
    fault(circuit, now=circuit.retry_at, trial=True, outcome=Outcome.BROKEN)
    assert not circuit.believes(3_600.0)


def test_an_outage_between_takes_nothing_from_what_was_waited_for_errors_and_adds_nothing() -> None:
    """A line that brings its server down with each of its errors must come to an end too."""
    circuit = Circuit()
    fault(circuit, outcome=Outcome.NOT_SENT)
    fault(circuit, now=1.0, trial=True, outcome=Outcome.BROKEN)
    waited = circuit.broken_s
    assert waited > 0
    for now in range(2, 100):
        fault(circuit, now=float(now), trial=True, outcome=Outcome.NOT_SENT)
    assert circuit.broken_s == waited
    assert not circuit.believes(waited)  # what it met last is no such error
    fault(circuit, now=200.0, trial=True, outcome=Outcome.BROKEN)
    assert circuit.believes(waited + 1.0)


def test_who_has_no_patience_believes_nothing() -> None:
    circuit = Circuit()
    fault(circuit)
    fault(circuit, trial=True, outcome=Outcome.BROKEN)
    assert not circuit.believes(0.0)
