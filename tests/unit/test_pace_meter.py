"""What the scheduler sees of a batch, as counts and pace."""

from __future__ import annotations

from dataclasses import replace

import pytest

from batchline.domain.ids import BatchId
from batchline.domain.model import Counts, Shard, ShardCommit, ShardKey, Usage
from batchline.service.pace_meter import PaceMeter


class Hand:
    """A clock that the test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def shard(number: int = 0, *, completed: int = 0, entries: int = 1000) -> Shard:
    return Shard(
        key=ShardKey(batch_id=BatchId("batch_1"), number=number),
        first_entry=0,
        entries=entries,
        model="m",
        epoch=1,
        settled=bytes(125),
        completed=completed,
        usage=Usage(total_tokens=10 * completed),
    )


def commit(number: int, completed: int, failed: int = 0) -> ShardCommit:
    return ShardCommit(
        key=ShardKey(batch_id=BatchId("batch_1"), number=number),
        epoch=1,
        output=None,
        errors=None,
        settled=bytes(125),
        completed=completed,
        failed=failed,
        usage=Usage(total_tokens=10 * completed),
        failed_lines=bytes(125),
    )


def test_counts_are_those_of_before_and_what_settled_here() -> None:
    meter = PaceMeter(Counts(total=5000, completed=700, failed=10), clock=Hand())
    meter.claimed(shard(0, completed=400))
    meter.committed(commit(0, 500, failed=3))
    meter.committed(commit(0, 500, failed=3))  # sent again
    assert meter.counts == Counts(total=5000, completed=800, failed=13)
    meter.let_go(0)
    meter.claimed(replace(shard(0, completed=500), failed=3))  # after a worker's death
    meter.committed(commit(0, 600, failed=3))
    assert meter.counts == Counts(total=5000, completed=900, failed=13)


def test_a_commit_of_a_shard_that_nobody_holds_counts_nothing() -> None:
    meter = PaceMeter(Counts(total=10), clock=Hand())
    meter.committed(commit(0, 5))
    assert meter.counts == Counts(total=10)


def test_what_settled_before_has_no_pace_here() -> None:
    clock = Hand()
    meter = PaceMeter(Counts(total=2000, completed=900), clock=clock)
    meter.claimed(shard(0, completed=900))
    assert meter.rates() is None
    assert meter.left(1100, in_flight=0, none_waits=True) is None
    for second in range(11):
        clock.now = float(second)
        meter.committed(commit(0, 900 + 10 * second))
    rates, left = meter.rates(), meter.left(1000, in_flight=0, none_waits=False)
    assert rates is not None
    assert left is not None
    assert (rates.lines_per_s, rates.tokens_per_s) == pytest.approx((9, 90), rel=0.12)
    assert left.likely == pytest.approx(1000 / 10, rel=0.12)


def test_the_models_are_those_of_held_shards() -> None:
    meter = PaceMeter(Counts(total=10), clock=Hand())
    meter.claimed(shard(0))
    meter.claimed(replace(shard(1), model="n"))
    assert meter.models == {"m", "n"}
    meter.let_go(0)
    assert meter.models == {"n"}


def test_the_last_lines_of_a_shard_tell_how_long_those_of_the_batch_may_take() -> None:
    clock = Hand()
    meter = PaceMeter(Counts(total=10_000), clock=clock)
    meter.claimed(shard(0))
    for second in range(100):  # ten a second, and ten lines that take a minute more
        clock.now = float(second)
        meter.committed(commit(0, min(990, 10 + 10 * second)))
    meter.sent(0)
    before = meter.left(1000, in_flight=0, none_waits=False)
    clock.now = 160.0
    meter.committed(commit(0, 1000))
    meter.let_go(0)
    meter.claimed(shard(1))
    for second in range(161, 171):
        clock.now = float(second)
        meter.committed(commit(1, 10 * (second - 160)))
    after = meter.left(1000, in_flight=0, none_waits=False)
    assert before is not None
    assert after is not None
    assert after.likely - 1000 / 10 > 40
    assert after.most > before.most + 50


def test_a_shard_that_comes_back_unfinished_tells_nothing_of_its_last_lines() -> None:
    clock = Hand()
    meter = PaceMeter(Counts(total=10_000), clock=clock)
    meter.claimed(shard(0))
    for second in range(10):
        clock.now = float(second)
        meter.committed(commit(0, 10 * second))
    meter.sent(0)
    before = meter.left(100, in_flight=0, none_waits=False)
    clock.now = 9.5
    meter.let_go(0)
    assert not meter._pace._tails
    assert before is not None


def test_a_shard_of_which_only_stragglers_run_is_not_at_work() -> None:
    meter = PaceMeter(Counts(total=10_000), clock=Hand())
    for number in range(3):
        meter.claimed(shard(number))
        meter.committed(commit(number, 899))
    assert meter.shards_at_work == 3
    meter.sent(0)
    meter.sent(1)
    assert meter.shards_at_work == 3  # a hundred and one lines are left of each
    meter.committed(commit(0, 900))
    assert meter.shards_at_work == 2
    meter.let_go(2)
    assert meter.shards_at_work == 1
