"""What follows an attempt: every outcome, the clamps, and whose fault an HTTP answer is."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from batchline.domain.attempts import (
    BACKEND_OUTCOMES,
    Outcome,
    RetryIn,
    RetryPolicy,
    Settle,
    WaitForBackend,
    WaitForModel,
    backoff_s,
    classify,
    decide,
)

modest = settings(max_examples=100, deadline=None)

POLICY = RetryPolicy()

attempts = st.integers(1, 5_000)
rolls = st.floats(0, 1, exclude_max=True)
asked = st.none() | st.floats(allow_nan=False)
policies = st.builds(
    RetryPolicy,
    max_attempts=st.integers(1, 20),
    base_s=st.floats(0.001, 10),
    ceiling_s=st.floats(0.001, 600),
    retry_after_cap_s=st.floats(0, 600),
)


# -- decide --------------------------------------------------------------------------------------


@pytest.mark.parametrize("attempt", [1, 4, 5, 6, 10_000])
@pytest.mark.parametrize("outcome", list(Outcome))
def test_every_outcome_of_every_attempt_has_its_kind_of_decision(
    outcome: Outcome, attempt: int
) -> None:
    """Finals settle, backend outcomes wait, and the rest is tried five times."""
    decision = decide(outcome, attempt=attempt, policy=POLICY, roll=0.5)
    match outcome:
        case Outcome.ANSWERED | Outcome.REFUSED:
            assert decision == Settle()
        case Outcome.BROKEN:
            assert isinstance(decision, RetryIn if attempt < 5 else Settle)
        case Outcome.NOT_SENT | Outcome.SHED | Outcome.BLOCKED:
            assert decision == WaitForBackend(0.0)
        case Outcome.AWAY:
            assert decision == WaitForModel(0.0)
        case Outcome.UNABLE:
            assert decision == Settle()


@pytest.mark.parametrize("attempt", [1, 4, 5])
def test_what_a_backend_will_never_do_is_tried_at_one_that_has_not_said_so(attempt: int) -> None:
    """Within the attempts of the line: when no other takes it, it comes back here."""
    decision = decide(Outcome.UNABLE, attempt=attempt, policy=POLICY, roll=0.5, elsewhere=True)
    assert isinstance(decision, RetryIn if attempt < 5 else Settle)


def test_the_backends_outcomes_are_those_that_never_use_an_attempt() -> None:
    waits = {
        outcome
        for outcome in Outcome
        if isinstance(decide(outcome, attempt=10**6, policy=POLICY, roll=0), WaitForBackend)
    }
    assert waits == BACKEND_OUTCOMES == {Outcome.NOT_SENT, Outcome.SHED, Outcome.BLOCKED}


@given(st.sampled_from(Outcome), attempts, policies, rolls, asked)
@modest
def test_no_outcome_is_ever_without_a_usable_decision(
    outcome: Outcome, attempt: int, policy: RetryPolicy, roll: float, asked_s: float | None
) -> None:
    decision = decide(outcome, attempt=attempt, policy=policy, roll=roll, retry_after_s=asked_s)
    if isinstance(decision, Settle):
        assert outcome not in BACKEND_OUTCOMES
        return
    assert math.isfinite(decision.delay_s)
    if isinstance(decision, WaitForBackend | WaitForModel):
        assert outcome in BACKEND_OUTCOMES or outcome is Outcome.AWAY
        assert 0 <= decision.delay_s <= policy.retry_after_cap_s
    else:
        assert outcome is Outcome.BROKEN
        assert attempt < policy.max_attempts
        assert 0 <= decision.delay_s <= max(policy.ceiling_s, policy.retry_after_cap_s)


def test_a_line_is_tried_as_often_as_the_policy_says() -> None:
    policy = RetryPolicy(max_attempts=3)
    decisions = [decide(Outcome.BROKEN, attempt=n, policy=policy, roll=0.5) for n in (1, 2, 3, 4)]
    assert decisions == [RetryIn(0.25), RetryIn(0.5), Settle(), Settle()]
    once = RetryPolicy(max_attempts=1)
    assert decide(Outcome.BROKEN, attempt=1, policy=once, roll=0.5) == Settle()


@pytest.mark.parametrize(
    ("asked_s", "believed_s"),
    [
        (None, 0.0),
        (0.0, 0.0),
        (-5.0, 0.0),
        (-math.inf, 0.0),
        (0.25, 0.25),
        (3_600.0, 3_600.0),
        (3_600.5, 3_600.0),
        (86_400.0, 3_600.0),
        (math.inf, 3_600.0),
    ],
)
@pytest.mark.parametrize("outcome", sorted(BACKEND_OUTCOMES))
def test_a_backends_wish_is_believed_up_to_the_cap(
    outcome: Outcome, asked_s: float | None, believed_s: float
) -> None:
    decision = decide(outcome, attempt=1, policy=POLICY, roll=0.9, retry_after_s=asked_s)
    assert decision == WaitForBackend(believed_s)


def test_a_retry_waits_for_the_longer_of_backoff_and_wish() -> None:
    def delay(asked_s: float, roll: float) -> object:
        return decide(Outcome.BROKEN, attempt=2, policy=POLICY, roll=roll, retry_after_s=asked_s)

    assert delay(0.1, 0.5) == RetryIn(0.5)
    assert delay(7.0, 0.5) == RetryIn(7.0)
    assert delay(9_999.0, 0.5) == RetryIn(3_600.0)


# -- backoff -------------------------------------------------------------------------------------


def test_the_window_doubles_from_the_base_to_the_ceiling() -> None:
    windows = [backoff_s(attempt, POLICY, 1.0) for attempt in range(1, 10)]
    assert windows == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]


@given(attempts, policies, rolls)
@example(1_025, RetryPolicy(), 0.5)  # 2.0 ** 1024 overflows
@example(10**9, RetryPolicy(), 0.5)
@modest
def test_the_jitter_is_full_and_stays_in_the_window(
    attempt: int, policy: RetryPolicy, roll: float
) -> None:
    window_s = backoff_s(attempt, policy, 1.0)
    assert min(policy.base_s, policy.ceiling_s) <= window_s <= policy.ceiling_s
    assert backoff_s(attempt, policy, 0.0) == 0.0
    assert backoff_s(attempt, policy, roll) == pytest.approx(window_s * roll)
    assert backoff_s(attempt + 1, policy, 1.0) >= window_s


# -- classify ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (200, Outcome.ANSWERED),
        (201, Outcome.ANSWERED),
        (299, Outcome.ANSWERED),
        (301, Outcome.REFUSED),  # redirects are never followed
        (304, Outcome.REFUSED),
        (400, Outcome.REFUSED),
        (401, Outcome.BLOCKED),
        (402, Outcome.BLOCKED),
        (403, Outcome.BLOCKED),
        (404, Outcome.REFUSED),
        (405, Outcome.REFUSED),
        (408, Outcome.BROKEN),
        (409, Outcome.REFUSED),
        (413, Outcome.REFUSED),
        (422, Outcome.REFUSED),
        (429, Outcome.SHED),
        (499, Outcome.REFUSED),
        (500, Outcome.BROKEN),
        (501, Outcome.UNABLE),
        (502, Outcome.BROKEN),
        (503, Outcome.SHED),
        (504, Outcome.BROKEN),
        (505, Outcome.UNABLE),
        (529, Outcome.BROKEN),
        (599, Outcome.BROKEN),
    ],
)
def test_a_status_alone_says_whose_fault_it_is(status: int, outcome: Outcome) -> None:
    for code in (None, "rate_limit_exceeded", "server_error", "billing", ""):
        for listed in (True, False):
            assert classify(status, error_code=code, model_is_listed=listed) is outcome


@pytest.mark.parametrize(
    ("status", "code", "listed", "outcome"),
    [
        # The catalogue lists the model, so that it is not found is the backend's fault.
        (404, "model_not_found", True, Outcome.AWAY),
        (404, "model_not_found", False, Outcome.REFUSED),
        # Only as a 404: with another status it is an answer about this request.
        (400, "model_not_found", True, Outcome.REFUSED),
        (500, "model_not_found", True, Outcome.BROKEN),
        # Any other 404 is an answer as well.
        (404, "NotFoundError", True, Outcome.REFUSED),
        (404, None, True, Outcome.REFUSED),
    ],
)
def test_a_model_that_is_not_found_is_away_only_when_some_catalogue_lists_it(
    status: int, code: str | None, listed: bool, outcome: Outcome
) -> None:
    assert classify(status, error_code=code, model_is_listed=listed) is outcome


@pytest.mark.parametrize("status", [400, 403, 404, 429, 500, 503])
@pytest.mark.parametrize(
    "code", ["insufficient_quota", "billing_hard_limit_reached", "billing_not_active"]
)
def test_quota_and_billing_block_the_backend_under_every_status(status: int, code: str) -> None:
    """A 429 for an empty account would otherwise be sent again for ever."""
    for listed in (True, False):
        assert classify(status, error_code=code, model_is_listed=listed) is Outcome.BLOCKED


def test_a_success_is_an_answer_whatever_its_body_says() -> None:
    for code in ("insufficient_quota", "billing_hard_limit_reached", "model_not_found"):
        assert classify(200, error_code=code, model_is_listed=True) is Outcome.ANSWERED


@given(st.integers(100, 599), st.none() | st.text(max_size=20), st.booleans())
@modest
def test_every_answer_has_an_outcome_and_none_means_that_nothing_was_sent(
    status: int, code: str | None, listed: bool
) -> None:
    outcome = classify(status, error_code=code, model_is_listed=listed)
    assert outcome is not Outcome.NOT_SENT
    assert (outcome is Outcome.ANSWERED) is (200 <= status < 300)
