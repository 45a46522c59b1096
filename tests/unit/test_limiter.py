"""The adaptive limit: found in time on engines of every kind, kept, and never out of bounds.

The engines are simulated, the permits, circuits and lanes between them and the limiter are not.
"""

from __future__ import annotations

from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchline.executor.limiter import AdaptiveLimit, FixedLimit, Look
from batchline.executor.messages import OlderAnswers
from batchline.executor.search import FIRST
from bench.engines import KEPT_BACK, SLOW, Engine, EngineShape, steady_rate
from bench.limiter import FOUND_BY_S, TUNED_ON, WITHIN, found, parts_of, played
from bench.limiter_turns import by_turns
from bench.steered import Play

REPORT_S = 0.25


@pytest.mark.parametrize("shape", TUNED_ON, ids=lambda shape: shape.name)
def test_it_finds_what_an_engine_can_make_use_of_and_stays_there(shape: EngineShape) -> None:
    play = played(shape)
    for part in parts_of(shape):
        one = found(play, part)
        assert one.after_s <= FOUND_BY_S
        assert one.rate > 1 - WITHIN
        # Looking whether there is more to be had takes steps of a tenth, a few times a minute.
        assert one.highest <= 1.25 * one.limit
        assert one.lowest >= 0.8 * one.limit


@pytest.mark.parametrize("shape", SLOW[:6], ids=lambda shape: shape.name)
def test_slow_answers_without_a_page_are_not_waited_for_round_by_round(shape: EngineShape) -> None:
    """Answers that began at an earlier level tell of the present one. Without them the limit is
    found after up to 4.4 rounds of answers."""
    (part,) = parts_of(shape)
    for seed in (1, 2, 3):
        assert found(played(shape, seed=seed), part).after_s <= 2.5 * shape.tokens * shape.step_s


@pytest.mark.parametrize("shape", KEPT_BACK, ids=lambda shape: shape.name)
def test_engines_that_it_was_not_made_on_are_made_use_of_too(shape: EngineShape) -> None:
    """Not in the time that is asked of the others: some of these answer slowly or tell late."""
    play = played(shape)
    (part,) = parts_of(shape)
    assert found(play, part).rate > 1 - WITHIN


def test_workers_have_equal_shares_whatever_the_limit_is() -> None:
    play = played(EngineShape(name="", knee=30), until=60.0)
    # At first one of them has all, and gives up a half of it as its requests end.
    settled = [one for one in play.moments if one.at > 5.0 and one.in_flight == one.limit]
    assert len({one.limit for one in settled}) > 3
    assert all(abs(one.of_workers[0] - one.of_workers[1]) <= 1 for one in settled)


def test_no_more_is_in_flight_than_the_ceiling_allows() -> None:
    play = Play(shape=EngineShape(name="no knee", knee=10_000, tokens=20.0), ceiling=100)
    play.run(12.0)
    assert play.most_in_flight == play.moments[-1].limit == 100


def test_refusals_are_rare_once_the_limit_is_known() -> None:
    play = Play(shape=EngineShape(name="429 above 40", knee=200, sheds_above=40))
    play.run(20.0)
    early = play.refused
    play.run(120.0)
    assert play.refused - early < 40
    assert len(play.ended) > 2_000


@given(
    st.integers(1, 20),
    st.integers(0, 500),
    st.integers(0, 40),
    st.lists(
        st.one_of(
            st.tuples(st.integers(0, 50), st.integers(0, 10_000), st.floats(0, 1e6), st.booleans()),
            st.tuples(
                st.integers(0, 900),
                st.integers(0, 900),
                st.integers(0, 900),
                st.one_of(st.none(), st.floats(1e-4, 1e3)),
            ),
            st.tuples(st.integers(0, 1_000), st.booleans()),
        ),
        max_size=60,
    ),
)
def test_whatever_is_heard_it_stays_within_its_bounds(
    floor: int, above: int, good: int, heard: list[tuple[object, ...]]
) -> None:
    """After `good` measurements in a row, each of which is a reason to go up."""
    limiter = AdaptiveLimit(floor=floor, ceiling=floor + above, slowdown=1.3)
    up: tuple[object, ...] = (500, 50_000, 500.0, True)
    for number, one in enumerate([up] * good + heard):
        now = number * REPORT_S
        match one:
            case (int() as in_flight, bool() as first):
                limiter.shed(now, in_flight=in_flight, first=first)
            case (int() as answers, int() as tokens, float() as latency_s, bool() as limited):
                limiter.report(
                    now, answers=answers, tokens=tokens, latency_s=latency_s, limited=limited
                )
            case (int() as running, int() as waiting, int() as ours, None | float() as token_s):
                look = Look(
                    running=running,
                    waiting=waiting,
                    kv_use=None,
                    token_s=token_s,
                    ours=ours,
                    limited=True,
                )
                limiter.look(now, look)
            case _:
                raise AssertionError(one)
        assert floor <= limiter.limit() <= floor + above


