"""Whether a line may go to a backend now: permits, circuit, slow start, and whose turn it is."""

from __future__ import annotations

from collections.abc import Sequence

from batchline.domain.ids import BatchId
from batchline.executor.lane import Lane
from batchline.executor.line import Gate, Line
from batchline.executor.shard_run import ShardRun
from batchline.executor.transport.contract import Answer
from batchline.executor.turns import Turns
from tests.support.shard_runs import BATCH, run_over


class Nowhere:
    """A lane only hands its transport on."""

    async def send(self, *_: object, **__: object) -> Answer:
        raise AssertionError("a lane sends nothing")

    async def get_json(self, *_: object, **__: object) -> Answer:
        raise AssertionError("a lane sends nothing")

    async def close(self) -> None:
        """Nothing is open."""


def shard_run(
    entries: int, *, number: int = 0, suspects: Sequence[int] = (), batch: BatchId = BATCH
) -> ShardRun:
    lines = [(0, 1, 1 + i, 0) for i in range(entries)]
    return run_over(lines, number=number, suspects=suspects, batch=batch)


def lane(*runs: ShardRun, permits: int = 100) -> Lane:
    return Lane("b", Nowhere(), permits=permits, runs=Turns(runs))


def take_all(one: Lane) -> list[Line]:
    lines = []
    while (line := one.take()) is not None:
        lines.append(line)
    return lines


def test_no_more_lines_go_than_there_are_permits() -> None:
    one = lane(shard_run(10), permits=3)
    lines = take_all(one)
    assert (len(lines), one.in_flight) == (3, 3)
    one.ended(lines[0], answered=True)
    assert len(take_all(one)) == 1


def test_a_lowered_share_lets_nothing_go_until_enough_ended() -> None:
    one = lane(shard_run(10), permits=4)
    lines = take_all(one)
    one.permits = 2
    for line in lines[:2]:
        one.ended(line, answered=True)
        assert one.take() is None
    one.ended(lines[2], answered=True)
    assert one.take() is not None


def test_the_oldest_shard_goes_first_and_an_empty_one_is_dropped() -> None:
    old, new = shard_run(2, number=0), shard_run(2, number=1)
    one = lane(old, new)
    assert [line.run for line in take_all(one)] == [old, old, new, new]
    assert list(one.runs) == []


def test_a_shard_of_suspects_holds_up_nobody_and_is_kept() -> None:
    alone, other = shard_run(2, number=0, suspects=[0, 1]), shard_run(1, number=1)
    one = lane(alone, other)
    assert [line.run for line in take_all(one)] == [alone, other]
    assert list(one.runs) == [alone]


def test_a_shard_with_a_closed_gate_is_dropped() -> None:
    closed, open_one = shard_run(2, number=0), shard_run(1, number=1)
    closed.close(Gate.CLOSED)
    one = lane(closed, open_one)
    assert [line.run for line in take_all(one)] == [open_one]


def test_after_a_fault_nothing_goes() -> None:
    one = lane(shard_run(3))
    one.fault()
    assert one.take() is None


def test_a_closed_circuit_lets_as_many_through_as_there_are_trials() -> None:
    one = lane(shard_run(3))
    one.fault()
    one.set_circuit(admitting=False, trials=1)
    (line,) = take_all(one)
    assert line.trial
    one.ended(line, answered=False)
    assert one.take() is None


def test_a_line_is_a_trial_only_while_the_circuit_is_closed() -> None:
    one = lane(shard_run(1))
    one.set_circuit(admitting=False, trials=1)
    (line,) = take_all(one)
    one.ended(line, answered=False)
    line.run.put_back(line)
    one.runs.add(line.run)
    one.set_circuit(admitting=True, trials=0)
    assert [again.trial for again in take_all(one)] == [None]


def test_a_trial_needs_a_permit_too() -> None:
    one = lane(shard_run(3), permits=0)
    one.set_circuit(admitting=False, trials=1)
    assert one.take() is None
    assert one.trials == 1


def test_a_fault_takes_back_an_unused_trial() -> None:
    one = lane(shard_run(3))
    one.set_circuit(admitting=False, trials=1)
    one.fault()
    assert one.take() is None


def test_after_a_closed_circuit_the_load_comes_back_one_line_for_each_answer() -> None:
    one = lane(shard_run(100), permits=8)
    one.set_circuit(admitting=False, trials=0)
    one.set_circuit(admitting=True, trials=0)
    out = take_all(one)
    sizes = [len(out)]
    while one.window is not None:
        one.ended(out.pop(0), answered=True)
        out += take_all(one)
        sizes.append(len(out))
    assert sizes == [1, 2, 3, 4, 5, 6, 7, 8]


def test_an_end_without_an_answer_does_not_widen_a_slow_start() -> None:
    one = lane(shard_run(100), permits=8)
    one.set_circuit(admitting=False, trials=0)
    one.set_circuit(admitting=True, trials=0)
    (line,) = take_all(one)
    one.ended(line, answered=False)
    assert len(take_all(one)) == 1


def test_what_was_still_in_flight_counts_in_the_slow_start() -> None:
    one = lane(shard_run(100), permits=8)
    lines = take_all(one)
    one.fault()
    for line in lines[:5]:
        one.ended(line, answered=False)
    one.set_circuit(admitting=True, trials=0)
    assert len(take_all(one)) == 1
    assert one.in_flight == 4


def test_to_be_told_again_that_it_admits_slows_nothing_down() -> None:
    one = lane(shard_run(100), permits=8)
    one.set_circuit(admitting=True, trials=0)
    assert len(take_all(one)) == 8
