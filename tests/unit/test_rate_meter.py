"""A worker's side of a rate limit: which line may go, what is asked for, what is reported."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from batchline.domain.attempts import Outcome
from batchline.domain.ids import BatchId
from batchline.domain.lines import RequestLine
from batchline.domain.model import Usage
from batchline.executor import messages as m
from batchline.executor.line import Gate, Line
from batchline.executor.rate_meter import HOPELESS, REPORT_S, RateMeter
from batchline.executor.rates import Told, Want
from tests.unit.test_lane import lane, shard_run, take_all

B = "b"
TOLD = {"x-ratelimit-limit-requests": "60", "x-ratelimit-remaining-requests": "59"}
BODY = b'{"max_tokens":100}'  # 18 bytes
GUESS = 104.5


@dataclass(slots=True)
class Bench:
    """A meter with a clock, and what it said. `bodies` are sent for lines by number; None: BODY."""

    now: float = 50.0
    said: list[m.ToControl] = field(default_factory=list)
    due: list[tuple[float, Callable[[], None]]] = field(default_factory=list)
    body: bytes | None = BODY
    meter: RateMeter = field(init=False)

    def __post_init__(self) -> None:
        self.meter = RateMeter(
            B,
            send=self.said.append,
            read=lambda _: None if self.body is None else RequestLine(b'"c"', self.body),
            clock=lambda: self.now,
            later=lambda delay_s, call: self.due.append((self.now + delay_s, call)),
        )

    def news(self) -> list[m.ToControl]:
        said, self.said[:] = list(self.said), []
        return said

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        for at, call in list(self.due):
            if at <= self.now:
                self.due.remove((at, call))
                call()


@pytest.fixture
def bench() -> Bench:
    return Bench()


def a_line(number: int = 0) -> Line:
    run = shard_run(10, number=number)
    line = run.take()
    assert line is not None
    return line


def test_where_nothing_is_counted_everything_goes(bench: Bench) -> None:
    assert bench.meter.admits(a_line(), room=1)
    assert bench.news() == []
    assert not bench.meter.counts


def test_without_a_grant_nothing_goes_and_it_is_asked_for_once(bench: Bench) -> None:
    bench.meter.set_rates(m.SetRates(B, requests=True, tokens=None))
    one = lane(shard_run(100), permits=8)
    one.rates = bench.meter
    assert take_all(one) == []
    assert take_all(one) == []
    assert bench.news() == [m.AskRates(B, Want(8))]
    assert one.in_flight == 0


def test_as_many_go_as_were_granted_in_their_order(bench: Bench) -> None:
    bench.meter.set_rates(m.SetRates(B, requests=True, tokens=None))
    run = shard_run(100)
    one = lane(run, permits=8)
    one.rates = bench.meter
    take_all(one)
    bench.meter.granted(m.Grant(B, 3, 0.0))
    lines = take_all(one)
    assert [line.index for line in lines] == [0, 1, 2]
    assert bench.news()[-1] == m.AskRates(B, Want(5))
    assert len(run.in_flight) == 3


def test_a_line_that_waits_for_its_rate_is_not_in_flight_and_goes_with_its_gate() -> None:
    bench = Bench()
    bench.meter.set_rates(m.SetRates(B, requests=True, tokens=None))
    run = shard_run(1)
    one = lane(run, permits=8)
    one.rates = bench.meter
    take_all(one)
    assert (len(run.in_flight), run.has_line) == (0, True)
    run.close(Gate.CLOSED)
    assert run.is_over
    bench.meter.granted(m.Grant(B, 3, 0.0))
    assert take_all(one) == []


def test_tokens_are_asked_for_by_the_guess(bench: Bench) -> None:
    bench.meter.set_rates(m.SetRates(B, requests=False, tokens=10_000))
    line = a_line()
    assert not bench.meter.admits(line, room=4)
    assert bench.news() == [m.AskRates(B, Want(0, 4 * GUESS, GUESS))]
    bench.meter.granted(m.Grant(B, 0, GUESS - 10))
    assert not bench.meter.admits(line, room=4)
    assert bench.news() == [m.AskRates(B, Want(0, 3 * GUESS + 10, 10))]
    bench.meter.granted(m.Grant(B, 0, 10))
    assert bench.meter.admits(line, room=4)


def test_a_line_that_cannot_be_read_waits_for_no_tokens(bench: Bench) -> None:
    bench.body = None
    bench.meter.set_rates(m.SetRates(B, requests=False, tokens=10_000))
    assert bench.meter.admits(a_line(), room=1)


def test_a_line_above_the_allowance_asks_for_all_of_it_and_no_more(bench: Bench) -> None:
    bench.meter.set_rates(m.SetRates(B, requests=False, tokens=50))
    assert not bench.meter.admits(a_line(), room=1)
    assert bench.news() == [m.AskRates(B, Want(0, 50, 50))]


def test_a_new_order_voids_what_was_granted(bench: Bench) -> None:
    order = m.SetRates(B, requests=True, tokens=None)
    bench.meter.set_rates(order)
    bench.meter.granted(m.Grant(B, 3, 0.0))
    bench.meter.set_rates(order)
    assert not bench.meter.admits(a_line(), room=1)


def test_what_was_never_sent_is_given_back(bench: Bench) -> None:
    bench.meter.set_rates(m.SetRates(B, requests=True, tokens=10_000))
    bench.meter.granted(m.Grant(B, 1, GUESS))
    line = a_line()
    assert bench.meter.admits(line, room=1)
    bench.meter.over(line, written=False)
    assert bench.meter.admits(line, room=1)
    bench.meter.over(line, written=True)
    assert not bench.meter.admits(a_line(1), room=1)


# -- reports ---------------------------------------------------------------------------------------


def sent(bench: Bench, number: int = 0) -> Line:
    """A line on its way that was counted for its guess."""
    bench.meter.set_rates(m.SetRates(B, requests=False, tokens=10_000))
    bench.meter.granted(m.Grant(B, 0, 10_000))
    line = a_line(number)
    assert bench.meter.admits(line, room=1)
    line.written = True
    return line


def test_what_answers_used_is_reported_together(bench: Bench) -> None:
    for number in range(3):
        line = sent(bench, number)
        used = Usage(input_tokens=50, output_tokens=50, total_tokens=100)
        bench.meter.ended(line, Outcome.ANSWERED, used)
        bench.meter.over(line, written=True)
    assert bench.news() == []
    bench.pass_time(REPORT_S)
    (report,) = bench.news()
    assert isinstance(report, m.RatesHeard)
    assert -3 * GUESS < report.tokens < 300
    bench.pass_time(10 * REPORT_S)
    assert bench.news() == []


def test_an_answer_that_tells_no_usage_is_taken_for_the_estimate(bench: Bench) -> None:
    line = sent(bench)
    bench.meter.ended(line, Outcome.ANSWERED, Usage())
    bench.pass_time(REPORT_S)
    assert bench.news() == []


def test_of_what_answers_tell_the_newest_requests_counts(bench: Bench) -> None:
    early = sent(bench)
    bench.now += 1
    late = sent(bench, 1)
    bench.now += 2
    bench.meter.heard(late, TOLD)
    bench.meter.heard(early, {**TOLD, "x-ratelimit-remaining-requests": "60"})
    bench.pass_time(REPORT_S)
    (report,) = bench.news()
    assert isinstance(report, m.RatesHeard)
    assert report.requests_told == Told(limit=60, remaining=59)
    assert report.tokens_told is None
    assert report.age_s == pytest.approx(2 + REPORT_S)


# -- refusals --------------------------------------------------------------------------------------


def refuse(bench: Bench, line: Line, tokens: float, *, asked_s: float = 3.0) -> float | None:
    """`line` goes with a grant of `tokens`, and is sent back."""
    bench.meter.set_rates(m.SetRates(B, requests=False, tokens=1_000))
    bench.meter.granted(m.Grant(B, 0, tokens))
    assert bench.meter.admits(line, room=1)
    wait_s = bench.meter.refused(line, asked_s, 1.0)
    if wait_s is not None:
        line.run.in_flight.discard(line)
        line.run.waiting[line] = None  # type: ignore[assignment]  # a timer, to the worker
    bench.meter.over(line, written=True)
    return wait_s


def test_a_refusal_is_reported_at_once(bench: Bench) -> None:
    assert refuse(bench, a_line(), 1_000) is not None
    (report,) = bench.news()
    # The tokens were not counted for; the request was, as services say.
    assert report == m.RatesHeard(B, tokens=-GUESS, refused=True, retry_after_s=3.0)


def test_a_refused_line_is_taken_for_more_each_time_and_left_alone_for_longer(
    bench: Bench,
) -> None:
    line = a_line()
    waits = []
    for tokens in (GUESS, 2 * GUESS, 4 * GUESS):
        assert not _goes_with(bench, line, tokens - 1)
        waits.append(refuse(bench, line, tokens))
    assert waits == [1.0, 2.0, 4.0]


def _goes_with(bench: Bench, line: Line, tokens: float) -> bool:
    bench.meter.set_rates(m.SetRates(B, requests=False, tokens=1_000))
    bench.meter.granted(m.Grant(B, 0, tokens))
    return bench.meter.admits(line, room=1)


def test_a_line_that_is_refused_with_all_of_it_there_while_others_go_gets_that_answer(
    bench: Bench,
) -> None:
    """It would wait for ever; the backend says itself why it never goes."""
    line = a_line()
    waits = []
    for number in range(4 + HOPELESS):
        bench.meter.ended(a_line(number + 1), Outcome.ANSWERED, None)
        waits.append(refuse(bench, line, 1_000))
    assert waits[-1] is None
    assert None not in waits[:-1]


def test_a_line_is_never_given_up_while_nothing_else_goes_either(bench: Bench) -> None:
    """Somebody else may be using all of the account."""
    line = a_line()
    waits = [refuse(bench, line, 1_000) for _ in range(50)]
    assert None not in waits
    assert waits[-1] == 60.0


def test_a_wait_of_more_than_a_minute_is_the_backends_even_with_all_of_the_minute_there(
    bench: Bench,
) -> None:
    """A limit of an hour or a day: the line is no larger for it, and all lines wait, visibly."""
    line = a_line()
    bench.meter.ended(a_line(1), Outcome.ANSWERED, None)
    for _ in range(2 * HOPELESS):
        assert refuse(bench, line, 1_000, asked_s=600.0) == pytest.approx(0.5)
        (report,) = bench.news()
        assert report == m.RatesHeard(B, tokens=-GUESS, refused=True, retry_after_s=600.0)
    assert _goes_with(bench, line, GUESS)


def test_up_to_a_minute_the_wait_is_the_lines_when_it_had_all_of_the_minute(bench: Bench) -> None:
    line = a_line()
    while refuse(bench, line, 1_000, asked_s=45.0) != 45.0:
        bench.news()
    (report,) = bench.news()
    assert isinstance(report, m.RatesHeard)
    assert not report.refused


def test_lines_that_will_not_come_back_are_forgotten(bench: Bench) -> None:
    lines = [a_line(number) for number in range(3)]
    for line in lines:
        refuse(bench, line, 1_000)
    lines[0].run.waiting.clear()
    lines[0].run.close(Gate.CLOSED)
    lines[1].run.waiting.clear()
    lines[1].run.settle(lines[1], b"", succeeded=True, usage=None)  # by another backend's answer
    bench.pass_time(60.0)
    assert bench.meter.remembered == 1
    lines[2].run.waiting.clear()
    lines[2].run.close(Gate.CLOSED)
    bench.pass_time(60.0)
    assert bench.meter.remembered == 0
    assert not bench.due


# -- turns -----------------------------------------------------------------------------------------


def test_a_line_that_waits_for_its_rate_uses_up_no_more_than_its_turn(bench: Bench) -> None:
    """However often somebody looks: what was asked for is for the line that was next then."""
    order = m.SetRates(B, requests=True, tokens=None)
    bench.meter.set_rates(order)
    one = lane(
        shard_run(100, batch=BatchId("batch_" + "1" * 32)),
        shard_run(100, batch=BatchId("batch_" + "2" * 32)),
        permits=50,
    )
    one.rates = bench.meter
    went = []
    for _ in range(20):
        assert take_all(one) == []
        for _ in range(2):
            bench.meter.set_rates(order)  # an order that voids grants makes it look anew
            assert take_all(one) == []
        bench.meter.granted(m.Grant(B, 1, 0.0))
        (line,) = take_all(one)
        went.append(line.run.batch_id)
    assert sorted(Counter(went).values()) == [10, 10]
    assert all(first != second for first, second in itertools.pairwise(went))


def test_the_turn_of_a_batch_that_was_cancelled_goes_to_the_next(bench: Bench) -> None:
    bench.meter.set_rates(m.SetRates(B, requests=True, tokens=None))
    runs = [shard_run(5, batch=BatchId("batch_" + digit * 32)) for digit in "12"]
    one = lane(*runs, permits=50)
    one.rates = bench.meter
    assert take_all(one) == []
    runs[0].close(Gate.CLOSED)
    bench.meter.granted(m.Grant(B, 5, 0.0))
    assert [line.run for line in take_all(one)] == [runs[1]] * 5
