"""Allowances as arithmetic: never more than there is, in no minute, and hardly less."""

from __future__ import annotations

import math
from collections import deque

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from batchline.executor.rates import FULL, SHARE, Kind, Rates, Told, Want

START = 1_000.0
ONE = Want(1)


def rates(*, requests: float | None = None, tokens: float | None = None) -> Rates:
    made = Rates()
    if requests is not None:
        made.limit(Kind.REQUESTS, requests, START)
    if tokens is not None:
        made.limit(Kind.TOKENS, tokens, START)
    return made


def sent_in(made: Rates, begin: float, end: float, want: Want = ONE, step: float = 0.05) -> int:
    """How many requests go in that time when everything that may go goes."""
    sent, now = 0, begin
    while now < end:
        while (granted := made.grant(want, now)) is not None:
            sent += max(granted.requests, 1)
        now += step
    return sent


def test_without_limits_everything_goes() -> None:
    assert rates().grant(Want(5, 100.0, 20.0), START) == Want(5, 100.0, 20.0)


def test_nothing_goes_at_the_start_since_it_may_have_been_spent_before() -> None:
    """A restart within a minute: what the server before sent is not known."""
    assert rates(requests=600).grant(ONE, START) is None
    assert sent_in(rates(requests=600), START, START + 1) <= 10


def test_a_start_costs_a_few_seconds_and_not_a_minute() -> None:
    assert sent_in(rates(requests=600), START, START + 60) >= 600 * 0.95


@pytest.mark.parametrize("limit", [1, 3, 10, 600])
def test_nearly_all_of_it_is_used_for_hours(limit: int) -> None:
    made = rates(requests=limit)
    sent_in(made, START, START + 120)
    minutes = 30 if limit < 100 else 5
    sent = sent_in(made, START + 120, START + 120 + minutes * 60)
    assert 0.98 * limit * minutes - 1 <= sent <= limit * minutes


@settings(max_examples=30, deadline=None)
@given(
    limit=st.sampled_from([1, 5, 60, 500, 2_000]),
    pauses=st.lists(st.floats(0.001, 20.0), min_size=5, max_size=40),
)
@example(limit=1, pauses=[1.0, 1.5, 4.5, 19.5, 1.5, 5.25, 19.5])  # at the whole rate it is 2
def test_no_minute_sees_more_than_the_limit_however_late_the_ticks(
    limit: int, pauses: list[float]
) -> None:
    made = rates(requests=limit)
    now, recent = START, deque[float]()
    for pause in pauses * 4:
        now += pause
        while made.grant(ONE, now) is not None:
            recent.append(now)
        while recent and recent[0] <= now - 60:
            recent.popleft()
        assert len(recent) <= limit


def test_tokens_and_requests_both_count() -> None:
    made = rates(requests=600, tokens=6_000)
    sent_in(made, START, START + 60, Want(1, 100.0, 100.0))
    assert sent_in(made, START + 60, START + 120, Want(1, 100.0, 100.0)) in (59, 60)


def test_a_block_is_granted_in_part() -> None:
    made = rates(requests=6_000)
    made.grant(Want(64), START)
    granted = made.grant(Want(64), START + 0.3)
    assert granted is not None
    assert 1 <= granted.requests < 64
    while (more := made.grant(Want(64), START + 0.3)) is not None:
        assert more.requests == 1  # of a fraction that is there: the rest is owed


def test_the_first_line_of_a_block_is_granted_whole() -> None:
    made = rates(tokens=60_000)
    made.grant(Want(0, 1.0, 1.0), START)
    granted = made.grant(Want(0, 5_000.0, 1_000.0), START + 3)
    assert granted is not None
    assert 1_000 <= granted.tokens <= 5_000


def test_a_line_above_the_whole_allowance_waits_for_all_of_it() -> None:
    made = rates(tokens=6_000)
    huge = Want(0, 90_000.0, 6_000.0)
    assert made.grant(huge, START + 58) is None
    granted = made.grant(huge, START + 60 * FULL + 0.1)
    assert granted is not None
    assert granted.tokens == 6_000
    # It is paid for by those behind it.
    assert made.grant(Want(0, 10.0, 10.0), START + 60) is None
    assert made.grant(Want(0, 10.0, 10.0), START + 125) is not None


def test_what_was_estimated_too_high_comes_back() -> None:
    made = rates(tokens=6_000)
    (bucket,) = made.of(Kind.TOKENS)
    assert made.grant(Want(0, 3_000.0, 3_000.0), START + 60) is not None
    level = bucket.level
    made.correct(-2_000.0, START + 60)
    assert bucket.level == pytest.approx(level + 2_000)
    assert bucket.credit == pytest.approx(-1_000, abs=60)


