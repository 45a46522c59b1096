"""Which of several lanes gets which line: room, weight, prefixes, and where it failed before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

import pytest

from batchline.domain import bitmap
from batchline.executor import messages as m
from batchline.executor import routed
from batchline.executor.contract import BackendSettings
from batchline.executor.lane import Lane
from batchline.executor.line import Gate, Line, Trial
from batchline.executor.rate_meter import RateMeter
from batchline.executor.routed import RoutedLane
from batchline.executor.shard_run import ShardRun
from tests.support.shard_runs import Before, run_over
from tests.unit.test_lane import Nowhere


def lanes(*weights: float, permits: int = 100) -> dict[str, Lane]:
    """Lanes a, b, c …"""
    settings = [
        BackendSettings(name=name, base_url=f"http://{name}/v1", weight=weight)
        for name, weight in zip("abcdefgh", weights, strict=False)
    ]
    made = dict(routed.lanes_of(settings, (Nowhere() for _ in settings)))
    for lane in made.values():
        lane.permits = permits
    return made


def shard(
    made: dict[str, Lane],
    hashes: Sequence[int],
    *,
    backends: Sequence[str] | None = None,
    settled: Sequence[int] = (),
    suspects: Sequence[int] = (),
    lost: Sequence[int] = (),
    number: int = 0,
) -> ShardRun:
    """A shard with an entry for each hash, offered to its lanes."""
    run = run_over(
        [(0, 1, 1 + i, one) for i, one in enumerate(hashes)],
        number=number,
        backends=list(backends or made),
        before=Before(settled=settled),
        suspects=suspects,
        lost=lost,
    )
    routed.share_out(run, made)
    if not routed.lanes_with(run):
        for name in run.work.backends:
            made[name].runs.add(run)
    return run


def take_evenly(made: dict[str, Lane], most: int = 10_000) -> list[tuple[str, Line]]:
    """What goes where when lines come to lanes with room, as the worker hands them out."""
    left = [lane for lane in made.values() if isinstance(lane, RoutedLane)]
    taken: list[tuple[str, Line]] = []
    while left and len(taken) < most:
        lane = routed.emptiest(left)
        line = lane.take()
        if line is None:
            left.remove(lane)
        else:
            taken.append((lane.backend, line))
    return taken


def fail(line: Line, lane: Lane) -> None:
    """The line broke at the lane and is due again."""
    lane.ended(line, answered=True)
    line.run.in_flight.discard(line)
    line.failed_at = (*line.failed_at, lane.backend)
    line.run.returned.append(line)
    routed.lanes_with(line.run)


def test_with_one_backend_a_lane_takes_from_the_shard_itself() -> None:
    made = lanes(1.0)
    run = shard(made, [5, 5, 6])
    assert type(made["a"]) is Lane
    assert run.shares == []
    assert list(made["a"].runs) == [run]


def test_so_does_a_model_that_only_one_of_the_backends_serves() -> None:
    made = lanes(1.0, 1.0)
    run = shard(made, [5, 5, 6], backends=["b"])
    assert run.shares == []
    lane = made["b"]
    assert [line.line_number for line in iter(lane.take, None)] == [1, 2, 3]


def test_the_next_line_goes_to_the_lane_with_the_most_room() -> None:
    made = lanes(1.0, 1.0, 1.0)
    shard(made, [0] * 30)
    first = take_evenly(made, 12)
    assert Counter(name for name, _ in first) == {"a": 4, "b": 4, "c": 4}
    for name, line in first:
        if name == "b":
            made[name].ended(line, answered=True)
    assert [name for name, _ in take_evenly(made, 4)] == ["b"] * 4


def test_weights_say_whose_part_is_how_big_where_all_have_room() -> None:
    made = lanes(3.0, 2.0, 1.0)
    shard(made, [0] * 60)
    assert Counter(name for name, _ in take_evenly(made)) == {"a": 30, "b": 20, "c": 10}


def test_a_full_lane_leaves_the_rest_to_the_others_whatever_the_weights() -> None:
    made = lanes(1_000.0, 1.0)
    made["a"].permits = 3
    shard(made, [0] * 10)
    assert Counter(name for name, _ in take_evenly(made)) == {"a": 3, "b": 7}


def test_lines_with_the_same_prefix_go_to_the_same_lane() -> None:
    made = lanes(1.0, 1.0, 1.0, 1.0)
    hashes = [1 + n // 5 for n in range(400)]
    shard(made, hashes)
    at: dict[int, set[str]] = {}
    for name, line in take_evenly(made):
        at.setdefault(hashes[line.index], set()).add(name)
    assert sum(len(names) for names in at.values()) <= len(at) + 4


def test_a_prefix_that_all_lines_share_leaves_no_lane_idle() -> None:
    made = lanes(1.0, 1.0, 1.0, 1.0, permits=25)
    shard(made, [9] * 100)
    assert Counter(name for name, _ in take_evenly(made)) == dict.fromkeys("abcd", 25)


def test_lines_of_a_lane_that_is_shut_go_to_the_others() -> None:
    made = lanes(1.0, 1.0, 1.0)
    made["b"].fault()
    hashes = [1 + n // 5 for n in range(100)]
    shard(made, hashes)
    taken = take_evenly(made)
    assert len(taken) == 100
    assert {name for name, _ in taken} == {"a", "c"}


@pytest.mark.parametrize("hashes", [[0] * 8, [5] * 8, [5, 5, 0, 0, 6, 6, 7, 7]])
def test_what_is_settled_or_lost_is_not_given_out(hashes: list[int]) -> None:
    made = lanes(1.0, 1.0)
    run = shard(made, hashes, settled=[0, 3], lost=[7])
    bitmap.mark(run.settled, 7)  # as the worker does before it offers the shard
    taken = take_evenly(made)
    assert sorted(line.index for _, line in taken) == [1, 2, 4, 5, 6]
    assert not run.has_line
    assert run.cursor == 8  # it counts as handed out


@pytest.mark.parametrize("hashes", [[0] * 4, [5] * 4])
def test_a_shard_whose_lines_are_all_settled_has_none(hashes: list[int]) -> None:
    run = shard(lanes(1.0, 1.0), hashes, settled=range(4))
    assert not run.has_line
    assert run.cursor == 4


@pytest.mark.parametrize("hashes", [[0] * 4, [5] * 4])
def test_behind_a_closed_gate_no_share_gives_a_line(hashes: list[int]) -> None:
    made = lanes(1.0, 1.0)
    run = shard(made, hashes)
    (_, line), *_ = take_evenly(made, 1)
    run.close(Gate.CLOSED)
    run.put_back(line)
    assert take_evenly(made) == []
    assert not run.has_line
    assert all(not lane.runs for lane in made.values())


def test_suspects_run_one_at_a_time_at_whichever_lane_comes_first() -> None:
    made = lanes(1.0, 1.0)
    run = shard(made, [5] * 4, suspects=[1, 2])
    assert run.shares == []
    assert len(take_evenly(made)) == 1


# -- lines that failed -------------------------------------------------------------------------


@pytest.mark.parametrize("hashes", [[0], [5]])
def test_a_line_that_failed_at_one_backend_is_left_to_another(hashes: list[int]) -> None:
    made = lanes(1.0, 1.0)
    shard(made, hashes)
    ((name, line),) = take_evenly(made)
    other = "b" if name == "a" else "a"
    made[other].in_flight = 50  # so that the one that it failed at has more room
    fail(line, made[name])
    assert take_evenly(made) == [(other, line)]


def test_it_waits_for_another_that_is_full_and_others_pass_it() -> None:
    made = lanes(1.0, 1.0, permits=1)
    shard(made, [0, 0, 0])
    taken = dict(take_evenly(made))
    fail(taken["a"], made["a"])
    assert [(name, line.index) for name, line in take_evenly(made)] == [("a", 2)]
    made["b"].ended(taken["b"], answered=True)
    assert take_evenly(made) == [("b", taken["a"])]


def test_lines_that_wait_for_the_same_other_backend_are_weighed_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A thousand may, at each free slot. If this fails, looking through them takes 1.4 ms."""
    made = lanes(1.0, 1.0, permits=50)
    shard(made, [0] * 100)
    for name, line in take_evenly(made):
        made[name].ended(line, answered=True)
        line.run.in_flight.discard(line)
        line.failed_at = ("a",)
        line.run.returned.append(line)
    made["b"].permits = made["b"].in_flight = 1
    weighed = []
    really = routed.Share._may_have

    def counted(share: routed.Share, failed_at: Collection[str]) -> bool:
        weighed.append(failed_at)
        return really(share, failed_at)

    monkeypatch.setattr(routed.Share, "_may_have", counted)
    made["a"].permits = 1
    routed.lanes_with(line.run)
    assert Lane.take(made["a"]) is None
    assert weighed == [("a",)]


