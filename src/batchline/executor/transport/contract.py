"""One HTTP exchange with a backend: what may be asked of a transport, whichever it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Protocol

import msgspec

# Where answers tell of rate limits; each comes with `limit`, `remaining` or `reset`.
RATE_HEADERS: Final = tuple(
    f"x-ratelimit-{what}-{kind}"
    for kind in ("requests", "tokens")
    for what in ("remaining", "limit", "reset")
)


# A msgspec struct, not a dataclass: one is made for each line, at a fifth of the cost.
class Answer(msgspec.Struct, frozen=True, gc=False):
    """A complete HTTP answer. `headers` has lower-case names and only those that are of use:
    `retry-after`, `retry-after-ms`, `x-request-id`, `content-type`, and `RATE_HEADERS`."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Pieces(Protocol):
    """Takes the body of an answer while it arrives, for whoever would not wait for its end."""

    def begin(self, head: Answer) -> bool:
        """The head of the answer, without its body. False: the body is wanted whole after all."""

    def take(self, piece: bytes) -> None:
        """The next bytes of the body, in order and decoded; a piece is never empty.

        Bounding what is held of them is up to the taker: `max_answer_bytes` is not looked at.

        Raises:
            SentUnanswered: enough is known; the exchange ends so, and its connection is closed.
        """


class Transport(Protocol):
    """HTTP exchanges with one backend. Redirects are never followed; answers are whole.

    Cancelling the task that awaits `send` aborts the exchange: when the cancelled `send` has
    returned, the connection that carried it is closed (not merely asked to close once its buffer is
    empty), unless the answer was complete.
    """

    async def send(
        self,
        path: str,
        body: bytes,
        before_write: Callable[[], bool],
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        pieces: Pieces | None = None,
    ) -> Answer:
        """POST `body` as JSON to `base_url` + `path` (without `/v1`) and return the whole answer.

        `key` goes as the Idempotency-Key. It is one of our own ids: what is in it is not checked.
        `headers` win over it, as over configured ones.

        `before_write` is called once if a connection is had, in the same event-loop step in which
        the first byte of the request is handed to the socket; when it returns False nothing is
        written and the connection is kept for others. A transport that sends a request again (an
        idle connection that the server was closing) asks again, in the step of that first byte.

        With `pieces`, its `begin` hears of the answer's head (of no interim one). When it says
        True, every piece of the body goes to its `take` in the loop step in which it was read, and
        the answer that is returned after the last one has an empty body.

        Raises:
            NotAdmitted: `before_write` returned False.
            NotSent: no connection could be had (refused, DNS, TLS, connect timeout).
            SentUnanswered: bytes left, and no usable answer came: `reset`, `timeout`,
                `malformed`, or `too_large` (more than `max_answer_bytes`).
        """

    async def get_json(self, path: str, *, timeout_s: float) -> Answer:
        """GET `base_url` + `path`, for discovery; raises as `send` does."""

    async def close(self) -> None:
        """Close every connection."""
