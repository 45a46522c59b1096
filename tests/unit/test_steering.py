"""The learnt limit of one backend: how old its page is, and what a worker may have in flight."""

from __future__ import annotations

from batchline.executor.contract import BackendSettings, Concurrency
from batchline.executor.engine_load import EngineLoad
from batchline.executor.permits import PermitPool
from batchline.executor.steering import PageAge, Steering

LOOK_S = 0.5


def risen(age: PageAge, *, shown_after_s: float) -> float:
    """Ours go from 8 to 64, which the page shows so much later; the time then."""
    now = 0.0
    age.note(now, ours=8, in_hand=8)
    while now < 10.0:
        now += LOOK_S
        age.note(now, ours=64, in_hand=64 if now - LOOK_S >= shown_after_s else 8)
    return now


def test_how_old_a_page_is_is_told_by_how_long_a_rise_of_ours_takes_to_show() -> None:
    for age_s in (0.5, 1.0, 2.0):
        age = PageAge()
        risen(age, shown_after_s=age_s)
        assert age.age_s == age_s


def test_a_rise_that_never_shows_makes_no_page_older_than_three_seconds_and_a_look() -> None:
    age = PageAge()
    risen(age, shown_after_s=100.0)
    assert age.age_s <= 3.0


def test_an_idle_hour_is_not_the_pages_age() -> None:
    """The batch ended while its last rise was still to be shown. If this fails, the most that
    others had in eight seconds counts from then on, and not in one and a half."""
    age = PageAge()
    age.note(0.0, ours=8, in_hand=8)
    age.note(LOOK_S, ours=64, in_hand=8)
    for number in range(10):
        age.note(3_600.0 + number * LOOK_S, ours=8, in_hand=8)
    assert age.age_s <= LOOK_S


def test_the_page_may_count_what_we_have_just_given_up() -> None:
    age = PageAge()
    now = risen(age, shown_after_s=1.0)
    age.note(now + LOOK_S, ours=10, in_hand=64)
    assert age.most_ours(now + LOOK_S) == 64
    for number in range(2, 6):
        age.note(now + number * LOOK_S, ours=10, in_hand=10)
    assert age.most_ours(now + 5 * LOOK_S) == 10


def test_looks_at_a_backend_that_nobody_sends_to_teach_nothing() -> None:
    """It is drained, and others use it: what they have in hand is no level of ours. If this fails,
    the limit doubles with nothing of ours in flight."""
    steering = Steering(
        BackendSettings(
            name="one",
            base_url="http://one/v1",
            concurrency=Concurrency.ADAPTIVE,
            max_in_flight=500,
            interactive_slowdown=0.0,
        )
    )
    before = steering.limit
    for number in range(20):
        load = EngineLoad(running=before, waiting=0, gaps=400.0 * number, gap_s=8.0 * number)
        steering.look(load, now=number * LOOK_S, pool=PermitPool(steering.limit), wanting=())
    assert steering.limit == before
