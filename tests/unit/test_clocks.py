"""How far the wall clock is believed by what cannot be undone."""

from __future__ import annotations

from dataclasses import dataclass

from batchline.service.clocks import BELIEVED_AFTER_S, UnhurriedClock, steady

NOON = 1_750_000_000.0
HOUR = 3_600.0


@dataclass
class Clocks:
    """A machine: time passes, and the wall clock is set."""

    passed: float = 77.0
    ahead: float = 0.0

    def unhurried(self) -> UnhurriedClock:
        return UnhurriedClock(
            wall=lambda: NOON + self.passed + self.ahead, steady=lambda: self.passed
        )


def test_a_clock_that_nobody_sets_is_believed() -> None:
    clocks = Clocks()
    unhurried = clocks.unhurried()
    for passed in (77.0, 78.5, 100_000.0):
        clocks.passed = passed
        assert unhurried() == NOON + passed


def test_a_jump_forward_is_believed_when_it_has_lasted() -> None:
    clocks = Clocks()
    unhurried = clocks.unhurried()
    clocks.ahead = 30 * 24 * HOUR
    start = clocks.passed
    for later in (0.0, 20.0, BELIEVED_AFTER_S - 1):
        clocks.passed = start + later
        assert unhurried() == NOON + clocks.passed, "time passes as it really does"
    clocks.passed = start + BELIEVED_AFTER_S
    assert unhurried() == NOON + clocks.passed + clocks.ahead


def test_a_jump_forward_and_back_leaves_nothing() -> None:
    clocks = Clocks()
    unhurried = clocks.unhurried()
    for _ in range(5):
        clocks.ahead = HOUR
        clocks.passed += BELIEVED_AFTER_S / 2
        assert unhurried() == NOON + clocks.passed
        clocks.ahead = 0.0
        clocks.passed += BELIEVED_AFTER_S / 2
        assert unhurried() == NOON + clocks.passed


def test_a_clock_that_is_set_back_is_believed_at_once() -> None:
    clocks = Clocks()
    unhurried = clocks.unhurried()
    clocks.ahead = -HOUR
    assert unhurried() == NOON + clocks.passed - HOUR


def test_a_clock_that_is_being_adjusted_is_followed() -> None:
    clocks = Clocks()
    unhurried = clocks.unhurried()
    for _ in range(100):
        clocks.passed += 20.0
        clocks.ahead += 0.5
        assert unhurried() == NOON + clocks.passed + clocks.ahead


def test_steady_time_goes_forward() -> None:
    first = steady()
    assert steady() >= first
