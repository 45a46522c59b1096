"""Why lines do not go to a backend, in words that a person understands without our glossary."""

from __future__ import annotations

import pytest

from batchline.domain.attempts import Outcome
from batchline.domain.waiting import Reason, WaitCode, of_drain, of_fault, of_model, of_rate

# What we call it among ourselves, and what a sentence must not have twice.
JARGON = ("not_sent", "shed", "blocked", "broken", "gated", "circuit", "no connection")

SENTENCES = {
    of_fault(Outcome.NOT_SENT, "no connection: connection refused"): (
        "cannot be reached: connection refused"
    ),
    of_fault(Outcome.NOT_SENT, "a proxy answers 502 for it"): (
        "cannot be reached: a proxy answers 502 for it"
    ),
    of_fault(Outcome.SHED, "status 503"): "takes no more requests for now (status 503)",
    of_fault(Outcome.SHED, "status 429", next_try_s=59.7): (
        "takes no more requests for now (status 429); next try in 60 s"
    ),
    of_fault(Outcome.BLOCKED, "status 401"): "does not accept our API key (status 401)",
    of_fault(Outcome.BLOCKED, "status 403"): (
        "does not allow our requests, check what the key may use (status 403)"
    ),
    of_fault(Outcome.BLOCKED, "status 402"): (
        "says that our quota or credit is used up (status 402)"
    ),
    of_fault(Outcome.BROKEN, "status 500"): (
        "fails the requests that it is tried with (status 500)"
    ),
    of_model("m", Outcome.AWAY, "status 404"): ("does not have model m at the moment (status 404)"),
    of_model("m", Outcome.BROKEN, "status 500", next_try_s=8.0): (
        "has lost model m and fails the requests that it is tried with (status 500);"
        " next try in 8 s"
    ),
    of_rate("60 requests a minute"): "is at its rate limit (60 requests a minute)",
    of_rate("", next_try_s=12.0): "is at its rate limit; next try in 12 s",
    of_drain(0, quiet=True): "is drained: nothing is sent there until it is taken back",
    of_drain(4, quiet=False): "is being drained: 4 in flight run to their end",
    of_drain(0, quiet=False): "is being drained: some in flight run to their end",
}


@pytest.mark.parametrize(("reason", "text"), SENTENCES.items())
def test_a_reason_goes_on_from_the_backends_name(reason: Reason, text: str) -> None:
    assert reason.text == text
    assert not any(word in text for word in JARGON)


@pytest.mark.parametrize("outcome", Outcome)
def test_every_outcome_has_a_code_and_words_that_say_what_was_seen(outcome: Outcome) -> None:
    reason = of_fault(outcome, "status 418")
    assert reason.code in WaitCode
    assert "status 418" in reason.text