WILD = st.one_of(st.integers(0, 60), st.sampled_from([10**3, 10**6, 10**12]))


@given(
    st.sampled_from([0.0, 1.0, 1.3]),
    st.lists(
        st.tuples(
            st.sampled_from([0.0, 0.25, 0.5, 11.0, 3600.0]),
            st.one_of(
                st.tuples(st.just("report"), WILD, st.sampled_from([1e-9, 1.0, 60.0, 1e9])),
                st.tuples(st.just("older"), WILD, WILD, st.sampled_from([0.0, 1e-9, 60.0, 1e9])),
                st.tuples(st.just("look"), WILD, WILD, WILD, st.sampled_from([1e-6, 0.02, 1e21])),
                st.tuples(st.just("steady"), st.sampled_from([1e-6, 0.01, 0.02, 0.1, 1e21])),
                st.tuples(st.just("shed"), st.booleans()),
            ),
        ),
        max_size=80,
    ),
)
def test_nonsense_and_idle_hours_end_nothing(
    slowdown: float, heard: list[tuple[float, tuple[object, ...]]]
) -> None:
    """It raises nothing: that would be the end of what was heard with it."""
    limiter = AdaptiveLimit(floor=2, ceiling=200, slowdown=slowdown)
    now = 0.0
    for later_s, one in heard:
        now += later_s
        ours = limiter.limit()
        match one:
            case ("report", int() as tokens, float() as latency_s):
                limiter.report(now, answers=9, tokens=tokens, latency_s=latency_s, limited=True)
            case ("older", int() as tokens, int() as answers, float() as seconds):
                level = limiter.measure
                older = OlderAnswers(
                    answers=answers + 1,
                    tokens=tokens,
                    seconds={level: seconds, level - 1: 5.0},
                    before={level: answers},
                )
                limiter.report(now, answers=0, tokens=0, latency_s=0.0, limited=True, older=older)
            case ("look", int() as running, int() as waiting, int() as of_us, float() as token_s):
                look = Look(
                    running=running,
                    waiting=waiting,
                    kv_use=1.0,
                    token_s=token_s,
                    ours=of_us,
                    limited=True,
                )
                limiter.look(now, look)
            case ("steady", float() as token_s):
                look = Look(
                    running=ours, waiting=0, kv_use=0.1, token_s=token_s, ours=ours, limited=True
                )
                limiter.look(now, look)
            case (_, bool() as first):
                limiter.shed(now, in_flight=ours, first=first)
            case _:
                raise AssertionError(one)
        assert 2 <= limiter.limit() <= 200


def test_too_little_to_do_teaches_nothing() -> None:
    limiter = AdaptiveLimit(ceiling=100)
    for number in range(100):
        limiter.report(number, answers=10, tokens=100, latency_s=1.0, limited=False)
    assert limiter.limit() == FIRST


def test_answers_without_tokens_are_counted_themselves() -> None:
    limiter = AdaptiveLimit(ceiling=100)
    limits = []
    for number in range(10):
        limiter.report(number, answers=80, tokens=0, latency_s=8.0, limited=True)
        limits.append(limiter.limit())
    assert max(limits) == 100


def refuse(limiter: AdaptiveLimit, now: float, *, in_flight: int, refused: int) -> None:
    for number in range(refused):
        limiter.shed(now, in_flight=in_flight, first=number == 0)


def test_what_was_shed_at_is_not_tried_again_at_once_and_each_time_later() -> None:
    limiter = AdaptiveLimit(ceiling=1_000)
    now = 0.0
    for rest_s in (30.0, 60.0, 120.0):
        refuse(limiter, now, in_flight=40, refused=20)
        assert limiter.limit() <= 19
        begun = now
        while limiter.limit() <= 19:
            now += REPORT_S
            limiter.report(now, answers=80, tokens=800, latency_s=20.0, limited=True)
        assert rest_s <= now - begun < rest_s + 8.0  # it looks up every five


