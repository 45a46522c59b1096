"""What the backend does with a request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Fault(StrEnum):
    """What is wrong with an answer. Unless it says otherwise its status is `Answer.status`."""

    NONE = "none"
    RESET = "reset"  # read the whole request, then reset the connection
    CLOSE = "close"  # the same with an orderly end
    TRUNCATED = "truncated"  # half of the promised length, then an orderly end
    NOT_HTTP = "not_http"  # a status line that is none
    NOT_JSON = "not_json"  # an HTML page
    INVALID_UTF8 = "invalid_utf8"  # JSON but for a byte inside a string
    PRETTY = "pretty"  # good, with line breaks between its tokens
    WRONG_USAGE = "wrong_usage"  # good, but the usage is a string
    HUGE = "huge"  # good, with a text of `Answer.text_bytes`
    SILENT = "silent"  # never answers; of a stream, only the first half
    STREAM_FAILS = "stream_fails"  # half of a stream, then an event that says so
    STREAM_BREAKS = "stream_breaks"  # half of a stream, then an event that is not JSON
    STREAM_ENDS = "stream_ends"  # half of a stream, then an orderly end


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """How one attempt is answered: after the latency, once it is no longer held.

    `latency_max_s` above `latency_s` draws evenly between the two. A `body` replaces the usual one;
    without it an error status gets the API's envelope with `code`. `streams`: a request that asks
    for a stream gets one.
    """

    status: int = 200
    fault: Fault = Fault.NONE
    latency_s: float = 0.0
    latency_max_s: float = 0.0
    hold: bool = False
    chunked: bool = False
    retry_after: str | None = None
    body: str | None = None
    content_type: str = "application/json"
    code: str | None = None
    text_bytes: int = 32
    streams: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """The backend's whole behaviour. A later marker in a body beats it: `[[delay=0.5]]` (seconds),
    `[[status=422]]`, `[[fault=reset]]`.

    `by_id` gives an id's attempts in order; the last one repeats. `failure` answers the first
    `fail_first` attempts of every other id, `answer` all else. Above `cap` requests in flight
    (0: no cap) `shed` answers. `models_answer` is what the catalogue gives instead of `models`.

    Above `knee` in flight (0: it has none) an answer takes as many times longer as there are more,
    counted when its request comes. `others`, where it is given: `GET /metrics` is a page like
    vLLM's, with so many running besides those that are in flight.

    `POST /abort_request {"rid": …}` ends the request whose body has that `rid`, or whose header
    `x-request-id` or `Idempotency-Key` it is: as engines do, by an answer of half a text and then
    `abort_answer`. A fault of that leaves the request as it is.
    """

    models: tuple[str, ...] = ("test-model",)
    models_answer: Answer | None = None
    abort_answer: Answer = Answer()
    check_model: bool = True
    answer: Answer = Answer()
    by_id: Mapping[str, tuple[Answer, ...]] = field(default_factory=dict)
    fail_first: int = 0
    failure: Answer = Answer(status=500)
    cap: int = 0
    knee: int = 0
    others: int | None = None
    shed: Answer = Answer(status=429, code="rate_limit_exceeded", retry_after="0")
    unread_resets: int = 0  # so many next requests are reset at their first bytes
    seed: int = 1

    def plan(self, identity: str, attempt: int) -> Answer:
        """What attempt `attempt` (from 1) of a request gets."""
        answers = self.by_id.get(identity)
        if answers:
            return answers[min(attempt, len(answers)) - 1]
        return self.failure if attempt <= self.fail_first else self.answer
