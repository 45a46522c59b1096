"""Attempts that broke: which of them count, and when a backend is reported for them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import msgspec
import pytest

from batchline.domain.attempts import Outcome
from batchline.domain.errors import NotSent, SentUnanswered, UpstreamError
from batchline.executor import messages as m
from batchline.executor.failover import FREE_LOSSES, SILENT_S, Failover
from batchline.executor.lane import Lane
from batchline.executor.line import Gate, Line, Trial
from batchline.executor.routed import BROKEN_IN_A_ROW, RoutedLane
from batchline.executor.shard_run import ShardRun
from batchline.executor.transport.contract import Answer
from batchline.executor.verdict import Verdict
from tests.unit.test_lane import Nowhere
from tests.unit.test_routed import lanes, shard, take_evenly

CUT_OFF = Verdict(Outcome.BROKEN, "connection reset", b"result\n", cut_off=True)
STATUS_500 = Verdict(Outcome.BROKEN, "status 500", b"result\n", answered=True)
REFUSED = NotSent("connection refused")


class Looked(Nowhere):
    """A backend whose looks wait for `answers`; an error in it is what the look meets."""

    def __init__(self) -> None:
        self.looks = 0
        self.answers: asyncio.Queue[Answer | UpstreamError] = asyncio.Queue()

    async def get_json(self, *_: object, **__: object) -> Answer:
        self.looks += 1
        answer = await self.answers.get()
        if isinstance(answer, UpstreamError):
            raise answer
        return answer


@dataclass(slots=True)
class Desk:
    """Two lanes with a shard, and everything that a failover asks for."""

    sent: list[m.ToControl] = field(default_factory=list)
    settled: list[tuple[Line, Verdict]] = field(default_factory=list)
    offered: list[ShardRun] = field(default_factory=list)
    failed: list[Exception] = field(default_factory=list)
    backend: Looked = field(default_factory=Looked)
    made: dict[str, Lane] = field(default_factory=lambda: lanes(1.0, 1.0))
    failover: Failover = field(init=False)

    def __post_init__(self) -> None:
        self.made["a"].transport = self.backend
        self.failover = Failover(
            send=self.sent.append,
            settle=lambda line, found: self.settled.append((line, found)),
            offer=self.offered.append,
            fail=self.failed.append,
        )

    @property
    def lane(self) -> RoutedLane:
        lane = self.made["a"]
        assert isinstance(lane, RoutedLane)
        return lane

    def lines(self, count: int) -> list[Line]:
        """Lines that are in flight at `a`, in their first attempt."""
        shard(self.made, [0] * count)
        self.made["b"].permits = 0
        found = [line for _, line in take_evenly(self.made)]
        self.made["b"].permits = 100
        for line in found:
            line.begin("a")
            line.attempt = 1
        return found

    def break_(self, line: Line, found: Verdict, *, last: bool) -> bool:
        """What the worker does with a broken attempt; whether its trial failed by that."""
        failed = self.failover.note(self.lane, line, found)
        line.run.in_flight.discard(line)
        if not last:
            line.run.waiting[line] = asyncio.get_running_loop().call_later(60, lambda: None)
        elif not self.failover.holds(self.lane, line, found):
            self.settled.append((line, found))
        self.lane.ended(line, answered=not failed)
        return failed

    async def look(self, answer: Answer | UpstreamError) -> None:
        """One look is over, and what follows from it done."""
        self.backend.answers.put_nowait(answer)
        await turns()
        assert self.backend.answers.empty()

    def faults(self) -> list[tuple[str, bool]]:
        return [(one.outcome, one.trial) for one in self.sent if isinstance(one, m.BackendFault)]


ALIVE = Answer(status=404, headers={}, body=b"")  # whatever it says


async def turns() -> None:
    """Everything that waits for nothing but the loop is done."""
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.mark.parametrize("trouble", [REFUSED, SentUnanswered("no answer", reason="timeout")])
@pytest.mark.parametrize("last", [True, False])
async def test_what_was_cut_off_by_a_backend_that_is_gone_does_not_count(
    trouble: UpstreamError, last: bool
) -> None:
    desk = Desk()
    lines = desk.lines(3)
    for line in lines:
        assert not desk.break_(line, CUT_OFF, last=last)
    assert desk.settled == []
    await desk.look(trouble)
    assert desk.backend.looks == 1
    assert [(line.attempt, line.losses) for line in lines] == [(0, 1)] * 3
    assert list(lines[0].run.returned) == lines
    assert lines[0].run.waiting == {}
    assert desk.offered == [lines[0].run]
    assert not desk.lane.admits
    assert desk.faults() == [("not_sent", False)]
    (fault,) = desk.sent
    assert isinstance(fault, m.BackendFault)
    # One that says nothing would hold the line that tries it.
    assert fault.retry_after_s == (None if isinstance(trouble, NotSent) else SILENT_S)
    assert (desk.settled, desk.failed) == ([], [])


@pytest.mark.parametrize("answer", [ALIVE, SentUnanswered("not HTTP", reason="malformed")])
async def test_what_was_cut_off_by_a_backend_that_lives_counts(
    answer: Answer | UpstreamError,
) -> None:
    desk = Desk()
    last, other = desk.lines(2)
    desk.break_(last, CUT_OFF, last=True)
    desk.break_(other, CUT_OFF, last=False)
    assert desk.settled == []
    await desk.look(answer)
    assert desk.settled == [(last, CUT_OFF)]
    assert (last.losses, other.attempt, list(other.run.waiting)) == (0, 1, [other])
    assert (desk.faults(), desk.lane.admits) == ([], True)
    other.run.close(Gate.CLOSED)


async def test_silence_is_no_sign_of_death_while_lines_are_answered() -> None:
    """llama.cpp b11549: with more connections than its threads a look waits behind requests."""
    desk = Desk()
    (line,) = desk.lines(1)
    desk.break_(line, CUT_OFF, last=True)
    await turns()
    desk.lane.answers += 1
    await desk.look(SentUnanswered("no answer", reason="timeout"))
    assert desk.settled == [(line, CUT_OFF)]
    assert (desk.faults(), desk.lane.admits) == ([], True)


async def test_an_answer_is_never_in_doubt() -> None:
    desk = Desk()
    (line,) = desk.lines(1)
    desk.break_(line, STATUS_500, last=True)
    assert desk.settled == [(line, STATUS_500)]
    assert desk.backend.looks == 0


async def test_a_look_that_began_before_says_nothing_of_what_was_cut_off_after() -> None:
    desk = Desk()
    first, second = desk.lines(2)
    desk.break_(first, CUT_OFF, last=True)
    await turns()
    assert desk.backend.looks == 1
    desk.break_(second, CUT_OFF, last=True)
    await desk.look(ALIVE)
    assert desk.settled == [(first, CUT_OFF)]
    await desk.look(REFUSED)
    assert (second.attempt, list(second.run.returned)) == (0, [second])
    assert desk.settled == [(first, CUT_OFF)]


@pytest.mark.parametrize("trouble", [REFUSED, SentUnanswered("no answer", reason="timeout")])
async def test_what_is_cut_off_during_a_look_that_finds_nobody_is_lost_without_another(
    trouble: UpstreamError,
) -> None:
    """A second look at a backend that hangs would end when the line no longer waits."""
    desk = Desk()
    first, second = desk.lines(2)
    desk.break_(first, CUT_OFF, last=True)
    await turns()
    desk.break_(second, CUT_OFF, last=True)
    await desk.look(trouble)
    assert desk.settled == []
    assert list(first.run.returned) == [first, second]
    assert (first.attempt, second.attempt) == (0, 0)
    assert desk.backend.looks == 1
    assert len(desk.faults()) == 1


@pytest.mark.parametrize("first", [ALIVE, REFUSED])
async def test_a_look_at_one_backend_does_not_end_the_wait_for_another(
    first: Answer | UpstreamError,
) -> None:
    """The line went on at `b` meanwhile, and was cut off there too. If this fails, it is settled,
    or sent again, before anybody knows whether `b` went down with it."""
    desk = Desk()
    other = Looked()
    desk.made["b"].transport = other
    (line,) = desk.lines(1)
    desk.break_(line, CUT_OFF, last=False)
    await turns()
    line.run.waiting.pop(line).cancel()
    line.run.in_flight.add(line)
    line.begin("b")
    line.attempt = 2
    desk.failover.note(desk.made["b"], line, CUT_OFF)
    assert desk.failover.holds(desk.made["b"], line, CUT_OFF)
    await desk.look(first)
    assert (desk.settled, list(line.run.returned), list(line.run.waiting)) == ([], [], [line])
    other.answers.put_nowait(REFUSED)
    await turns()
    assert (desk.settled, list(line.run.returned)) == ([], [line])
    assert line.attempt == (1 if first is ALIVE else 0)


async def test_a_line_that_is_lost_again_and_again_comes_to_an_end() -> None:
    """It may be what brings the backends down."""
    desk = Desk()
    (line,) = desk.lines(1)
    for _ in range(FREE_LOSSES):
        desk.break_(line, CUT_OFF, last=True)
        await desk.look(REFUSED)
        assert desk.settled == []
        line.run.returned.clear()
        line.attempt += 1
    desk.break_(line, CUT_OFF, last=True)
    await desk.look(REFUSED)
    assert desk.settled == [(line, CUT_OFF)]


async def test_a_gate_that_closes_meanwhile_leaves_the_line_to_whoever_comes_next() -> None:
    desk = Desk()
    (line,) = desk.lines(1)
    desk.break_(line, CUT_OFF, last=True)
    line.run.close(Gate.CLOSED)
    assert line.run.is_over
    await desk.look(REFUSED)
    assert (desk.settled, list(line.run.returned), line.run.is_over) == ([], [], True)


async def test_behind_a_closed_gate_nothing_waits_for_a_look() -> None:
    desk = Desk()
    (line,) = desk.lines(1)
    line.run.close(Gate.CLOSED)
    desk.break_(line, CUT_OFF, last=True)
    assert desk.settled == [(line, CUT_OFF)]


async def test_a_fault_of_ours_in_a_look_is_not_taken_for_the_backends() -> None:
    desk = Desk()
    (line,) = desk.lines(1)
    desk.break_(line, CUT_OFF, last=False)
    desk.backend.answers = None  # type: ignore[assignment]  # so that the look raises
    await turns()
    assert [type(one) for one in desk.failed] == [AttributeError]
    line.run.close(Gate.CLOSED)


# -- pages of a proxy --------------------------------------------------------------------------

PAGE = Verdict(Outcome.BROKEN, "status 502", b"result\n", answered=True, cut_off=True, page=502)
AWAY = Answer(status=502, headers={}, body=b"<html>")


@pytest.mark.parametrize("last", [True, False])
async def test_a_page_does_not_count_when_the_look_is_given_one_too(last: bool) -> None:
    desk = Desk()
    lines = desk.lines(2)
    for line in lines:
        desk.break_(line, PAGE, last=last)
    await desk.look(AWAY)
    assert [(line.attempt, line.losses) for line in lines] == [(0, 1)] * 2
    assert (list(lines[0].run.returned), desk.settled) == (lines, [])
    (fault,) = desk.sent
    assert isinstance(fault, m.BackendFault)
    # Pages come at once: no trial is held by them, as it is by one that says nothing.
    assert (fault.outcome, fault.retry_after_s) == ("not_sent", None)
    assert fault.reason == "a proxy answers 502 for it"


@pytest.mark.parametrize(
    "answer",
    [ALIVE, Answer(status=503, headers={}, body=b'{"error":{"message":"loading"}}')],
)
async def test_a_page_counts_when_the_backend_answers_the_look(answer: Answer) -> None:
    desk = Desk()
    (line,) = desk.lines(1)
    desk.break_(line, PAGE, last=True)
    assert desk.settled == []
    await desk.look(answer)
    assert (desk.settled, line.losses) == ([(line, PAGE)], 0)


async def test_a_line_that_was_lost_too_often_counts_and_the_circuit_closes_all_the_same() -> None:
    """Else its other attempts would all go by in the time that the backend is away."""
    desk = Desk()
    last, other = desk.lines(2)
    last.losses = other.losses = FREE_LOSSES
    desk.break_(last, PAGE, last=True)
    desk.break_(other, PAGE, last=False)
    await desk.look(AWAY)
    assert desk.settled == [(last, PAGE)]
    assert (other.attempt, list(other.run.waiting)) == (1, [other])
    assert (desk.faults(), desk.lane.admits) == ([("not_sent", False)], False)
    other.run.close(Gate.CLOSED)


async def test_a_full_backend_that_answers_the_look_costs_a_trial_nothing() -> None:
    desk = Desk()
    (line,) = desk.lines(1)
    line.trial = Trial.BACKEND
    full = msgspec.structs.replace(PAGE, page=503)
    assert desk.break_(line, full, last=True)
    await desk.look(ALIVE)
    assert (line.attempt, line.losses, list(line.run.returned)) == (0, 0, [line])
    assert desk.settled == []


# -- too many in a row -------------------------------------------------------------------------


async def test_a_backend_that_only_fails_is_left_alone_while_another_answers() -> None:
    desk = Desk()
    lines = desk.lines(BROKEN_IN_A_ROW)
    for line in lines[:-1]:
        desk.break_(line, STATUS_500, last=True)
    assert (desk.faults(), desk.lane.admits) == ([], True)
    desk.break_(lines[-1], STATUS_500, last=True)
    assert (desk.faults(), desk.lane.admits) == ([("broken", False)], False)


async def test_an_answer_between_makes_a_broken_attempt_the_first_again() -> None:
    desk = Desk()
    lines = desk.lines(2 * BROKEN_IN_A_ROW)
    for line in lines:
        if line is lines[BROKEN_IN_A_ROW - 1]:
            desk.lane.ended(line, answered=True)
        else:
            desk.break_(line, STATUS_500, last=True)
            if line is lines[-2]:
                assert desk.lane.admits
    assert not desk.lane.admits


async def test_attempts_that_are_cut_off_by_a_backend_that_lives_are_counted_too() -> None:
    desk = Desk()
    lines = desk.lines(BROKEN_IN_A_ROW)
    for line in lines:
        desk.break_(line, CUT_OFF, last=True)
    assert desk.lane.admits
    await desk.look(ALIVE)
    assert (desk.faults(), desk.lane.admits) == ([("broken", False)], False)
    assert len(desk.settled) == BROKEN_IN_A_ROW


@pytest.mark.parametrize("how", ["away", "fails too"])
async def test_the_last_one_that_admits_is_never_left_alone_for_that(how: str) -> None:
    desk = Desk()
    lines = desk.lines(2 * BROKEN_IN_A_ROW)
    other = desk.made["b"]
    assert isinstance(other, RoutedLane)
    if how == "away":
        other.fault()
    else:
        other.broken = 1
    for line in lines:
        desk.break_(line, STATUS_500, last=True)
    assert (desk.faults(), desk.lane.admits) == ([], True)


async def test_a_trial_that_breaks_keeps_the_circuit_closed_while_another_answers() -> None:
    desk = Desk()
    (line,) = desk.lines(1)
    line.trial = Trial.BACKEND
    assert desk.break_(line, STATUS_500, last=False)
    assert desk.faults() == [("broken", True)]
    line.run.close(Gate.CLOSED)


async def test_a_trial_that_is_cut_off_is_no_answer_even_of_the_only_backend() -> None:
    desk = Desk()
    desk.made["b"].fault()
    first, second = desk.lines(2)
    desk.made["b"].permits = 0
    first.trial = second.trial = Trial.BACKEND
    assert not desk.break_(first, STATUS_500, last=False)
    assert desk.break_(second, CUT_OFF, last=False)
    assert desk.faults() == [("broken", True)]
    desk.failover.close()
    first.run.close(Gate.CLOSED)