def test_a_backend_that_refuses_everything_does_not_take_the_limit_to_the_floor() -> None:
    limiter = AdaptiveLimit(ceiling=1_000)
    for now in range(20):
        limiter.report(now, answers=2_000, tokens=20_000, latency_s=200.0, limited=True)
    limit = limiter.limit()
    refuse(limiter, 20.0, in_flight=limit, refused=limit)
    assert limiter.limit() == int(limit // 2 * 0.95)


def test_a_full_cache_of_the_engine_is_no_time_to_ask_for_more() -> None:
    def limit_with(kv_use: float) -> int:
        limiter = AdaptiveLimit(ceiling=1_000)
        for number in range(20):
            ours = limiter.limit()
            look = Look(
                running=ours, waiting=0, kv_use=kv_use, token_s=0.02, ours=ours, limited=True
            )
            limiter.look(number / 2, look)
        return limiter.limit()

    assert limit_with(0.5) > 4 * FIRST
    assert limit_with(0.97) == FIRST


def looked(limiter: AdaptiveLimit, pages: list[tuple[int, int]], *, token_s: float | None) -> int:
    """The limit after these looks at what runs and what waits, all of it ours."""
    for number, (running, waiting) in enumerate(pages):
        look = Look(
            running=running,
            waiting=waiting,
            kv_use=None,
            token_s=token_s,
            ours=running + waiting,
            limited=True,
        )
        limiter.look(number / 2, look)
    return limiter.limit()


def test_prompts_that_wait_to_be_read_are_no_lack_of_places() -> None:
    """An engine takes in one long prompt after the other. If this fails, a batch of them is run
    one or two at a time, for half a minute and more."""
    reads = [(1, 7), (1, 7), (2, 6), (3, 5), (3, 5), (4, 4), (5, 3), (6, 2), (8, 0)]
    assert looked(AdaptiveLimit(ceiling=100), reads, token_s=None) == FIRST
    few_wait = [(6, 2), (6, 2), (7, 1), (6, 2), (6, 2), (6, 2), (6, 2)]
    assert looked(AdaptiveLimit(ceiling=100), few_wait, token_s=None) == FIRST


def test_what_waits_while_no_more_run_tells_the_places() -> None:
    assert looked(AdaptiveLimit(ceiling=100), [(4, 4)] * 6, token_s=None) == 4


def limits_with(noise: list[float]) -> list[int]:
    """The limit at each of the looks that are off by so much, once it is at its ceiling of 64."""
    limiter = AdaptiveLimit(ceiling=64)
    limits = []
    for number, off in enumerate([1.0] * 60 + noise):
        ours = limiter.limit()
        look = Look(
            running=ours, waiting=0, kv_use=None, token_s=0.02 * off, ours=ours, limited=True
        )
        limiter.look(number / 2, look)
        limits.append(limiter.limit())
    return limits[60:]


def test_looks_that_differ_much_are_waited_for_longer() -> None:
    """Of six of them most may fall into a moment in which prompts were read."""
    assert set(limits_with([1.0, 3.0, 1.0, 3.0, 3.0, 3.0, 1.0, 3.0])) == {64}
    assert min(limits_with([3.0] * 4)) == 32  # they agree


def test_two_batches_of_different_kinds_that_take_turns_do_not_take_the_limit_down() -> None:
    """By the rate alone, that of lines with long prompts is of an engine with less capacity."""
    best = by_turns(every_s=10.0, page=False, fixed=True)
    assert by_turns(every_s=10.0, page=True) > 0.7 * best


def test_a_fixed_limit_is_what_was_configured() -> None:
    assert FixedLimit(max_in_flight=7).limit() == 7


@pytest.mark.parametrize("limit", [4, 64, 130])
@pytest.mark.parametrize("read_s", [0.0, 0.003])
def test_the_simulated_engine_keeps_to_its_formula(limit: int, read_s: float) -> None:
    shape = EngineShape(name="", knee=64, read_s=read_s)
    engine = Engine(shape, seed=3)
    tokens = 0
    while engine.now < 60.0:
        while engine.in_hand < limit:
            assert engine.submit("batch") is not None
        ended = engine.advance(60.0)
        tokens += 0 if ended is None else ended.tokens
    assert tokens / 60.0 == pytest.approx(steady_rate(shape, limit), rel=0.05)


def test_the_simulated_engine_serves_lower_priorities_first() -> None:
    engine = Engine(EngineShape(name="", knee=8, places=1), seed=1)
    order = [engine.submit(who, priority=p) for who, p in (("a", 1), ("b", 1), ("c", 0))]
    ended = [engine.advance(60.0) for _ in order]
    assert [one.who for one in ended if one is not None] == ["a", "c", "b"]


def test_a_page_is_as_old_as_it_says() -> None:
    engine = Engine(EngineShape(name="", knee=8, page_age_s=1.0), seed=1)
    engine.page()
    engine.submit("a", tokens=1e6)
    seen = []
    for second in (0.5, 1.0, 1.5):
        engine.advance(second)
        page = engine.page()
        assert page is not None
        seen.append(page.running)
    assert seen == [0, 0, 1]
    assert median(seen) == 0


def test_a_page_that_goes_away_is_no_sign_that_the_engine_is_slower() -> None:
    limiter = AdaptiveLimit(ceiling=32)
    for number in range(40):
        ours = limiter.limit()
        look = Look(running=ours, waiting=0, kv_use=None, token_s=0.02, ours=ours, limited=True)
        limiter.look(number / 2, look)
    settled = limiter.limit()
    assert settled >= 28
    for number in range(8):  # prompts take as long as answers: in the latencies, not on the page
        limiter.report(30.0 + number, answers=40, tokens=400, latency_s=16.0, limited=True)
        assert limiter.limit() >= 28
