"""The same answers as event streams, for requests that ask for one."""

from __future__ import annotations

import json
from typing import Final

from tests.support import streams
from tests.support.scripted_backend import answers
from tests.support.scripted_backend.script import Answer, Fault

_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
END: Final = b"0\r\n\r\n"
# What a backend says that fails in the middle: vLLM's form.
_FAILURE: Final = streams.event({"error": {"message": "scripted", "type": "x", "code": 500}})

# Faults of a stream: it begins, and comes to half of its events at least.
ENDLESS: Final = frozenset({Fault.SILENT})  # nothing more, until the client leaves
CUT: Final = frozenset({Fault.CLOSE, Fault.TRUNCATED})  # the connection ends before the stream


def is_streamed(path: str, answer: Answer) -> bool:
    """Whether this backend streams here at all; a refusal is an ordinary answer."""
    of_text = path in ("/v1/chat/completions", "/v1/completions", "/v1/responses")
    return answer.streams and of_text and answer.status < 300 and answer.fault not in _UNSTREAMED


_UNSTREAMED: Final = frozenset({Fault.RESET, Fault.NOT_HTTP, Fault.NOT_JSON, Fault.INVALID_UTF8})


def streamed(path: str, marker: bytes, model: bytes, answer: Answer) -> bytes:
    """Head and events as they go over the wire, each event in a chunk of its own.

    With the end of the body unless the fault takes it away. `marker` and `model` as for
    `answers.response`.
    """
    body = json.loads(answers.good(path, marker, model, answer))
    events = streams.events_of(path, body)
    half = events[: len(events) // 2]
    match answer.fault:
        case Fault.STREAM_FAILS:
            events = [*half, _FAILURE]
        case Fault.STREAM_BREAKS:
            events = [*half, 'data: {"choices": [\n\n', *events[len(half) :]]
        case Fault.SILENT | Fault.CLOSE | Fault.TRUNCATED | Fault.STREAM_ENDS:
            events = half
        case _:
            pass
    chunks = [b"%x\r\n%b\r\n" % (len(raw), raw) for raw in (one.encode() for one in events)]
    end = b"" if answer.fault in ENDLESS | CUT else END
    return b"".join([_HEAD, *chunks, end])