@pytest.mark.parametrize("away", ["circuit", "permits", "failed too"])
def test_it_goes_where_it_failed_when_no_other_would_have_it(away: str) -> None:
    made = lanes(1.0, 1.0)
    shard(made, [0])
    made["b"].permits = 0
    ((name, line),) = take_evenly(made)
    assert name == "a"
    if away != "permits":
        made["b"].permits = 100
    if away == "circuit":
        made["b"].fault()
    if away == "failed too":
        line.failed_at = ("b",)
    fail(line, made["a"])
    again = take_evenly(made)
    assert [one for _, one in again] == [line]


def test_a_shut_lane_takes_its_trial_from_lines_that_did_not_fail_there() -> None:
    made = lanes(1.0, 1.0, permits=1)
    shard(made, [0, 0, 0, 0])
    taken = dict(take_evenly(made))
    fail(taken["a"], made["a"])
    made["a"].fault()
    made["a"].set_circuit(admitting=False, trials=1)
    assert [(name, line.index, line.trial) for name, line in take_evenly(made)] == [
        ("a", 2, Trial.BACKEND)
    ]


def test_broken_attempts_in_a_row_end_with_one_that_is_answered() -> None:
    made = lanes(1.0, 1.0)
    lane = made["a"]
    assert isinstance(lane, RoutedLane)
    shard(made, [0] * 8)
    lines = [line for name, line in take_evenly(made) if name == "a"]
    for line in lines[:3]:
        lane.broken += 1
        lane.breaking = line
        lane.ended(line, answered=True)
    assert lane.broken == 3
    lane.ended(lines[3], answered=True)
    assert lane.broken == 0


