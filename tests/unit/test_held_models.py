"""What a lane gives while its backend lacks a model: lines of others, and now and then a trial."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest

from batchline.domain.ids import BatchId
from batchline.executor import messages as m
from batchline.executor.lane import Lane
from batchline.executor.line import Gate, Line, Trial
from batchline.executor.rate_meter import RateMeter
from batchline.executor.shard_run import ShardRun
from tests.unit.test_lane import lane, shard_run, take_all
from tests.unit.test_routed import fail, lanes, shard, take_evenly

OTHER = BatchId("batch_" + "1" * 32)


def of_model(model: str, entries: int, *, number: int, batch: BatchId = OTHER) -> ShardRun:
    run = shard_run(entries, number=number, batch=batch)
    run.work = replace(run.work, shard=replace(run.work.shard, model=model))
    return run


def watched(*runs: ShardRun, permits: int = 100) -> tuple[Lane, list[str]]:
    """A lane, and the models that it says could not be tried."""
    one = lane(*runs, permits=permits)
    missed: list[str] = []
    one.held.missed = missed.append
    return one, missed


def models(lines: Sequence[Line]) -> Counter[str]:
    return Counter(line.run.work.model for line in lines)


def test_lines_of_a_held_model_stay_and_all_others_go() -> None:
    one = lane(*(of_model("mn"[at % 2], 5, number=at) for at in range(4)))
    one.hold("m")
    assert models(take_all(one)) == {"n": 10}
    one.set_away([])
    assert models(take_all(one)) == {"m": 10}


def test_what_comes_or_comes_back_meanwhile_is_held_too() -> None:
    run = of_model("m", 3, number=0)
    one = lane(run)
    line = one.take()
    assert line is not None
    one.hold("m")
    run.put_back(line)
    one.offer(run)
    one.offer(of_model("m", 2, number=1))
    assert take_all(one) == []
    one.set_away([])
    assert take_all(one)[0] is line
    assert not one.held


def test_the_control_processs_word_holds_for_all_models() -> None:
    one = lane(of_model("m", 1, number=0), of_model("n", 1, number=1), of_model("o", 1, number=2))
    one.set_away(["m", "n"])
    assert models(take_all(one)) == {"o": 1}
    one.set_away(["n"])
    assert models(take_all(one)) == {"m": 1}


def test_a_trial_is_one_line_and_goes_before_others_of_its_batch() -> None:
    """A lane that is never without lines would not come to it otherwise."""
    one, missed = watched(of_model("m", 5, number=0), of_model("n", 5, number=1), permits=1)
    one.hold("m")
    one.held.try_one("m")
    line = one.take()
    assert line is not None
    assert (line.run.work.model, line.trial) == ("m", Trial.MODEL)
    line.run.in_flight.discard(line)
    one.ended(line, answered=True)
    assert line.trial is None
    one.permits = 100
    assert models(take_all(one)) == {"n": 5}
    assert missed == []


def test_a_trial_needs_a_permit_and_waits_for_it() -> None:
    one, _ = watched(of_model("m", 5, number=0), permits=0)
    one.hold("m")
    one.held.try_one("m")
    assert one.take() is None
    one.permits = 5
    assert [line.trial for line in take_all(one)] == [Trial.MODEL]


def test_that_there_is_no_line_to_try_it_with_is_said_once() -> None:
    run = of_model("m", 1, number=0)
    one, missed = watched(run)
    (line,) = take_all(one)
    one.hold("m")
    one.held.try_one("m")
    assert missed == ["m"]
    run.put_back(line)
    one.offer(run)
    one.held.try_one("m")
    one.held.try_one("m")  # one is under way
    run.close(Gate.CLOSED)
    one.drop(run)
    assert missed == ["m", "m"]
    assert not one.runs


@pytest.mark.parametrize("how", ["closed", "released"])
def test_a_trial_of_a_cancelled_batch_is_said_to_be_none(how: str) -> None:
    run = of_model("m", 5, number=0)
    one, missed = watched(run)
    one.hold("m")
    one.held.try_one("m")
    run.close(Gate.CLOSED)
    if how == "released":
        one.drop(run)
    else:
        assert one.take() is None
    assert missed == ["m"]


def test_a_trial_goes_on_with_another_shard_of_the_model() -> None:
    first, second = of_model("m", 5, number=0), of_model("m", 5, number=1)
    one, missed = watched(first, second)
    one.hold("m")
    one.held.try_one("m")
    first.close(Gate.CLOSED)
    one.drop(first)
    (line,) = take_all(one)
    assert (line.run, line.trial, missed) == (second, Trial.MODEL, [])


def test_a_model_that_is_back_takes_its_trial_along() -> None:
    one, missed = watched(of_model("m", 3, number=0))
    one.hold("m")
    one.held.try_one("m")
    one.set_away([])
    assert [line.trial for line in take_all(one)] == [None] * 3
    assert missed == []


# -- beside a closed circuit -----------------------------------------------------------------------


def test_a_backend_whose_only_lines_are_of_held_models_is_tried_with_them() -> None:
    """If this fails, it stays closed for ever: its models are not tried while it is."""
    one, _ = watched(of_model("m", 5, number=0))
    one.hold("m")
    one.fault()
    one.set_circuit(admitting=False, trials=1)
    assert [(line.run.work.model, line.trial) for line in take_all(one)] == [("m", Trial.BACKEND)]


def test_others_are_tried_first() -> None:
    one, _ = watched(of_model("m", 5, number=0), of_model("n", 5, number=1))
    one.hold("m")
    one.fault()
    one.set_circuit(admitting=False, trials=1)
    assert models(take_all(one)) == {"n": 1}


def test_the_trial_of_a_backend_takes_that_of_a_model_over_and_says_so() -> None:
    one, missed = watched(of_model("m", 5, number=0))
    one.hold("m")
    one.held.try_one("m")
    one.fault()
    one.set_circuit(admitting=False, trials=1)
    assert [line.trial for line in take_all(one)] == [Trial.BACKEND]
    assert missed == ["m"]


# -- beside a rate ---------------------------------------------------------------------------------


def metered(one: Lane) -> RateMeter:
    one.rates = RateMeter(
        one.backend,
        send=lambda _: None,
        read=lambda _: None,
        clock=lambda: 0.0,
        later=lambda *_: None,
    )
    one.rates.set_rates(m.SetRates(one.backend, requests=True, tokens=None))
    return one.rates


def test_a_trial_that_waits_for_its_rate_is_a_trial_when_it_goes() -> None:
    one, missed = watched(of_model("m", 5, number=0))
    rates = metered(one)
    one.hold("m")
    one.held.try_one("m")
    assert take_all(one) == []
    rates.granted(m.Grant(one.backend, 5, 0.0))
    assert [line.trial for line in take_all(one)] == [Trial.MODEL]
    assert missed == []


def test_a_line_that_waited_for_its_rate_is_held_with_the_rest() -> None:
    one, _ = watched(of_model("m", 5, number=0))
    rates = metered(one)
    assert take_all(one) == []
    one.hold("m")
    rates.granted(m.Grant(one.backend, 5, 0.0))
    assert take_all(one) == []


def test_a_closed_circuit_is_tried_no_faster_than_the_rate_lets_lines_go() -> None:
    one, _ = watched(of_model("m", 5, number=0))
    rates = metered(one)
    one.hold("m")
    one.fault()
    one.set_circuit(admitting=False, trials=1)
    assert take_all(one) == []
    rates.granted(m.Grant(one.backend, 5, 0.0))
    assert [line.trial for line in take_all(one)] == [Trial.BACKEND]


# -- beside other backends -------------------------------------------------------------------------


@pytest.mark.parametrize("hashes", [[0] * 40, [7] * 40, [1 + n // 4 for n in range(40)]])
def test_lines_of_a_model_that_is_held_at_one_backend_all_go_to_another(hashes: list[int]) -> None:
    made = lanes(1.0, 1.0)
    shard(made, hashes)
    made["a"].hold("m")
    taken = take_evenly(made)
    assert Counter(name for name, _ in taken) == {"b": 40}
    assert sorted(line.index for _, line in taken) == list(range(40))


def test_a_line_that_failed_elsewhere_does_not_wait_for_a_backend_without_its_model() -> None:
    """If this fails, it waits until the model is back there, with a backend idle that has it."""
    made = lanes(1.0, 1.0)
    run = shard(made, [0, 0])
    made["a"].hold("m")
    (name, line), *_ = take_evenly(made)
    assert name == "b"
    fail(line, made["b"])
    assert take_evenly(made) == [("b", line)]
    assert [share.admits for share in run.shares] == [False, True]
