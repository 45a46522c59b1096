"""What answers say of rate limits, in the words of several services."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchline.executor.rate_headers import duration_s, told_in
from batchline.executor.rates import Kind, Told

DAY_S = 86_400.0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1.0),
        ("6m0s", 360.0),
        ("17ms", 0.017),
        ("2m59.56s", 179.56),
        ("7.66s", 7.66),
        ("1h2m3s", 3723.0),
        ("1d", DAY_S),
        ("30", 30.0),
        (" 0.5 ", 0.5),
        ("", None),
        ("soon", None),
        ("-1s", None),
        ("9" * 400 + "s", None),
        ("1s later", None),
        ("2026-11-28T12:00:00Z", None),
    ],
)
def test_a_reset_is_a_duration_or_nothing(text: str, seconds: float | None) -> None:
    assert duration_s(text) == (None if seconds is None else pytest.approx(seconds))


def headers(kind: str, limit: str, remaining: str, reset: str) -> dict[str, str]:
    return {
        f"x-ratelimit-limit-{kind}": limit,
        f"x-ratelimit-remaining-{kind}": remaining,
        f"x-ratelimit-reset-{kind}": reset,
    }


def test_both_kinds_are_read() -> None:
    told = told_in(headers("requests", "60", "59", "1s") | headers("tokens", "150000", "0", "1m"))
    assert told == {
        Kind.REQUESTS: Told(limit=60, remaining=59, reset_s=1.0),
        Kind.TOKENS: Told(limit=150_000, remaining=0, reset_s=60.0),
    }


def test_what_remains_is_of_use_without_a_limit() -> None:
    assert told_in({"x-ratelimit-remaining-requests": "9"}) == {Kind.REQUESTS: Told(remaining=9)}


@pytest.mark.parametrize("remaining", ["", "many", "-1", "1e3", "nan"])
def test_what_cannot_be_read_is_not_told(remaining: str) -> None:
    assert told_in(headers("requests", "60", remaining, "1s")) == {}


@pytest.mark.parametrize("limit", ["0", f"0.{'0' * 323}5"])
def test_a_limit_of_nothing_is_no_limit(limit: str) -> None:
    assert told_in(headers("requests", limit, "0", "1s"))[Kind.REQUESTS].limit is None


@given(
    st.text(st.sampled_from("0123456789.dhmsu "), max_size=40),
    st.sampled_from(["9" * 15, "1", "60"]),
    st.sampled_from(["0", "59", "59.999999999999"]),
)
def test_whatever_is_told_is_of_some_period(reset: str, limit: str, remaining: str) -> None:
    for one in told_in(headers("tokens", limit, remaining, reset)).values():
        assert one.period_s in (60.0, 3_600.0, DAY_S)


@pytest.mark.parametrize(
    ("told", "period_s"),
    [
        # As services answer: a bucket of a minute, one that is half empty, one of a day.
        (Told(limit=60, remaining=59, reset_s=1.0), 60.0),
        (Told(limit=150_000, remaining=149_984, reset_s=0.006), 60.0),
        (Told(limit=6_000, remaining=0, reset_s=60.0), 60.0),
        (Told(limit=14_400, remaining=14_370, reset_s=179.56), DAY_S),
        (Told(limit=200, remaining=199, reset_s=432.0), DAY_S),
        (Told(limit=3_600, remaining=3_400, reset_s=200.0), 3_600.0),
        # A fixed window that has just begun: its reset says nothing of the rate.
        (Told(limit=100, remaining=99, reset_s=59.0), 60.0),
        (Told(limit=100, remaining=100, reset_s=0.0), 60.0),
        (Told(limit=100, remaining=40), 60.0),
    ],
)
def test_what_a_limit_is_for_follows_from_its_reset(told: Told, period_s: float) -> None:
    assert told.period_s == period_s


@given(st.dictionaries(st.sampled_from(sorted(headers("requests", "", "", ""))), st.text()))
def test_nothing_that_a_backend_says_raises(found: dict[str, str]) -> None:
    for told in told_in(found).values():
        assert told.period_s > 0
