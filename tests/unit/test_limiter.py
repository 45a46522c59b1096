"""The adaptive limit: found in time on engines of every kind, kept, and never out of bounds."""

from __future__ import annotations

from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchline.executor.limiter import AdaptiveLimit, FixedLimit
from bench.engines import KEPT_BACK, SHAPES, Engine, EngineShape, best_fixed, steady_rate
from bench.limiter import CEILING, FOUND_BY_S, REPORT_S, WITHIN, play

QUICK = [shape for shape in (*SHAPES, *KEPT_BACK) if shape.knee < 500]
STEADY = [shape for shape in QUICK if not shape.changes]
(CHANGING,) = (shape for shape in SHAPES if shape.changes)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("shape", STEADY, ids=lambda shape: shape.name)
def test_it_finds_the_knee_in_time_and_stays_there(shape: EngineShape, seed: int) -> None:
    played = play(shape, until=90.0, seed=seed)
    best = best_fixed(shape)
    # An answer of these takes 4.5 s: with one of two seeds the last step of the search is at 31 s.
    for start in (FOUND_BY_S + (5.0 if "slow" in shape.name else 0.0), 60.0):
        found = played.limits_between(start, start + 30.0)
        assert median(found) == pytest.approx(best.limit, rel=WITHIN)
        assert played.rate_between(start, start + 30.0) > 0.85 * best.tokens_per_s
        # Looking whether there is more to be had takes steps of a quarter.
        assert max(found) <= 1.6 * best.limit
        assert min(found) >= 0.6 * best.limit


def test_capacity_that_goes_and_comes_back_is_followed() -> None:
    played = play(CHANGING, until=180.0)
    half, whole = best_fixed(CHANGING, capacity=0.5).limit, best_fixed(CHANGING).limit
    assert median(played.limits_between(75.0, 120.0)) == pytest.approx(half, rel=WITHIN)
    assert median(played.limits_between(150.0, 180.0)) == pytest.approx(whole, rel=WITHIN)


def test_no_more_is_in_flight_than_the_ceiling_allows() -> None:
    endless = EngineShape(name="no knee", knee=10_000, step_s=0.005, tokens=20.0)
    played = play(endless, until=12.0)
    assert played.most_in_flight == CEILING == played.limits[-1][1]


@given(
    st.integers(1, 20),
    st.integers(0, 500),
    st.lists(
        st.one_of(
            st.tuples(st.integers(0, 50), st.integers(0, 10_000), st.floats(0, 1e6), st.booleans()),
            st.integers(0, 1_000),
        ),
        max_size=60,
    ),
)
def test_whatever_is_reported_it_stays_within_its_bounds(
    floor: int, above: int, reports: list[tuple[int, int, float, bool] | int]
) -> None:
    limiter = AdaptiveLimit(floor=floor, ceiling=floor + above)
    for number, one in enumerate(reports):
        now = number * REPORT_S
        if isinstance(one, int):
            limiter.shed(now, in_flight=one)
        else:
            answers, tokens, latency_s, limited = one
            limiter.report(
                now, answers=answers, tokens=tokens, latency_s=latency_s, limited=limited
            )
        assert floor <= limiter.limit() <= floor + above


def test_too_little_to_do_teaches_nothing() -> None:
    limiter = AdaptiveLimit(ceiling=100)
    for number in range(100):
        limiter.report(number, answers=10, tokens=100, latency_s=1.0, limited=False)
    assert limiter.limit() == AdaptiveLimit(ceiling=100).limit()


def test_what_was_shed_at_is_not_tried_again_at_once() -> None:
    limiter = AdaptiveLimit(ceiling=1_000)
    limiter.shed(0.0, in_flight=5)
    assert limiter.limit() == 4
    for number in range(100):
        limiter.report(number * REPORT_S, answers=10, tokens=100, latency_s=1.0, limited=True)
        assert limiter.limit() <= 4
    for number in range(120, 300):
        limiter.report(number * REPORT_S, answers=10, tokens=100, latency_s=1.0, limited=True)
    assert limiter.limit() > 4


def test_a_fixed_limit_is_what_was_configured() -> None:
    assert FixedLimit(max_in_flight=7).limit() == 7


@pytest.mark.parametrize("limit", [4, 64, 130])
def test_the_simulated_engine_keeps_to_its_formula(limit: int) -> None:
    shape = EngineShape(name="", knee=64)
    engine = Engine(shape, seed=3)
    tokens = 0
    while engine.now < 60.0:
        while engine.in_flight < limit:
            assert engine.submit() is None
        ended = engine.advance(60.0)
        tokens += 0 if ended is None else ended.tokens
    assert tokens / 60.0 == pytest.approx(steady_rate(shape, limit), rel=0.05)
