"""What workers are told of permits and circuits, message by message."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from batchline.domain.attempts import TRIAL_PATIENCE_S, Outcome
from batchline.domain.waiting import of_drain, of_fault, of_rate
from batchline.executor import messages as m
from batchline.executor.admission import SILENT_WAIT_S, TURN_S, Admission
from batchline.executor.circuit import FIRST_WAIT_S
from batchline.executor.contract import BackendSettings
from batchline.executor.rates import Told, Want

ONE = "one"
TWO = "two"


@dataclass(slots=True)
class Desk:
    """An admission for two backends of eight permits, with a clock that the test moves."""

    now: float = 1_000.0
    told: list[tuple[str, m.ToWorker]] = field(default_factory=list)
    unreachable: list[tuple[str, str]] = field(default_factory=list)
    admission: Admission = field(init=False)

    def __post_init__(self) -> None:
        self.admission = Admission(
            [
                BackendSettings(name=name, base_url=f"http://{name}/v1", max_in_flight=8)
                for name in (ONE, TWO)
            ],
            tell=lambda worker, message: self.told.append((worker, message)),
            clock=lambda: self.now,
            on_unreachable=lambda name, reason: self.unreachable.append((name, reason)),
        )

    def limited(self, **limits: int) -> None:
        """The first backend counts."""
        self.admission = Admission(
            [BackendSettings(name=ONE, base_url="http://one/v1", **{"max_in_flight": 8, **limits})],  # type: ignore[arg-type]
            tell=lambda worker, message: self.told.append((worker, message)),
            clock=lambda: self.now,
        )

    def news(self) -> list[tuple[str, m.ToWorker]]:
        """What was told since the last call."""
        told, self.told = self.told, []
        return told

    def all_want(self, *workers: str) -> None:
        """The workers hold shards for one backend, and have answered what they were told."""
        for worker in workers:
            self.admission.set_wanting(worker, [ONE])
        self.settle()

    def settle(self) -> None:
        """Every worker gives back at once what it is told to."""
        while news := self.news():
            for worker, message in news:
                if isinstance(message, m.SetPermits):
                    answer = m.PermitsHeld(message.backend, message.permits, message.order)
                    self.admission.permits_held(worker, answer)

    def fault(
        self,
        worker: str,
        *,
        trial: bool = False,
        retry_after_s: float | None = None,
        outcome: Outcome = Outcome.SHED,
    ) -> None:
        self.admission.fault(
            worker,
            m.BackendFault(
                backend=ONE,
                outcome=outcome,
                reason="status 429",
                retry_after_s=retry_after_s,
                trial=trial,
            ),
        )

    def trial(self) -> str | None:
        """Which worker a tick asks to try a line; None when it asks nobody."""
        self.admission.tick()
        asked = [
            worker
            for worker, message in self.news()
            if message == m.SetCircuit(ONE, admitting=False, trials=1)
        ]
        assert len(asked) <= 1
        return asked[0] if asked else None


@pytest.fixture
def desk() -> Desk:
    return Desk()


# -- permits ---------------------------------------------------------------------------------------


def test_a_worker_hears_of_the_circuit_before_it_gets_permits(desk: Desk) -> None:
    desk.admission.set_wanting("a", [ONE])
    assert desk.news() == [
        ("a", m.SetCircuit(ONE, admitting=True)),
        ("a", m.SetPermits(ONE, 8, 1)),
    ]


def test_nothing_is_told_while_nothing_changes(desk: Desk) -> None:
    desk.admission.set_wanting("a", [ONE])
    desk.news()
    desk.admission.set_wanting("a", [ONE])
    assert desk.news() == []


def test_the_second_worker_waits_for_what_the_first_gives_back(desk: Desk) -> None:
    desk.all_want("a")
    desk.admission.set_wanting("b", [ONE])
    assert desk.news() == [
        ("b", m.SetCircuit(ONE, admitting=True)),
        ("a", m.SetPermits(ONE, 4, 2)),
    ]
    desk.admission.permits_held("a", m.PermitsHeld(ONE, 4, 2))
    assert desk.news() == [("b", m.SetPermits(ONE, 4, 1))]


def test_no_worker_is_without_permits_for_long(desk: Desk) -> None:
    """Of one permit and two workers. If this fails, what the second has of any batch waits until
    the first has nothing left of all batches."""
    desk.limited(max_in_flight=1)
    desk.all_want("a", "b")
    turns = []
    for _ in range(100):
        desk.now += TURN_S / 20
        desk.admission.tick()
        turns += [
            worker
            for worker, told in desk.told
            if isinstance(told, m.SetPermits) and not told.permits
        ]
        desk.settle()
    assert turns in (["a", "b", "a", "b", "a"], ["a", "b", "a", "b"])


def test_a_permit_goes_to_who_has_lines_and_comes_back_when_the_other_has_some(
    desk: Desk,
) -> None:
    desk.limited(max_in_flight=1)
    desk.all_want("a", "b")
    desk.admission.lane_idle("a", m.LaneIdle(ONE, idle=True))
    assert desk.news() == [("a", m.SetPermits(ONE, 0, 2))]
    desk.admission.permits_held("a", m.PermitsHeld(ONE, 0, 2))
    assert desk.news() == [("b", m.SetPermits(ONE, 1, 1))]
    desk.admission.permits_held("b", m.PermitsHeld(ONE, 1, 1))
    for _ in range(10):
        desk.now += TURN_S
        desk.admission.tick()
    assert desk.news() == []
    desk.admission.lane_idle("a", m.LaneIdle(ONE, idle=False))
    for _ in range(2):
        desk.now += TURN_S
        desk.admission.tick()
    assert desk.news() == [("b", m.SetPermits(ONE, 0, 2))]


def test_where_all_are_idle_permits_stay_where_they_are(desk: Desk) -> None:
    """A trial may be to be had from one of them. If this fails, a closed circuit may never open."""
    desk.limited(max_in_flight=1)
    desk.all_want("a", "b")
    desk.admission.lane_idle("b", m.LaneIdle(ONE, idle=True))
    desk.admission.lane_idle("a", m.LaneIdle(ONE, idle=True))
    assert desk.news() == []


def test_who_has_a_permit_is_asked_to_try(desk: Desk) -> None:
    desk.limited(max_in_flight=1)
    desk.all_want("a", "b", "c")
    desk.fault("b")
    has, tried = "a", set()
    for _ in range(600):
        desk.now += 0.3
        desk.admission.tick()
        for worker, message in list(desk.told):
            if isinstance(message, m.SetCircuit) and message.trials:
                assert worker == has
                tried.add(worker)
                desk.admission.trial_over(worker, m.TrialOver(ONE, worked=False))
            elif isinstance(message, m.SetPermits):
                has = ""
        desk.settle()
        (has,) = [one for one, permits in desk.admission._desks[ONE].pool.told.items() if permits]
    assert tried == {"a", "b", "c"}


def test_backends_are_apart(desk: Desk) -> None:
    desk.admission.set_wanting("a", [ONE, TWO])
    desk.settle()
    desk.fault("a")
    assert list(desk.admission.waiting_reasons()) == [ONE]
    desk.news()
    desk.admission.set_wanting("a", [TWO])
    assert desk.news() == [("a", m.SetPermits(ONE, 0, 2))]


def test_the_permits_of_a_reaped_worker_go_to_the_others(desk: Desk) -> None:
    desk.all_want("a", "b")
    desk.admission.worker_gone("a")
    assert desk.news() == [("b", m.SetPermits(ONE, 8, 2))]


# -- circuits --------------------------------------------------------------------------------------


def test_a_fault_closes_the_circuit_to_all_who_want_it(desk: Desk) -> None:
    desk.all_want("a", "b", "c")
    desk.fault("a")
    closed = m.SetCircuit(ONE, admitting=False)
    # Also to the one that met it: an earlier word to admit may be on its way there.
    assert sorted(desk.news(), key=lambda told: told[0]) == [(who, closed) for who in "abc"]
    assert desk.admission.waiting_reasons() == {ONE: of_fault(Outcome.SHED, "status 429")}
    desk.fault("b")
    assert desk.news() == []


def test_who_comes_while_it_is_closed_is_told_so(desk: Desk) -> None:
    desk.all_want("a")
    desk.fault("a")
    desk.admission.set_wanting("b", [ONE])
    assert ("b", m.SetCircuit(ONE, admitting=False)) in desk.news()


def test_one_worker_is_asked_to_try_and_only_once(desk: Desk) -> None:
    desk.all_want("a", "b")
    desk.fault("a")
    desk.news()
    assert desk.trial() is None
    desk.now += FIRST_WAIT_S
    assert desk.trial() in {"a", "b"}
    desk.now += 1_000
    assert desk.trial() is None


def test_nobody_is_asked_while_nobody_has_lines(desk: Desk) -> None:
    desk.all_want("a")
    desk.fault("a")
    desk.admission.set_wanting("a", [])
    desk.now += 1_000
    desk.news()
    assert desk.trial() is None


def test_an_answered_trial_admits_everywhere(desk: Desk) -> None:
    desk.all_want("a", "b")
    desk.fault("a")
    desk.now += FIRST_WAIT_S
    trier = desk.trial()
    assert trier is not None
    desk.admission.trial_over(trier, m.TrialOver(ONE, worked=True))
    admits = m.SetCircuit(ONE, admitting=True)
    assert sorted(desk.news(), key=lambda told: told[0]) == [("a", admits), ("b", admits)]
    assert desk.admission.waiting_reasons() == {}


def test_a_failed_trial_keeps_it_closed_for_longer(desk: Desk) -> None:
    desk.all_want("a")
    desk.fault("a")
    desk.now += FIRST_WAIT_S
    assert desk.trial() == "a"
    desk.fault("a", trial=True)
    desk.now += FIRST_WAIT_S - 0.001  # less than half of the doubled wait would be due
    assert desk.trial() is None
    desk.now += FIRST_WAIT_S + 0.001
    assert desk.trial() == "a"


def test_server_errors_of_trials_keep_it_closed_until_they_are_believed(desk: Desk) -> None:
    desk.all_want("a")
    desk.fault("a", outcome=Outcome.NOT_SENT)
    began = desk.now
    while desk.admission.waiting_reasons():
        while (trier := desk.trial()) is None:
            desk.now += 5.0
        desk.news()
        desk.fault(trier, trial=True, outcome=Outcome.BROKEN)
    assert ("a", m.SetCircuit(ONE, admitting=True)) in desk.news()
    assert TRIAL_PATIENCE_S < desk.now - began < 2 * TRIAL_PATIENCE_S


def test_the_trial_of_a_reaped_worker_goes_to_another(desk: Desk) -> None:
    desk.all_want("a")
    desk.fault("a")
    desk.now += FIRST_WAIT_S
    assert desk.trial() == "a"
    desk.all_want("b")
    desk.admission.worker_gone("a")
    desk.now += FIRST_WAIT_S
    assert desk.trial() == "b"


def test_a_trial_without_a_line_goes_round_again(desk: Desk) -> None:
    desk.all_want("a")
    desk.fault("a")
    desk.now += FIRST_WAIT_S
    assert desk.trial() == "a"
    desk.admission.trial_over("a", m.TrialOver(ONE, worked=False))
    assert desk.trial() is None
    desk.now += FIRST_WAIT_S
    assert desk.trial() == "a"
    assert ONE in desk.admission.waiting_reasons()


def test_the_fault_of_an_outdated_trial_is_not_the_present_ones(desk: Desk) -> None:
    desk.all_want("a")
    desk.fault("a")
    desk.now += FIRST_WAIT_S
    assert desk.trial() == "a"
    desk.fault("b", trial=True)
    desk.admission.trial_over("a", m.TrialOver(ONE, worked=False))
    desk.now += FIRST_WAIT_S
    assert desk.trial() == "a"  # the wait had not doubled


def test_what_a_backend_asks_for_is_believed_up_to_an_hour(desk: Desk) -> None:
    desk.all_want("a")
    desk.fault("a", retry_after_s=1e9)
    desk.now += 3_599.0
    assert desk.trial() is None
    desk.now += 1.0
    assert desk.trial() == "a"


# -- looks at the backend ----------------------------------------------------------------------


def test_a_backend_that_looks_find_away_gets_no_line(desk: Desk) -> None:
    desk.all_want("a", "b")
    desk.admission.note_down(ONE, "connection refused", silent=False)
    closed = m.SetCircuit(ONE, admitting=False)
    assert sorted(desk.news(), key=lambda told: told[0]) == [("a", closed), ("b", closed)]
    assert desk.admission.waiting_reasons() == {
        ONE: of_fault(Outcome.NOT_SENT, "connection refused")
    }


def test_a_backend_that_is_silent_is_not_tried_at_once(desk: Desk) -> None:
    """A line that tries it would be held until its time is up."""
    desk.all_want("a")
    desk.admission.note_down(ONE, "no answer", silent=True)
    desk.news()
    desk.now += SILENT_WAIT_S - 0.1
    assert desk.trial() is None
    desk.now += 0.1
    assert desk.trial() == "a"


def test_when_it_is_back_a_line_tries_it_at_once(desk: Desk) -> None:
    desk.all_want("a")
    desk.admission.note_down(ONE, "no answer", silent=True)
    desk.news()
    desk.admission.note_up(ONE)
    assert ONE in desk.admission.waiting_reasons()
    assert desk.trial() == "a"


def test_when_it_is_back_and_there_is_no_line_it_admits(desk: Desk) -> None:
    desk.admission.note_down(ONE, "connection refused", silent=False)
    desk.admission.note_up(ONE)
    assert desk.admission.waiting_reasons() == {}
    desk.all_want("a")
    assert desk.trial() is None


def test_a_backend_that_is_silent_is_left_alone_although_a_line_found_it_first(
    desk: Desk,
) -> None:
    desk.all_want("a")
    desk.fault("a", outcome=Outcome.NOT_SENT)
    desk.admission.note_down(ONE, "no answer", silent=True)
    desk.news()
    desk.now += SILENT_WAIT_S - 0.1
    assert desk.trial() is None


def test_a_backend_that_shed_is_not_tried_because_a_look_was_answered(desk: Desk) -> None:
    desk.all_want("a")
    desk.fault("a", retry_after_s=60)
    desk.admission.note_down(ONE, "no answer", silent=True)
    desk.admission.note_up(ONE)
    desk.news()
    assert desk.trial() is None
    shed = of_fault(Outcome.SHED, "status 429", next_try_s=60.0)
    assert desk.admission.waiting_reasons() == {ONE: shed}


def test_who_looks_at_backends_hears_of_one_that_cannot_be_reached(desk: Desk) -> None:
    desk.all_want("a")
    desk.fault("a")
    assert desk.unreachable == []
    desk.admission.trial_over("a", m.TrialOver(ONE, worked=True))
    desk.fault("a", outcome=Outcome.NOT_SENT)
    desk.fault("a", outcome=Outcome.NOT_SENT)
    assert desk.unreachable == [(ONE, "status 429")]


# -- drained ---------------------------------------------------------------------------------------


def test_a_drained_backend_takes_its_permits_back_and_is_quiet_when_it_has_them(
    desk: Desk,
) -> None:
    desk.all_want("a", "b")
    desk.admission.set_drained(ONE, drained=True)
    assert desk.news() == [("a", m.SetPermits(ONE, 0, 3)), ("b", m.SetPermits(ONE, 0, 2))]
    desk.admission.permits_held("a", m.PermitsHeld(ONE, 0, 3))
    one, other = desk.admission.standings({ONE: 5})
    assert (one.permits, one.in_flight, one.drained, one.quiet) == (4, 4, True, False)
    assert one.waits == of_drain(4, quiet=False)
    assert (other.drained, other.waits) == (False, None)
    desk.admission.permits_held("b", m.PermitsHeld(ONE, 0, 2))
    one, _ = desk.admission.standings({ONE: 5})
    assert (one.permits, one.in_flight, one.quiet) == (0, 0, True)


def test_nobody_gets_a_permit_of_a_drained_backend_nor_tries_it(desk: Desk) -> None:
    desk.all_want("a")
    desk.fault("a")
    desk.admission.set_drained(ONE, drained=True)
    desk.settle()
    desk.admission.set_wanting("b", [ONE])
    assert desk.news() == [("b", m.SetCircuit(ONE, admitting=False))]
    desk.now += 1_000
    assert desk.trial() is None
    desk.admission.worker_gone("a")
    assert desk.news() == []


def test_a_backend_that_is_taken_back_gives_permits_and_is_tried_where_it_was_closed(
    desk: Desk,
) -> None:
    desk.all_want("a")
    desk.fault("a")
    desk.admission.set_drained(ONE, drained=True)
    desk.settle()
    desk.admission.set_drained(ONE, drained=False)
    assert desk.news() == [("a", m.SetPermits(ONE, 8, 3))]
    desk.now += 1_000
    assert desk.trial() == "a"


# -- rate limits -----------------------------------------------------------------------------------


def asks(desk: Desk, worker: str, requests: int = 1, tokens: float = 0.0) -> None:
    desk.admission.rates_asked(worker, m.AskRates(ONE, Want(requests, tokens, tokens)))


def granted(desk: Desk) -> list[tuple[str, int]]:
    """Who was granted how many requests since the last look."""
    return [(who, told.requests) for who, told in desk.news() if isinstance(told, m.Grant)]


def test_a_worker_hears_what_is_counted_before_it_sends(desk: Desk) -> None:
    desk.limited(requests_per_minute=60, tokens_per_minute=9_000)
    desk.admission.set_wanting("a", [ONE])
    assert ("a", m.SetRates(ONE, requests=True, tokens=9_000)) in desk.news()


def test_who_asked_first_is_granted_first_and_nobody_twice(desk: Desk) -> None:
    desk.limited(requests_per_minute=60)
    desk.all_want("a", "b")
    asks(desk, "a")
    assert granted(desk) == []  # the account may have been used up by a server before us
    asks(desk, "b")
    desk.now += 1
    desk.admission.tick()
    assert granted(desk) == [("a", 1)]
    desk.admission.tick()
    assert granted(desk) == []
    desk.now += 1.1
    desk.admission.tick()
    assert granted(desk) == [("b", 1)]


def test_two_workers_together_get_no_more_than_one_would(desk: Desk) -> None:
    desk.limited(requests_per_minute=600)
    desk.all_want("a", "b")
    total = 0
    for _ in range(20 * 60):
        desk.now += 0.05
        asks(desk, "a", 64)
        asks(desk, "b", 64)
        desk.admission.tick()
        total += sum(requests for _, requests in granted(desk))
    assert 600 * 0.95 <= total <= 600


def test_the_ask_of_a_reaped_worker_is_dropped_and_its_grants_stay_spent(desk: Desk) -> None:
    desk.limited(requests_per_minute=60)
    desk.all_want("a", "b")
    asks(desk, "a")
    desk.now += 1
    desk.admission.tick()
    assert granted(desk) == [("a", 1)]
    asks(desk, "a")
    asks(desk, "b")
    desk.admission.worker_gone("a")
    desk.admission.tick()
    assert granted(desk) == []
    desk.now += 1.1
    desk.admission.tick()
    assert granted(desk) == [("b", 1)]


def test_a_limit_that_an_answer_tells_of_is_told_to_all(desk: Desk) -> None:
    desk.all_want("a", "b")
    told = Told(limit=60, remaining=59, reset_s=1.0)
    desk.admission.rates_heard(m.RatesHeard(ONE, requests_told=told, age_s=0.1))
    order = m.SetRates(ONE, requests=True, tokens=None)
    assert sorted(desk.news(), key=lambda news: news[0]) == [("a", order), ("b", order)]
    desk.admission.rates_heard(m.RatesHeard(ONE, requests_told=told, age_s=0.1))
    assert desk.news() == []


def test_a_refusal_voids_all_grants_and_closes_no_circuit(desk: Desk) -> None:
    desk.limited(requests_per_minute=600)
    desk.all_want("a", "b")
    desk.now += 60
    desk.admission.tick()
    desk.admission.rates_heard(m.RatesHeard(ONE, refused=True, retry_after_s=2.0))
    void = m.SetRates(ONE, requests=True, tokens=None)
    assert sorted(desk.news(), key=lambda news: news[0]) == [("a", void), ("b", void)]
    assert desk.admission.standings({})[0].gated is None
    asks(desk, "a")
    desk.now += 1.9
    desk.admission.tick()
    assert granted(desk) == []
    assert desk.admission.waiting_reasons() == {ONE: of_rate("", next_try_s=0.0)}
    desk.now += 0.3
    desk.admission.tick()
    assert granted(desk) == [("a", 1)]


def test_that_lines_wait_for_a_rate_is_told_and_gates_nothing(desk: Desk) -> None:
    desk.limited(requests_per_minute=60, tokens_per_minute=90_000)
    desk.all_want("a")
    assert desk.admission.waiting_reasons() == {}
    asks(desk, "a")
    reason = of_rate("60 requests a minute, 90,000 tokens a minute")
    assert desk.admission.waiting_reasons() == {ONE: reason}
    assert desk.admission.standings({})[0].gated is None
    desk.now += 2
    desk.admission.tick()
    assert desk.admission.waiting_reasons() == {}


def test_one_a_minute_is_one_request(desk: Desk) -> None:
    desk.limited(requests_per_minute=1)
    desk.all_want("a")
    asks(desk, "a")
    assert desk.admission.waiting_reasons() == {ONE: of_rate("1 request a minute")}


def test_a_refusal_is_believed_for_an_hour_at_most(desk: Desk) -> None:
    desk.limited(requests_per_minute=600)
    desk.all_want("a")
    desk.admission.rates_heard(m.RatesHeard(ONE, refused=True, retry_after_s=1e9))
    asks(desk, "a")
    desk.now += 3_599
    desk.admission.tick()
    assert granted(desk) == []
    assert desk.admission.waiting_reasons() == {ONE: of_rate("", next_try_s=1.0)}
    desk.now += 2
    desk.admission.tick()
    assert granted(desk) == [("a", 1)]


def test_a_heartbeat_tells_which_backends_answer_lines(desk: Desk) -> None:
    before = desk.now
    assert not desk.admission.has_answered_since(ONE, before)
    desk.now += 3
    desk.admission.note_answering([ONE])
    assert desk.admission.has_answered_since(ONE, before)
    assert not desk.admission.has_answered_since(ONE, desk.now + 0.1)
    assert not desk.admission.has_answered_since(TWO, before)


def test_where_nobody_said_how_many_it_is_as_many_as_the_engine_runs(desk: Desk) -> None:
    """And permits that are out come back first: the limit holds for what is under way too."""
    desk.all_want("a", "b")
    desk.admission.set_places(ONE, 3)
    (standing, *_) = desk.admission.standings({})
    assert (standing.max_in_flight, standing.permits) == (3, 8)  # nobody has given back yet
    desk.settle()
    (standing, *_) = desk.admission.standings({})
    assert (standing.max_in_flight, standing.permits) == (3, 3)
    desk.admission.set_places(ONE, 3)
    assert desk.news() == []
    desk.admission.set_places(ONE, None)
    desk.settle()
    (standing, *_) = desk.admission.standings({})
    assert (standing.max_in_flight, standing.permits) == (8, 8)