def test_what_was_estimated_too_low_is_owed() -> None:
    made = rates(tokens=6_000)
    made.grant(Want(0, 100.0, 100.0), START + 60)
    made.correct(2_000.0, START + 60)
    assert made.grant(Want(0, 1.0, 1.0), START + 79) is None
    assert made.grant(Want(0, 1.0, 1.0), START + 82) is not None


# -- what answers say ------------------------------------------------------------------------------


def test_nonsense_that_was_counted_is_owed_for_minutes_and_not_for_years() -> None:
    """A backend that tells of 10 ** 12 tokens in one answer. If this fails, no line goes there
    until the server is started again, and nothing says why."""
    made = rates(tokens=6_000)
    want = Want(1, 100.0, 100.0)
    sent_in(made, START, START + 60, want)
    made.correct(1e12, START + 60)
    assert sent_in(made, START + 60, START + 60 + 300, want, step=1.0) == 0
    assert sent_in(made, START + 360, START + 1_260, want, step=1.0) >= 60


def test_a_limit_that_is_told_holds_from_then_on() -> None:
    made = rates()
    told = Told(limit=600, remaining=100, reset_s=50.0)
    made.told(Kind.REQUESTS, told, START, age_s=0.0)
    assert made.smallest(Kind.REQUESTS) == 600
    assert made.smallest(Kind.TOKENS) is None
    sent = sent_in(made, START, START + 60)
    assert 600 * 0.95 <= sent <= 600


def test_the_settings_are_never_exceeded_by_what_is_told() -> None:
    made = rates(requests=60)
    made.told(Kind.REQUESTS, Told(limit=6_000, remaining=6_000), START, age_s=0.0)
    assert sent_in(made, START, START + 60) <= 60


def test_a_lower_limit_that_is_told_is_believed() -> None:
    made = rates(requests=6_000)
    made.told(Kind.REQUESTS, Told(limit=60, remaining=60), START, age_s=0.0)
    assert sent_in(made, START, START + 60) <= 60


def test_of_several_models_limits_the_lowest_holds_until_nobody_tells_of_it() -> None:
    made = rates()
    low, high = Told(limit=60, remaining=60), Told(limit=600, remaining=600)
    made.told(Kind.REQUESTS, low, START, age_s=0.0)
    made.told(Kind.REQUESTS, high, START + 59, age_s=0.0)
    assert made.smallest(Kind.REQUESTS) == 60
    made.told(Kind.REQUESTS, high, START + 61, age_s=0.0)
    assert made.smallest(Kind.REQUESTS) == 600


def test_what_was_sent_since_an_answers_request_is_not_in_what_it_tells() -> None:
    made = rates(requests=600)
    sent = sent_in(made, START, START + 20)
    assert sent > 100
    # Told of a moment ten seconds ago, at which 50 were left; 100 have come and gone since.
    made.told(Kind.REQUESTS, Told(limit=600, remaining=50), START + 20, age_s=10.0)
    (bucket,) = made.of(Kind.REQUESTS)
    assert bucket.level == pytest.approx(50, abs=5)


def test_with_little_left_the_pace_falls() -> None:
    made = rates(requests=600)
    sent_in(made, START, START + 60)
    made.told(Kind.REQUESTS, Told(limit=600, remaining=4), START + 60, age_s=0.0)
    assert sent_in(made, START + 60, START + 61) <= 6


def test_a_limit_for_a_day_is_not_spread_over_it() -> None:
    made = rates()
    told = Told(limit=14_400, remaining=1_000, reset_s=80_400.0)
    made.told(Kind.REQUESTS, told, START, age_s=0.0)
    assert sent_in(made, START, START + 60) > 500


def test_what_others_take_is_learnt_and_left_to_them() -> None:
    made = rates(requests=600)
    level, sent, now = 300.0, 0, START
    for tick in range(20 * 300):
        now = START + tick / 20
        level = min(600.0, level + (10 - 6) / 20)  # somebody else takes six of ten
        while made.grant(ONE, now) is not None:
            level -= 1
            sent += 1
        assert level >= 0
        if tick % 10 == 0:
            told = Told(limit=600, remaining=max(0, int(level)))
            made.told(Kind.REQUESTS, told, now, age_s=0.0)
    assert sent >= (4 * 300 + 300) * 0.97  # what the account had at the start too


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("told", [frozenset(), frozenset({Kind.REQUESTS})])
def test_after_a_refusal_nothing_goes_until_the_backend_said(told: frozenset[Kind]) -> None:
    """Also where it says that there is something left: then it is another limit that was met."""
    made = rates(requests=6_000)
    sent_in(made, START, START + 10)
    made.refused(START + 10, retry_after_s=5.0, told=told, roll=0.0)
    assert made.grant(ONE, START + 14.9) is None
    assert made.grant(ONE, START + 15.2) is not None


def test_at_the_end_of_a_refusal_there_is_no_burst() -> None:
    """What the backend said is when one request goes, and not half a second's worth of them."""
    made = rates(requests=6_000)
    sent_in(made, START, START + 60)
    made.refused(START + 60, retry_after_s=5.0, told=frozenset(), roll=0.0)
    assert sent_in(made, START + 60, START + 65.1, step=0.01) <= 6


