"""What is overdue, by a clock that the test moves."""

from __future__ import annotations

from batchline.api.connections import KEEP_ALIVE_S, ConnectionSettings, Overdue, Patience

SETTINGS = ConnectionSettings(
    head_timeout_s=10, body_timeout_s=20, body_bytes_per_s=100, send_timeout_s=40
)
STRETCH_BYTES = 20 * 100


def overdue(patience: Patience, at: float, *, reading: bool = True, unsent: int = 0) -> object:
    return patience.overdue(at, reading=reading, unsent=unsent)


def test_a_connection_without_a_request_and_a_head_without_an_end_have_the_same_time() -> None:
    patience = Patience(SETTINGS, 100.0)
    assert overdue(patience, 109.9) is None
    assert overdue(patience, 110.0) is Overdue.REQUEST
    patience.head_began(109.0)
    assert overdue(patience, 118.9) is None
    assert overdue(patience, 119.0) is Overdue.HEAD


def test_a_body_has_to_keep_its_pace_over_each_stretch() -> None:
    patience = Patience(SETTINGS, 0.0)
    patience.head_ended(0.0)
    for stretch in range(1, 4):
        patience.body_came(STRETCH_BYTES)
        assert overdue(patience, 20.0 * stretch) is None
    patience.body_came(STRETCH_BYTES - 1)
    assert overdue(patience, 79.9) is None
    assert overdue(patience, 80.0) is Overdue.BODY


def test_without_a_pace_one_byte_in_each_stretch_is_enough_and_none_is_not() -> None:
    patience = Patience(ConnectionSettings(body_timeout_s=20, body_bytes_per_s=0), 0.0)
    patience.head_ended(0.0)
    patience.body_came(1)
    assert overdue(patience, 20.0) is None
    assert overdue(patience, 40.0) is Overdue.BODY


def test_a_client_that_we_do_not_read_from_is_not_to_blame() -> None:
    patience = Patience(SETTINGS, 0.0)
    patience.head_ended(0.0)
    assert overdue(patience, 30.0, reading=False) is None
    assert overdue(patience, 49.9) is None
    assert overdue(patience, 50.0) is Overdue.BODY


def test_nothing_is_overdue_while_the_next_step_is_ours() -> None:
    patience = Patience(SETTINGS, 0.0)
    patience.head_ended(0.0)
    patience.request_ended(1.0)
    assert overdue(patience, 10_000.0) is None


def test_an_answered_connection_may_rest_for_the_time_of_keep_alive() -> None:
    patience = Patience(SETTINGS, 0.0)
    patience.request_ended(1.0)
    patience.answered(2.0)
    assert overdue(patience, 2.0 + KEEP_ALIVE_S - 0.1) is None
    assert overdue(patience, 2.0 + KEEP_ALIVE_S) is Overdue.REQUEST


def test_an_early_answer_does_not_end_the_wait_for_the_body() -> None:
    patience = Patience(SETTINGS, 0.0)
    patience.head_ended(0.0)
    patience.answered(1.0)
    assert overdue(patience, 20.0) is Overdue.BODY


def test_a_reader_may_be_slow_but_has_to_read() -> None:
    patience = Patience(SETTINGS, 0.0)
    patience.request_ended(0.0)
    for at in range(0, 400, 39):
        assert overdue(patience, float(at), unsent=1_000 - at) is None  # a byte now and then
    assert overdue(patience, 429.9, unsent=610) is None
    assert overdue(patience, 430.0, unsent=610) is Overdue.READING
    patience.taken(430.0)  # all of it, and as much was written again
    assert overdue(patience, 430.0, unsent=610) is None
    assert overdue(patience, 470.0, unsent=610) is Overdue.READING


def test_looks_are_frequent_enough_to_notice_in_time() -> None:
    assert Patience(SETTINGS, 0.0).look_s == 2.5
    assert Patience(ConnectionSettings(), 0.0).look_s == 7.5
    weeks = 1_000_000.0
    patient = ConnectionSettings(head_timeout_s=weeks, body_timeout_s=weeks, send_timeout_s=weeks)
    assert Patience(patient, 0.0).look_s == 15.0
