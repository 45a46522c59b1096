"""The campaign's schedule repeats itself, and what it says about its logs is right."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice, pairwise

import pytest

from batchline.domain import bitmap
from tests.chaos import schedule
from tests.chaos.explain import (
    COMMIT_S,
    COMMITTING_S,
    GOES_ON_S,
    Why,
    failed_for_nothing,
    resent,
    sent_though_settled,
    went_on_after,
)
from tests.chaos.records import BadWeather, Fault, Life
from tests.chaos.schedule import AIMED, ENDS_SERVER, PHASE_OF
from tests.chaos.scoreboard import PHASES, Scoreboard, percentile
from tests.support.invariants import ShardRow
from tests.support.scripted_backend import BackendLog, Event, Kind

# -- the schedule ------------------------------------------------------------------------------


def test_a_seed_repeats_its_schedule_and_another_does_not() -> None:
    assert schedule.kills("7", 50) == schedule.kills("7", 50) != schedule.kills("8", 50)
    for drawn in (lambda seed: schedule.jobs(seed, 1), schedule.outages):
        assert list(islice(drawn("7"), 20)) == list(islice(drawn("7"), 20))
        assert list(islice(drawn("7"), 20)) != list(islice(drawn("8"), 20))


def test_probes_are_armed_at_starts_only_and_the_last_kill_ends_the_server() -> None:
    kills = [kill for number in range(20) for kill in schedule.kills(f"7/{number}", 100)]
    for before, kill in pairwise(kills):
        if kill.probe or kill.at_start or kill.refusal:
            assert before.victim in ENDS_SERVER
        assert not kill.probe or kill.victim in ENDS_SERVER  # also when it is not reached
    assert kills[-1].victim in ENDS_SERVER
    aimed = Counter(PHASE_OF[kill.probe] for kill in kills if kill.probe)
    assert set(aimed) == set(AIMED) <= set(PHASES)
    assert min(aimed.values()) >= 20
    assert sum(kill.at_start for kill in kills) >= 100


def test_jobs_are_of_every_kind() -> None:
    jobs = list(islice(schedule.jobs("7", 1), 300))
    assert any(job.is_wrong for job in jobs)
    assert any(job.window != "24h" for job in jobs)
    assert any(job.cancels > 1 and job.cancel_after_s is not None for job in jobs)
    assert any(job.deletes_input and job.deletes_files for job in jobs)
    assert {job.lines for job in jobs} >= {1, 300}
    large = [job.lines for job in islice(schedule.jobs("7", 0), 20) if job.window == "24h"]
    assert max(large) > 1_000


# -- why something was sent again --------------------------------------------------------------


def event(kind: Kind, at: float, request: int = 1, status: int = 0) -> Event:
    return Event(
        kind=kind,
        request=request,
        at=at,
        monotonic_ns=0,
        id="line",
        status=status,
        first_byte_at=at if kind is Kind.ARRIVED else 0.0,
    )


def why(end: Event | None, faults: list[Fault]) -> Why:
    events = [event(Kind.ARRIVED, 1.0), event(Kind.ARRIVED, 9.0, request=2)]
    (found,) = resent(BackendLog(events if end is None else [*events, end]), faults)
    return found.why


def killed(at: float, *, since: float | None = None) -> Fault:
    return Fault(what="all", since=at if since is None else since, at=at, until=at, busy=1.0)


def answered(at: float) -> Event:
    return event(Kind.ANSWERED, at, status=200)


@pytest.mark.parametrize(
    ("end", "fault", "expected"),
    [
        (None, killed(5), Why.IN_FLIGHT),
        (event(Kind.ABORTED, 5.001), killed(5), Why.IN_FLIGHT),
        (answered(5.01), killed(5), Why.IN_FLIGHT),
        (answered(5 - COMMIT_S + 0.01), killed(5), Why.INTERVAL),
        (answered(5 - COMMIT_S - 0.01), killed(5), Why.COMMITTING),
        (answered(4.5), killed(5, since=4), Why.STOPPED),
        (event(Kind.ANSWERED, 2, status=503), killed(5), Why.BACKEND),
        (event(Kind.DROPPED, 2), killed(5), Why.BACKEND),
        (answered(5 - COMMIT_S - COMMITTING_S - 0.01), killed(5), Why.NOTHING),
        (event(Kind.ABORTED, 2), killed(5), Why.NOTHING),
        (None, killed(9.5), Why.NOTHING),  # it had been sent again already
        (None, killed(0.5), Why.NOTHING),  # it had not been sent yet
    ],
)
def test_only_what_a_fault_put_at_risk_is_explained(
    end: Event | None, fault: Fault, expected: Why
) -> None:
    assert why(end, [fault]) is expected


def test_without_a_fault_nothing_is_explained() -> None:
    assert why(answered(2), []) is Why.NOTHING


def test_on_a_busy_machine_a_commit_may_take_longer() -> None:
    early = answered(5 - COMMIT_S - 2 * COMMITTING_S)
    fault = killed(5)
    assert why(early, [fault]) is Why.NOTHING
    fault.busy = 3.0
    assert why(early, [fault]) is Why.COMMITTING


def test_a_settled_line_that_is_sent_again_is_noticed() -> None:
    fault = killed(5)
    marks = bitmap.empty(100)
    bitmap.mark(marks, 7)
    row = ShardRow(epoch=1, settled=bytes(marks), completed=1, failed=0)
    fault.settled = {("b", 1): row}
    log = BackendLog([event(Kind.ARRIVED, 6.0)])
    (found,) = sent_though_settled(log, [fault], {"line": ("b", 1_007)})
    assert found == "line: sent though it was settled at 5.000"
    assert not list(sent_though_settled(log, [fault], {"line": ("b", 1_008)}))
    assert not list(sent_though_settled(log, [fault], {"line": ("b", 7)}))
    before = BackendLog([event(Kind.ARRIVED, 4.0)])
    assert not list(sent_though_settled(before, [fault], {"line": ("b", 1_007)}))


def test_a_batch_fails_of_as_many_deaths_as_its_validation_is_given() -> None:
    body = {"status": "failed", "created_at": 5, "failed_at": 9, "in_progress_at": None}
    body["errors"] = None
    deaths = [killed(at) for at in (4.9, 5.1, 6.0, 9.9, 10.1)]
    assert not list(failed_for_nothing(body, deaths))
    (found,) = failed_for_nothing(body, deaths[2:])
    assert "2 deaths" in found
    assert list(failed_for_nothing({**body, "in_progress_at": 6}, deaths))
    assert not list(failed_for_nothing({**body, "status": "completed"}, []))


# -- how long a restart took -------------------------------------------------------------------


def took(life: Life, *arrivals: float, bad: list[BadWeather] | None = None) -> list[float]:
    log = BackendLog([event(Kind.ARRIVED, at) for at in arrivals])
    found = went_on_after(log, [life], bad or [], now=100.0)
    assert all(one.allowed_s == GOES_ON_S for one in found)
    return [one.seconds for one in found]


def test_a_restart_lasts_until_the_first_request_of_the_new_server() -> None:
    life = Life(busy=1.0, started_at=10.0, had_work=True)
    assert took(life, 9.9, 10.1, 11.5, 11.6) == [1.5]  # 10.1 was a worker of the one before
    assert took(Life(busy=1.0, started_at=10.0, had_work=False), 11.5) == []
    assert took(life, 11.5, bad=[BadWeather(what="", since=11, until=12)]) == []
    assert took(life, 11.5, bad=[BadWeather(what="", since=12, until=13)]) == [1.5]


def test_a_server_that_does_not_go_on_in_its_time_counts_with_all_of_it() -> None:
    killed_early = Life(busy=1.0, started_at=10.0, had_work=True, ended_at=10.0 + GOES_ON_S - 1)
    assert took(killed_early) == []
    assert took(Life(busy=1.0, started_at=10.0, had_work=True, ended_at=17.0)) == [7.0]
    assert took(Life(busy=1.0, started_at=10.0, had_work=True)) == [90.0]


# -- the scoreboard ----------------------------------------------------------------------------


def test_the_scoreboard_counts_what_it_is_told() -> None:
    board = Scoreboard(seed="7")
    fault = killed(5)
    events = [event(Kind.ARRIVED, 1.0), event(Kind.ARRIVED, 9.0, request=2)]
    board.count_resent(list(resent(BackendLog(events), [fault])))
    board.count_resent(list(resent(BackendLog([*events, answered(2)]), [fault])))
    assert (board.resent.total(), board.unexplained, board.most_resent) == (2, 1, 1)
    board.kills["server"] += 3
    board.seconds = 2.0
    table = board.table()
    assert "| Kills | 3 (server 3) |" in table
    assert "unexplained **1**" in table
    written = json.loads(json.dumps(board.json()))
    assert (written["kills"], written["kills_a_minute"]) == ({"server": 3}, 90)


def test_a_percentile_is_one_of_the_values() -> None:
    assert percentile([3.0, 1.0, 2.0], 50) == 2.0
    assert percentile([3.0, 1.0, 2.0], 99) == 3.0
    assert percentile([], 99) == 0.0


def test_a_kill_says_what_it_met() -> None:
    fault = killed(5)
    fault.phases, fault.probe = frozenset({"running", "deleting"}), "commit.before=kill"
    said = fault.told(2.0).strip()
    assert said == "3.000 all at commit.before=kill, 0 in flight, met deleting, running"
