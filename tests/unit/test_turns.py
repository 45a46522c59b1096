"""Whose line is next where several batches are open."""

from __future__ import annotations

from collections import Counter

import pytest

from batchline.domain.ids import BatchId
from batchline.domain.shares import Turn
from batchline.executor.line import Gate, Line
from batchline.executor.shard_run import ShardRun
from batchline.executor.turns import Turns
from tests.support.shard_runs import run_over


def run_of(
    batch: str, entries: int = 10_000, *, turn: Turn | None = None, suspects: tuple[int, ...] = ()
) -> ShardRun:
    lines = [(0, 1, 1 + i, 0) for i in range(entries)]
    return run_over(lines, batch=BatchId(batch), suspects=suspects, turn=turn)


def of(project: str, weight: float = 1.0, *, urgent: float = 0.0, first: bool = False) -> Turn:
    return Turn(project=project, weight=weight, urgent=urgent, first=first)


def taken(turns: Turns, lines: int) -> list[Line]:
    found = [turns.next_line() for _ in range(lines)]
    return [line for line in found if line is not None]


def batches(turns: Turns, lines: int) -> list[str]:
    return [line.run.batch_id for line in taken(turns, lines)]


def test_a_batch_alone_goes_shard_by_shard() -> None:
    old, new = run_of("a", 3), run_of("a", 2)
    lines = taken(Turns([old, new]), 9)
    assert [line.run for line in lines] == [old] * 3 + [new] * 2


def test_two_batches_go_line_by_line_whatever_their_sizes_and_shards() -> None:
    turns = Turns([run_of("a"), run_of("a"), run_of("b", 3)])
    assert batches(turns, 8) == ["a", "b", "a", "b", "a", "b", "a", "a"]


def test_who_comes_late_begins_at_once_and_has_saved_up_nothing() -> None:
    turns = Turns([run_of("a"), run_of("b")])
    taken(turns, 1_000)
    turns.add(run_of("c", 100))
    assert Counter(batches(turns, 30)) == {"a": 10, "b": 10, "c": 10}
    assert Counter(batches(turns, 370)) == {"a": 140, "b": 140, "c": 90}


def test_who_comes_beside_one_that_was_alone_does_not_wait_for_what_that_had() -> None:
    turns = Turns([run_of("a")])
    taken(turns, 5_000)
    turns.add(run_of("b", 10))
    assert Counter(batches(turns, 20)) == {"a": 10, "b": 10}


def test_projects_share_by_weight_however_many_batches_each_has_open() -> None:
    turns = Turns([run_of(f"p{n}", turn=of("p")) for n in range(5)])
    turns.add(run_of("q0", turn=of("q", 2.0)))
    served = Counter(batch[0] for batch in batches(turns, 3_000))
    assert served["q"] == pytest.approx(2_000, abs=10)


def test_an_urgent_project_gets_its_part_on_top() -> None:
    turns = Turns([run_of(f"{p}0", turn=of(p)) for p in "abc"])
    turns.add(run_of("u0", turn=of("u", urgent=0.2)))
    served = Counter(batches(turns, 4_000))
    assert served["u0"] == pytest.approx(4_000 * (0.8 / 4 + 0.2), abs=10)
    assert served["a0"] == pytest.approx(4_000 * 0.8 / 4, abs=10)


def test_a_batch_in_danger_goes_first_and_leaves_its_siblings_a_quarter() -> None:
    turns = Turns([run_of(f"p{n}", turn=of("p")) for n in range(3)])
    turns.add(run_of("late", turn=of("p", first=True)))
    turns.add(run_of("q", turn=of("q")))
    served = Counter(batches(turns, 8_000))
    assert served["q"] == pytest.approx(4_000, abs=10)
    assert served["late"] == pytest.approx(3_000, abs=10)
    assert served["p0"] == pytest.approx(333, abs=5)


def test_the_turn_that_was_decided_last_holds_for_the_batch() -> None:
    turns = Turns([run_of("a", turn=of("p")), run_of("b", turn=of("q"))])
    turns.add(run_of("a", turn=of("p", 3.0)))
    assert Counter(batches(turns, 400)) == {"a": 300, "b": 100}


def test_when_the_other_is_over_one_goes_alone_and_none_is_empty() -> None:
    short = run_of("b", 2)
    turns = Turns([run_of("a", 5), short])
    assert batches(turns, 20) == ["a", "b", "a", "b", "a", "a", "a"]
    assert list(turns) == []
    assert turns.next_line() is None


def test_a_shard_that_went_is_not_asked_any_more() -> None:
    gone, stays = run_of("a"), run_of("b")
    turns = Turns([gone, stays])
    turns.discard(gone)
    turns.discard(gone)
    assert batches(turns, 3) == ["b", "b", "b"]


def test_a_closed_gate_passes_the_turn_on() -> None:
    closed = run_of("a")
    turns = Turns([closed, run_of("b", 2), run_of("c", 2)])
    closed.close(Gate.CLOSED)
    assert Counter(batches(turns, 9)) == {"b": 2, "c": 2}
    assert closed not in list(turns)


def test_a_shard_of_suspects_holds_up_nobody_and_is_kept() -> None:
    alone = run_of("a", 2, suspects=(0, 1))
    turns = Turns([alone, run_of("b", 2), run_of("c", 1)])
    (first, *others) = taken(turns, 9)
    assert first.run is alone
    assert sorted(line.run.batch_id for line in others) == ["b", "b", "c"]
    assert list(turns) == [alone]
    alone.in_flight.discard(first)
    assert [line.run for line in taken(turns, 2)] == [alone]


def test_a_shard_that_has_lines_again_is_back_in_turn() -> None:
    back = run_of("a", 1)
    turns = Turns([back, run_of("b", 4)])
    (line, *_) = taken(turns, 3)
    assert line.run is back
    back.put_back(line)
    turns.add(back)
    assert sorted(batches(turns, 2)) == ["a", "b"]
