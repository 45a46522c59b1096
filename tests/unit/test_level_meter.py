"""What a worker tells of a lane whose limit is learnt."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from batchline.domain.model import Usage
from batchline.executor.lane import Lane
from batchline.executor.level_meter import LevelMeter
from batchline.executor.messages import LaneReport, OlderAnswers
from batchline.executor.turns import Turns
from tests.unit.test_lane import Nowhere, shard_run, take_all


@dataclass(slots=True)
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lane(clock: Clock) -> Lane:
    return Lane("b", Nowhere(), meter=LevelMeter(clock), permits=2, runs=Turns([shard_run(50)]))


def report(lane: Lane) -> LaneReport:
    told = lane.report()
    assert told is not None
    return told


def test_answers_their_tokens_and_latencies_are_told_once(lane: Lane, clock: Clock) -> None:
    assert lane.meter is not None
    lines = take_all(lane)
    clock.now += 1.5
    lane.meter.answered(lines[0].began, Usage(output_tokens=30))
    clock.now += 0.5
    lane.meter.answered(lines[1].began, None)
    told = report(lane)
    assert (told.answers, told.tokens, told.latency_s) == (2, 30, 3.5)
    told = report(lane)
    assert (told.answers, told.tokens, told.latency_s) == (0, 0, 0.0)


def test_an_answer_that_began_before_the_measure_is_no_part_of_it(lane: Lane, clock: Clock) -> None:
    assert lane.meter is not None
    (early, _) = take_all(lane)
    clock.now += 1.0
    lane.meter.begin_anew(7)
    lane.permits = 3
    (late,) = take_all(lane)
    clock.now += 1.0
    for line in (early, late):
        lane.meter.answered(line.began, Usage(output_tokens=5))
    told = report(lane)
    assert (told.measure, told.answers, told.tokens, told.latency_s) == (7, 1, 5, 1.0)
    lane.meter.begin_anew(7)  # a new share of the same level begins nothing
    lane.meter.answered(late.began, Usage(output_tokens=5))
    assert report(lane).answers == 1


def test_answers_from_before_are_told_with_how_long_they_spent_at_each_level(clock: Clock) -> None:
    meter = LevelMeter(clock)
    for measure in (1, 2, 3):
        meter.begin_anew(measure)
        clock.now += 10.0
    at_first, at_second = 104.0, 113.0  # and now it is 130
    meter.answered(at_first, Usage(output_tokens=50))
    meter.answered(at_second, None)
    meter.answered(125.0, Usage(output_tokens=7))
    told = meter.report("b", order=1, permits=4, in_flight=4, full=True)
    assert told is not None
    assert (told.answers, told.tokens, told.latency_s) == (1, 7, 5.0)
    assert told.older == OlderAnswers(
        answers=2, tokens=50, seconds={1: 6.0, 2: 17.0, 3: 20.0}, before={2: 1, 3: 2}
    )
    told = meter.report("b", order=1, permits=4, in_flight=4, full=True)
    assert told is not None
    assert told.older is None


def test_what_is_older_than_every_level_that_is_remembered_is_left_out(clock: Clock) -> None:
    meter = LevelMeter(clock)
    meter.begin_anew(1)
    began = clock.now
    for measure in range(2, 11):
        clock.now += 1.0
        meter.begin_anew(measure)
    meter.answered(began, Usage(output_tokens=50))
    told = meter.report("b", order=1, permits=4, in_flight=4, full=True)
    assert told is not None
    assert (told.answers, told.older) == (0, None)


def test_a_lane_is_limited_while_every_permit_is_in_use(lane: Lane) -> None:
    lines = take_all(lane)
    assert report(lane).limited
    lane.ended(lines[0], answered=True)
    assert not report(lane).limited
    take_all(lane)
    assert report(lane).limited


def test_a_lane_without_lines_for_a_moment_was_not_limited(lane: Lane) -> None:
    last = shard_run(2)
    lane.runs = Turns([last])
    lines = take_all(lane)
    lane.ended(lines[0], answered=True)
    assert lane.take() is None
    lane.runs = Turns([shard_run(9)])
    take_all(lane)
    assert lane.in_flight == lane.permits
    assert not report(lane).limited
    assert report(lane).limited


def test_a_lane_in_its_slow_start_or_closed_is_not_limited(lane: Lane) -> None:
    take_all(lane)
    lane.window = 2
    assert not report(lane).limited
    lane.window = None
    lane.admitting = False
    assert not report(lane).limited


def test_a_lane_at_rest_says_so_once(lane: Lane) -> None:
    lane.permits = 0
    assert lane.report() is None
    lane.permits = 2
    assert report(lane).in_flight == 0
    lane.permits = 0
    assert report(lane).in_flight == 0
    assert lane.report() is None


def test_a_lane_without_a_meter_tells_nothing() -> None:
    lane = Lane("b", Nowhere(), permits=2, runs=Turns([shard_run(5)]))
    assert len(take_all(lane)) == 2
    assert lane.report() is None
