"""One shard in a worker's hands: what is next, what is settled, when it is over."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchline.domain import bitmap, ids
from batchline.domain.model import Usage
from batchline.executor.contract import Ends
from batchline.executor.line import Gate, Line
from batchline.executor.shard_run import ShardRun
from tests.support.shard_runs import Before, run_over

BATCH = ids.batch_id(1_750_000_000, hashlib.sha256(b"batch").digest()[: ids.RANDOM_BYTES])
USAGE = Usage(
    input_tokens=11, cached_tokens=3, output_tokens=7, reasoning_tokens=2, total_tokens=18
)


def shard_run(
    entries: int = 4, *, settled: Sequence[int] = (), suspects: Sequence[int] = (), **more: int
) -> ShardRun:
    """A run over `entries` lines of 10 bytes; line numbers begin at 101."""
    return run_over(
        [(1_000 + 10 * i, 10, 101 + i, 0) for i in range(entries)],
        batch=BATCH,
        first_entry=100,
        before=Before(settled=settled, usage=USAGE, **more),
        suspects=suspects,
    )


def taken(run: ShardRun) -> Line:
    line = run.take()
    assert line is not None
    return line


def take_all(run: ShardRun) -> list[Line]:
    lines = []
    while (line := run.take()) is not None:
        lines.append(line)
    return lines


def settle(run: ShardRun, line: Line, *, succeeded: bool = True) -> None:
    run.settle(line, b"%d\n" % line.index, succeeded=succeeded, usage=USAGE if succeeded else None)


# -- what is next ----------------------------------------------------------------------------------


def test_lines_come_in_the_order_of_the_plan_with_their_place_in_the_input() -> None:
    lines = take_all(shard_run(3))
    assert [(line.index, line.offset, line.length, line.line_number) for line in lines] == [
        (0, 1_000, 10, 101),
        (1, 1_010, 10, 102),
        (2, 1_020, 10, 103),
    ]


def test_settled_lines_are_never_given_again() -> None:
    run = shard_run(6, settled=[0, 2, 3])
    assert [line.index for line in take_all(run)] == [1, 4, 5]


@pytest.mark.parametrize("settled", [[3], [2, 3], [1, 2, 3], [0, 1, 2, 3]])
def test_a_settled_tail_is_no_line_to_wait_for(settled: list[int]) -> None:
    """If this fails, a shard whose last lines were settled under an earlier epoch is not over when
    its last open line is, and nobody gives it back when no slot happens to look for more."""
    run = shard_run(4, settled=settled)
    for _ in range(4 - len(settled)):
        settle(run, taken(run))
    assert not run.has_line
    assert run.is_over
    assert run.all_settled


def test_a_line_that_came_back_goes_before_new_ones() -> None:
    run = shard_run(3)
    first = taken(run)
    run.put_back(first)
    assert take_all(run)[0] is first


def test_suspects_run_one_at_a_time_and_nothing_else_does() -> None:
    run = shard_run(5, suspects=[1, 3])
    line = taken(run)
    assert line.index == 1
    assert run.take() is None
    assert run.has_line
    settle(run, line)
    line = taken(run)
    assert line.index == 3
    settle(run, line)
    assert run.take() is None
    assert run.is_over
    assert not run.all_settled


@settings(deadline=None)  # a shared machine may stop for longer than an example takes
@given(entries=st.integers(1, 20), settled=st.sets(st.integers(0, 19)), seed=st.integers(0, 2**32))
def test_every_line_is_given_until_it_settles_and_never_after(
    entries: int, settled: set[int], seed: int
) -> None:
    """In any order of ends; a line that is out is never out twice."""
    chance = random.Random(seed)  # noqa: S311  # an order of ends, not a secret
    done = {index for index in settled if index < entries}
    before = len(done)
    run = shard_run(entries, settled=sorted(done))
    out: list[Line] = []
    while (line := run.take()) is not None or out:
        if line is not None:
            assert line.index not in done | {other.index for other in out}
            out.append(line)
        if line is None or chance.random() < 0.5:
            ended = out.pop(chance.randrange(len(out)))
            if chance.random() < 0.7:
                settle(run, ended, succeeded=chance.random() < 0.5)
                done.add(ended.index)
            else:
                run.put_back(ended)
    assert done == set(range(entries))
    assert run.all_settled
    assert run.is_over
    assert run.completed + run.failed == entries - before


# -- the gate --------------------------------------------------------------------------------------


@pytest.mark.parametrize("gate", [Gate.CLOSED, Gate.FENCED])
def test_behind_a_closed_gate_nothing_is_given_or_admitted(gate: Gate) -> None:
    run = shard_run(4)
    line, other = taken(run), taken(run)
    run.put_back(other)
    assert line.admit()
    run.close(gate)
    assert not run.has_line
    assert run.take() is None
    assert not line.admit()
    run.put_back(line)
    assert run.take() is None
    assert run.is_over


def test_only_an_admitted_line_is_on_the_wire() -> None:
    run = shard_run(3)
    line, other = taken(run), taken(run)
    line.begin("one")
    other.begin("two")
    assert run.on_the_wire == {}
    assert line.admit()
    assert run.on_the_wire == {"one": 1}


async def test_closing_ends_the_wait_of_lines_that_were_to_be_retried() -> None:
    run = shard_run(1)
    line = taken(run)
    fired = asyncio.Event()
    run.in_flight.discard(line)
    timer = asyncio.get_running_loop().call_later(0, fired.set)
    run.waiting[line] = timer
    assert not run.is_over
    run.close(Gate.CLOSED)
    assert timer.cancelled()
    assert run.is_over


def test_results_behind_a_closed_gate_count_and_are_late() -> None:
    run = shard_run(3)
    lines = take_all(run)
    for line in lines:
        line.begin("b")
        assert line.admit()
    settle(run, lines[0])
    run.close(Gate.CLOSED)
    settle(run, lines[1])
    assert (run.completed, run.ends) == (2, {"b": Ends(finished_late=1)})
    assert run.snapshot().outputs == [b"0\n", b"1\n"]


def test_a_fence_drops_what_is_not_committed_and_cannot_be_undone() -> None:
    run = shard_run(3)
    lines = take_all(run)
    settle(run, lines[0])
    settle(run, lines[1], succeeded=False)
    run.close(Gate.FENCED)
    assert (run.outputs, run.errors) == ([], [])
    run.close(Gate.CLOSED)
    assert run.gate is Gate.FENCED


# -- totals ----------------------------------------------------------------------------------------


def test_totals_go_on_from_those_of_the_earlier_epoch() -> None:
    run = shard_run(4, settled=[0, 1], completed=1, failed=1)
    good, bad = take_all(run)
    settle(run, good)
    settle(run, bad, succeeded=False)
    group = run.snapshot()
    assert (group.completed, group.failed) == (2, 2)
    assert group.usage == USAGE + USAGE
    assert bitmap.count(group.settled) == 4


def test_a_snapshot_holds_what_settled_since_the_last_one() -> None:
    run = shard_run(3)
    lines = take_all(run)
    settle(run, lines[0])
    settle(run, lines[1], succeeded=False)
    first = run.snapshot()
    assert (first.outputs, first.errors) == ([b"0\n"], [b"1\n"])
    settle(run, lines[2])
    assert bitmap.count(first.settled) == 2  # a copy: what settles later is not in it
    assert len(first.outputs) == 1
    second = run.snapshot()
    assert (second.outputs, second.errors) == ([b"2\n"], [])
    assert (second.completed, second.failed) == (2, 1)


def test_a_shard_is_durable_once_the_store_answered_for_all_of_it() -> None:
    run = shard_run(2)
    durable = [run.is_durable]
    settle(run, taken(run))
    durable.append(run.is_durable)  # in memory
    run.snapshot()
    run.uncommitted_groups += 1
    durable.append(run.is_durable)  # on disk
    run.uncommitted_groups -= 1
    durable.append(run.is_durable)
    settle(run, taken(run), succeeded=False)
    durable.append(run.is_durable)
    assert durable == [True, False, False, True, False]


def test_a_shard_is_not_over_while_a_line_is_out() -> None:
    run = shard_run(1)
    line = taken(run)
    assert not run.is_over
    settle(run, line)
    assert run.is_over


# -- names -----------------------------------------------------------------------------------------


def test_a_line_keeps_its_id_and_its_key_changes_with_each_answer() -> None:
    """An attempt without an answer keeps the key: the backend may have done the work already."""
    line = taken(shard_run(1))
    assert line.line_id == ids.line_id(BATCH, 101)
    assert line.idempotency_key == line.line_id
    line.attempt = 3
    assert line.idempotency_key == line.line_id
    line.answered()
    line.answered()
    assert line.idempotency_key == f"{line.line_id}-2"


# -- what was cut off ----------------------------------------------------------------------------


def test_what_was_cut_off_is_kept_only_where_it_is_not_tried_again() -> None:
    for gate, stopping, is_kept in (
        (Gate.OPEN, False, False),
        (Gate.CLOSED, False, False),  # a drain: the next worker tries the line again
        (Gate.CLOSED, True, True),
        (Gate.FENCED, True, False),
    ):
        run = shard_run()
        line = taken(run)
        run.stopping = stopping
        if gate is not Gate.OPEN:
            run.close(gate)
        assert run.keep_partial(line, b"{}") == (len(b"00000065 {}\n") if is_kept else 0)
        assert run.is_durable is not is_kept
        assert run.snapshot().partials == ([b"00000065 {}\n"] if is_kept else [])
        assert run.is_durable
        assert not bitmap.is_marked(run.settled, line.index)


def test_a_fence_drops_what_was_cut_off() -> None:
    run = shard_run()
    line = taken(run)
    run.stopping = True
    run.close(Gate.CLOSED)
    run.keep_partial(line, b"{}")
    run.close(Gate.FENCED)
    assert run.is_durable
