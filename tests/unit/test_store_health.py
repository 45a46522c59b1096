"""What is known of the database from the calls that are made of it."""

from __future__ import annotations

from contextlib import suppress

import pytest

from batchline.domain.errors import StorageFull, StoreUnavailable
from batchline.store.health import StoreHealth


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock: Clock) -> StoreHealth:
    return StoreHealth(clock=clock)


def fail(health: StoreHealth, *, writes: bool) -> None:
    with suppress(StoreUnavailable), health.watching(writes=writes):
        raise StoreUnavailable("the database did not answer: OperationalError")


def test_a_call_that_works_ends_the_trouble_of_its_kind_only(health: StoreHealth) -> None:
    assert health.trouble() is None
    fail(health, writes=True)
    with health.watching(writes=False):  # it can be read, which says nothing of writing
        pass
    assert health.trouble() == "the database did not answer: OperationalError"
    with health.watching(writes=True):
        pass
    assert health.trouble() is None


def test_a_failure_that_nobody_repeats_is_told_for_a_while(
    health: StoreHealth, clock: Clock
) -> None:
    fail(health, writes=True)
    clock.now += 14
    assert health.trouble() is not None
    clock.now += 2
    assert health.trouble() is None


def test_a_call_that_hangs_is_trouble_before_it_fails(health: StoreHealth, clock: Clock) -> None:
    with health.watching(writes=True):
        clock.now += 1
        assert health.trouble() is None
        clock.now += 4
        assert health.trouble() == "the database has not answered for 5 s"
    assert health.trouble() is None


def test_a_full_disk_is_told_as_such_and_not_here(health: StoreHealth) -> None:
    with pytest.raises(StorageFull), health.watching(writes=True):
        raise StorageFull("no space left for the database")
    assert health.trouble() is None