def test_a_shard_that_is_over_leaves_no_lane_a_word_of_it() -> None:
    made = lanes(1.0, 1.0)
    for hashes in ([0, 0], [5, 5]):
        run = shard(made, hashes)
        assert all(lane.runs for lane in made.values())
        routed.leave(run, made)
        assert not any(lane.runs for lane in made.values())
        assert run.shares == []


# -- a backend that lists the model only later -----------------------------------------------------


def serve_too(made: dict[str, Lane], run: ShardRun, *backends: str) -> None:
    """The shard may go to these too, and is offered to all of its lanes."""
    routed.serve_too(run, run.work.served_by(backends, backends), made)
    if not routed.lanes_with(run):
        for name in run.work.backends:
            made[name].offer(run)


GROUPS = [[0] * 48, [7] * 48, [1 + n // 4 for n in range(48)]]


@pytest.mark.parametrize("hashes", GROUPS)
@pytest.mark.parametrize("first", [["a"], ["a", "b"], ["b", "a"]])
@pytest.mark.parametrize("sent", [0, 5, 48])
def test_what_is_left_of_a_shard_goes_to_a_backend_that_lists_its_model_later(
    first: list[str], hashes: list[int], sent: int
) -> None:
    """Every line goes once, and none is left to those that were there before."""
    made = lanes(1.0, 1.0, 1.0)
    run = shard(made, hashes, backends=first, settled=[3, 9, 20])
    taken = take_evenly(made, most=sent)
    back = [line for _, line in taken[:2]]
    for line in back:
        run.put_back(line)
    serve_too(made, run, "c")
    assert run.work.backends == [*first, "c"]
    taken = taken[2:] + take_evenly(made)
    assert sorted(line.index for _, line in taken) == [n for n in range(48) if n not in (3, 9, 20)]
    if sent < 48:
        assert "c" in {name for name, _ in taken}
    assert not run.has_line


def test_it_takes_lines_from_a_backend_that_takes_none() -> None:
    made = lanes(1.0, 1.0)
    run = shard(made, [0] * 10, backends=["a"])
    made["a"].fault()
    assert take_evenly(made) == []
    serve_too(made, run, "b")
    assert Counter(name for name, _ in take_evenly(made)) == {"b": 10}


def test_only_groups_that_prefer_the_new_backend_move_to_it() -> None:
    hashes = [1 + n // 4 for n in range(400)]
    late, early = lanes(1.0, 1.0, 1.0), lanes(1.0, 1.0, 1.0)
    run = shard(late, hashes, backends=["a", "b"])
    serve_too(late, run, "c")
    shard(early, hashes)
    at = {line.index: name for name, line in take_evenly(early)}
    assert {line.index: name for name, line in take_evenly(late)} == at


def test_what_waits_for_its_rate_at_the_first_backend_is_not_sent_twice() -> None:
    """A lane remembers whose turn it is: the shard itself, before there were shares of it."""
    made = lanes(1.0, 1.0)
    run = shard(made, [7] * 6, backends=["a"])
    made["a"].rates = meter = RateMeter(
        "a", send=lambda _: None, read=lambda _: None, clock=lambda: 0.0, later=lambda *_: None
    )
    meter.set_rates(m.SetRates("a", requests=True, tokens=None))
    assert take_evenly(made) == []
    serve_too(made, run, "b")
    made["b"].permits = 2
    taken = take_evenly(made)  # also the line that waited
    meter.granted(m.Grant("a", 4, 0.0))
    taken += take_evenly(made)
    assert sorted(line.index for _, line in taken) == list(range(6))


def test_suspects_run_one_at_a_time_also_when_another_backend_comes() -> None:
    made = lanes(1.0, 1.0)
    run = shard(made, [0] * 6, backends=["a"], suspects=[1, 4])
    serve_too(made, run, "b")
    ((_, line),) = take_evenly(made)
    run.settle(line, b"", succeeded=True, usage=None)
    assert [line.index for _, line in take_evenly(made)] == [4]


def test_a_model_that_is_held_at_the_new_backend_is_held_for_it_too() -> None:
    made = lanes(1.0, 1.0)
    run = shard(made, [0] * 6, backends=["a"])
    made["b"].hold("m")
    serve_too(made, run, "b")
    assert Counter(name for name, _ in take_evenly(made)) == {"a": 6}
    routed.leave(run, made)
    assert not any(lane.runs for lane in made.values())
