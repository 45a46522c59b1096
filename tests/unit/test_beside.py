"""Small lines beside large ones, and shards that are handed out."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import pytest

from batchline.domain import plan
from batchline.domain.model import ShardKey
from batchline.executor.beside import Beside
from batchline.executor.handing import Handing
from batchline.executor.lane import Lane
from batchline.executor.line import Gate
from batchline.executor.shard_run import ShardRun
from batchline.executor.turns import Turns
from tests.support.shard_runs import run_over
from tests.unit.test_routed import lanes, take_evenly
from tests.unit.test_routed import shard as shared

MIB = 1024 * 1024
LARGE, SMALL = 5 * MIB, 600


# -- bytes ---------------------------------------------------------------------------------------


def test_an_eighth_of_the_budget_is_for_small_lines_wherever_the_last_large_one_went() -> None:
    beside = Beside(256 * MIB)
    for held in (256 * MIB, 300 * MIB):
        assert beside.allows(held)
        assert beside.allows(held + 32 * MIB - 1)
        assert not beside.allows(held + 32 * MIB)
        beside.freed(256 * MIB - 1)


def test_the_mark_stays_while_the_budget_is_used_up() -> None:
    beside = Beside(256 * MIB)
    assert beside.allows(260 * MIB)
    beside.freed(257 * MIB)
    assert beside.allows(292 * MIB - 1)
    assert not beside.allows(292 * MIB)


def test_what_is_small_is_small_for_the_budget_too() -> None:
    assert Beside(256 * MIB).small_bytes == 64 * 1024
    assert Beside(MIB).small_bytes == 4096


# -- lines ---------------------------------------------------------------------------------------


def run_of(*lengths: int, number: int = 0) -> ShardRun:
    """A shard with lines of these lengths."""
    lines = [(1000 * n, length, n + 1, 0) for n, length in enumerate(lengths)]
    return run_over(lines, number=number)


def taken(run: ShardRun, most_bytes: int | None = None) -> list[int]:
    """The indices of the lines that are given, to the last."""
    found = []
    while (line := run.take() if most_bytes is None else run.take_small(most_bytes)) is not None:
        found.append(line.index)
    return found


def test_small_lines_overtake_large_ones_and_these_come_next_in_their_order() -> None:
    run = run_of(SMALL, LARGE, SMALL, LARGE, SMALL)
    assert taken(run, SMALL) == [0, 2, 4]
    assert run.has_line
    assert len(run.aside) == 2
    assert taken(run) == [1, 3]
    assert not run.aside
    assert not run.has_line


def test_large_lines_that_were_put_aside_come_before_lines_not_seen_yet() -> None:
    run = run_of(LARGE, LARGE, SMALL, LARGE)
    first = run.take_small(SMALL)
    assert first is not None
    assert first.index == 2
    assert taken(run) == [0, 1, 3]


def test_a_large_line_that_comes_back_is_put_aside_too() -> None:
    run = run_of(LARGE, SMALL, SMALL)
    large = run.take()
    assert large is not None
    run.put_back(large)
    assert taken(run, SMALL) == [1, 2]
    assert taken(run) == [0]


def test_a_closed_gate_forgets_what_was_put_aside() -> None:
    run = run_of(LARGE, SMALL)
    assert taken(run, SMALL) == [1]
    run.close(Gate.CLOSED)
    assert not run.aside
    assert taken(run) == []


def test_of_suspects_one_runs_at_a_time_also_beside_large_lines() -> None:
    run = run_of(SMALL, SMALL)
    object.__setattr__(run.work, "suspects", (0, 1))
    assert taken(run, SMALL) == [0]


def lane_of(*runs: ShardRun, permits: int = 10) -> Lane:
    lane = Lane("b", transport=None, permits=permits)  # type: ignore[arg-type]  # nothing is sent
    lane.runs = Turns(runs)
    return lane


def test_a_lane_gives_small_lines_of_any_of_its_shards_within_its_permits() -> None:
    lane = lane_of(run_of(LARGE, LARGE), run_of(LARGE, SMALL, SMALL, SMALL, number=1), permits=2)
    found = [lane.take(most_bytes=SMALL) for _ in range(3)]
    assert [None if one is None else one.index for one in found] == [1, 2, None]
    assert lane.in_flight == 2


@pytest.mark.parametrize("hashes", [[0] * 6, [5, 5, 5, 6, 6, 6]], ids=["in order", "by prefix"])
def test_lanes_that_share_a_shard_put_large_lines_aside_for_each_other(hashes: list[int]) -> None:
    made = lanes(1.0, 1.0)
    lengths = [LARGE, SMALL, SMALL, LARGE, SMALL, SMALL]
    run = shared(made, hashes)
    run.entries = b"".join(
        plan.ENTRY.pack(0, length, n, hashes[n]) for n, length in enumerate(lengths)
    )
    small = [
        line for lane in made.values() for line in iter(partial(lane.take, most_bytes=SMALL), None)
    ]
    assert sorted(line.index for line in small) == [1, 2, 4, 5]
    assert sorted(line.index for line in run.aside) == [0, 3]
    assert run.has_line
    back = small[0]
    run.put_back(back)
    assert sorted(line.index for _, line in take_evenly(made)) == sorted([0, 3, back.index])
    assert not run.has_line


# -- handing out ---------------------------------------------------------------------------------


def with_waiting(number: int, lines: int) -> ShardRun:
    """A shard all of whose lines wait for another try."""
    run = run_of(*[SMALL] * lines, number=number)
    while (line := run.take()) is not None:
        run.in_flight.discard(line)
        run.waiting[line] = None  # type: ignore[assignment]  # no timer is needed
    return run


def handing(runs: Mapping[ShardKey, ShardRun]) -> tuple[Handing, list[int]]:
    told: list[int] = []
    return Handing(lambda key: told.append(key.number), runs, most_waiting=10), told


def test_a_shard_is_said_to_be_handed_out_once_fewer_lines_wait() -> None:
    shards = [with_waiting(0, 6), with_waiting(1, 6), with_waiting(2, 1)]
    runs = {run.work.shard.key: run for run in shards}
    told_to, told = handing(runs)
    for run in shards:
        told_to.handed_out(run)
        assert run.handed
    assert told == []
    for line in list(shards[0].waiting)[:4]:  # 9 of 13 are left
        del shards[0].waiting[line]
    told_to.say()
    assert told == [0, 1, 2]
    assert not told_to.unsaid


def test_lines_that_came_back_and_that_nobody_takes_wait_too() -> None:
    """A replica that breaks every other request leaves those to one that is slow. If this fails,
    the first goes through all shards there are, and half of all lines wait in memory."""
    shards = [with_waiting(0, 12), run_of(SMALL, number=1)]
    runs = {run.work.shard.key: run for run in shards}
    told_to, told = handing(runs)
    for line in list(shards[0].waiting):
        del shards[0].waiting[line]
        shards[0].returned.append(line)
    told_to.handed_out(shards[1])
    assert told == []
    shards[0].returned.clear()
    told_to.say()
    assert told == [1]


def test_with_very_many_shards_in_hand_nothing_is_said_until_one_is_given_back() -> None:
    """If this fails, shards with one slow line each use up the files that a process may open; the
    next one cannot be read, and its batch fails for good."""
    shards = [run_of(SMALL, number=number) for number in range(4)]
    runs = {run.work.shard.key: run for run in shards}
    told: list[int] = []
    told_to = Handing(lambda key: told.append(key.number), runs, most_held=3)
    for run in shards:
        told_to.handed_out(run)
    assert told == []
    del runs[shards[0].work.shard.key]
    told_to.say()
    assert told == [1, 2, 3]


def test_a_shard_that_was_given_back_needs_no_word() -> None:
    shards = [with_waiting(0, 12), run_of(SMALL, number=1)]
    runs = {run.work.shard.key: run for run in shards}
    told_to, told = handing(runs)
    for run in shards:
        told_to.handed_out(run)
    del runs[shards[0].work.shard.key]
    told_to.say()
    assert told == [1]
