"""Many cancels and one backend's log: whether anything of a batch was sent after its 200.

Each batch has prompts of its own numbers, so that the log says whose request came when.

The backend reads a request, on a busy machine, up to 80 ms after it came, and may then answer it
before it sees that it was aborted. So the kernel's stamp counts, which says when it came. Besides,
the backend is asked something after each 200: what it reads later than that was sent too late.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass
from http.client import HTTPConnection
from urllib.parse import urlsplit

import openai
from openai.types import Batch

from tests.support.conserved import Conserved, assert_conserved
from tests.support.inputs import make_lines
from tests.support.invariants import Cancelled, sent_after
from tests.support.scripted_backend import BackendLog, Event
from tests.support.server import content_of, wait_for


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelledBatch:
    """One batch of `lines` lines from `start`. Instants are `time.time()`: around the cancel, and
    when the backend had answered a question that was asked after it."""

    start: int
    lines: int
    asked_at: float
    told_at: float
    read_at: float
    ended: Batch
    output: bytes | None
    errors: bytes | None

    def check(self, log: BackendLog) -> Conserved:
        content = make_lines(self.lines, start=self.start)
        return assert_conserved(content, self.ended, self.output, self.errors, witness=log)

    def late(self, log: BackendLog) -> list[Event]:
        """The requests that were sent after the 200."""
        return sent_after(Cancelled(told_at=self.told_at, read_at=self.read_at), log)

    def told(self, log: BackendLog, late: Event) -> list[str]:
        """What became of a request at the backend, in seconds since the 200."""
        seen = [each for each in log.events if each.request == late.request]
        return [
            f"received {late.received_at - self.told_at:+.3f}",
            f"first byte {late.first_byte_at - self.told_at:+.3f}",
            *(f"{each.kind} {each.at - self.told_at:+.3f}" for each in seen),
            f"the question answered {self.read_at - self.told_at:+.3f}",
        ]


def cancel_and_wait(
    client: openai.OpenAI, backend_url: str, batch_id: str, *, start: int, lines: int
) -> CancelledBatch:
    """Cancel a batch of `lines` lines from `start` that has not ended, and wait for its end."""
    asked_at = time.time()
    assert client.batches.cancel(batch_id).status == "cancelling"
    told_at = time.time()
    _ask(backend_url)
    read_at = time.time()
    ended = wait_for(client, batch_id)
    return CancelledBatch(
        start=start,
        lines=lines,
        asked_at=asked_at,
        told_at=told_at,
        read_at=read_at,
        ended=ended,
        output=content_of(client, ended.output_file_id),
        errors=content_of(client, ended.error_file_id),
    )


def _ask(backend_url: str) -> None:
    """A round trip to the backend on a new connection.

    It accepts connections in order and then reads them in order (on another port it would not), so
    what was sent before this has been read when it returns.
    """
    address = urlsplit(backend_url)
    connection = HTTPConnection(address.hostname or "", address.port, timeout=10)
    connection.request("GET", "/v1/models")
    assert connection.getresponse().read()
    connection.close()


def logs_by_batch(log: BackendLog, *, lines: int, batches: int) -> list[BackendLog]:
    """The log of each of so many batches, of which number n has its lines from n * `lines` on."""
    events: dict[int, list[Event]] = defaultdict(list)
    for event in log.events:
        events[int(event.id.removeprefix("line-")) // lines].append(event)
    return [BackendLog(events.get(number, [])) for number in range(batches)]