def test_without_a_word_from_the_backend_waits_double_and_are_forgotten() -> None:
    made = rates(requests=6_000)
    waits, now = list[float](), START
    for _ in range(8):
        made.refused(now, retry_after_s=None, told=frozenset(), roll=1.0)
        waits.append(made.hold_until - now)
        now = made.hold_until + 0.1
    assert waits == [1, 2, 4, 8, 16, 30, 30, 30]
    made.refused(now + 61, retry_after_s=None, told=frozenset(), roll=1.0)
    assert made.hold_until - (now + 61) == 1


def test_refusals_of_requests_that_were_under_way_count_as_one() -> None:
    made = rates(requests=6_000)
    for _ in range(50):
        made.refused(START, retry_after_s=None, told=frozenset(), roll=1.0)
    assert made.hold_until == START + 1


def test_an_account_that_refuses_for_no_reason_we_know_is_asked_for_less() -> None:
    made = rates(requests=600)
    sent_in(made, START, START + 60)
    made.refused(START + 60, retry_after_s=0.0, told=frozenset(), roll=0.0)
    made.refused(START + 62, retry_after_s=0.0, told=frozenset(), roll=0.0)
    (bucket,) = made.of(Kind.REQUESTS)
    assert bucket.others == pytest.approx(0.1 * bucket.refill, rel=0.05)
    assert bucket.pace <= SHARE * bucket.refill


def test_what_others_took_of_a_larger_limit_does_not_sink_the_level_of_a_smaller_one() -> None:
    """The headers of another model tell a hundredth. If this fails, nothing goes for hours."""
    made = Rates()
    made.limit(Kind.TOKENS, 60_000, 0.0)
    now = 0.0
    for _ in range(10):
        now += 1.5
        made.refused(now, retry_after_s=0.0, told=frozenset(), roll=0.5)
    made.told(Kind.TOKENS, Told(remaining=10.0, limit=60), now, age_s=0.0)
    until = now + 120.0
    while made.grant(Want(1, 1.0, 1.0), now) is None:
        now += 1.0
        assert now < until


HEARD = st.one_of(
    st.tuples(st.just("ask"), st.integers(0, 64), st.sampled_from([0.0, 1.0, 1e3, 1e18])),
    st.tuples(st.just("correct"), st.sampled_from([-1e12, -1.0, 1.0, 1e6, 1e12])),
    st.tuples(
        st.just("told"),
        st.builds(
            Told,
            remaining=st.sampled_from([0.0, 0.5, 59.0, 600.0, 1e15]),
            limit=st.sampled_from([None, 60.0, 600.0, 1e6, 1e15]),
            reset_s=st.sampled_from([None, 0.0, 1e-6, 1.0, 60.0]),
        ),
        st.sampled_from([0.0, 1.0, 1e6]),
    ),
    st.tuples(st.just("refused"), st.sampled_from([None, 0.0, 300.0]), st.booleans()),
)


@example([(0.0, ("correct", 1e6)), (0.0, ("told", Told(remaining=0.0, limit=60.0), 0.0))])
@example(
    [
        (0.0, ("correct", 1e6)),
        (0.0, ("told", Told(remaining=600.0, limit=60.0, reset_s=60.0), 0.0)),
    ]
)
@settings(derandomize=True)
@given(st.lists(st.tuples(st.sampled_from([0.0, 0.005, 1.0, 61.0, 4e3]), HEARD), max_size=40))
def test_after_any_nonsense_a_line_goes_in_the_end(
    heard: list[tuple[float, tuple[object, ...]]],
) -> None:
    """What is owed, held and told is bounded; and no number on the way is none."""
    made, now = Rates(), 0.0
    made.limit(Kind.REQUESTS, 600, now)
    made.limit(Kind.TOKENS, 60_000, now)
    for later_s, one in heard:
        now += later_s
        match one:
            case ("ask", int() as requests, float() as tokens):
                made.grant(Want(requests, tokens, min(tokens, 100.0)), now)
            case ("correct", float() as tokens):
                made.correct(tokens, now)
            case ("told", Told() as told, float() as age_s):
                for kind in Kind:
                    made.told(kind, told, now, age_s=age_s)
            case (_, None | float() as asked_s, bool() as was_told):
                kinds = frozenset(Kind) if was_told else frozenset[Kind]()
                made.refused(now, retry_after_s=asked_s, told=kinds, roll=0.5)
            case _:
                raise AssertionError(one)
        for bucket in made.buckets.values():
            assert all(map(math.isfinite, (bucket.level, bucket.credit, bucket.others)))
            assert bucket.level <= bucket.limit
    until = now + 2_400.0
    while made.grant(Want(1, 1.0, 1.0), now) is None:
        now += 10.0
        assert now < until
