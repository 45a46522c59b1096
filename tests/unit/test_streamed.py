"""One streamed answer: when it is one, when it is whole, and what it stands for when it is not."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

import pytest

from batchline.domain.errors import SentUnanswered
from batchline.domain.model import Endpoint
from batchline.executor.contract import BackendSettings
from batchline.executor.streamed import (
    StreamedAnswer,
    Streaming,
    exchange,
    streamed,
    streaming_of,
)
from batchline.executor.transport.contract import Answer, Pieces

CHAT = Endpoint.CHAT_COMPLETIONS
BODY = b'{"model":"m"}'
SSE = "text/event-stream"
ONE = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"hi"}}]}\n\n'
DONE = b"data: [DONE]\n\n"


def taker(*, limit_bytes: int = 10_000, keep_partial: bool = True) -> StreamedAnswer:
    _, pieces = streamed(Streaming(limit_bytes, keep_partial), CHAT, BODY)
    assert pieces is not None
    return pieces


def head(content_type: str = SSE, status: int = 200) -> Answer:
    return Answer(status=status, headers={"content-type": content_type}, body=b"")


def begun(pieces: StreamedAnswer, *wire: bytes) -> StreamedAnswer:
    assert pieces.begin(head())
    for piece in wire:
        pieces.take(piece)
    return pieces


def test_a_backend_streams_only_where_it_is_set() -> None:
    assert streaming_of(BackendSettings(name="b", base_url="u")) is None
    settings = BackendSettings(name="b", base_url="u", stream=True, max_answer_bytes=7)
    assert streaming_of(settings) == Streaming(7, False)


@pytest.mark.parametrize(
    ("endpoint", "spliced"),
    [
        (Endpoint.CHAT_COMPLETIONS, b'"stream":true,"stream_options":{"include_usage":true},'),
        (Endpoint.COMPLETIONS, b'"stream":true,"stream_options":{"include_usage":true},'),
        (Endpoint.RESPONSES, b'"stream":true,'),
        (Endpoint.EMBEDDINGS, None),
        (Endpoint.RERANK, None),
    ],
)
def test_what_is_streamed_is_asked_for_so(endpoint: Endpoint, spliced: bytes | None) -> None:
    body, pieces = streamed(Streaming(1, False), endpoint, b'{ "model" : "m" }')
    assert (pieces is None) == (spliced is None)
    assert body == (
        b'{ "model" : "m" }' if spliced is None else b"{" + spliced + b' "model" : "m" }'
    )


@pytest.mark.parametrize(
    ("content_type", "status", "is_streamed"),
    [
        ("text/event-stream", 200, True),
        ("Text/Event-Stream; charset=utf-8", 201, True),
        ("application/json", 200, False),
        ("", 200, False),
        ("text/event-stream", 400, False),
    ],
)
def test_an_answer_is_streamed_when_it_says_so(
    content_type: str, status: int, is_streamed: bool
) -> None:
    pieces = taker()
    assert pieces.begin(head(content_type, status)) == is_streamed == pieces.has_begun
    got = Answer(status=status, headers={}, body=b"{}")
    if not is_streamed:
        assert pieces.answer(got) is got
        assert pieces.partial() is None


def test_a_whole_stream_is_an_answer() -> None:
    answer = begun(taker(), ONE, DONE).answer(head())
    assert json.loads(answer.body)["choices"][0]["message"]["content"] == "hi"
    assert answer.status == 200


@pytest.mark.parametrize("wire", [[], [ONE], [b": keep-alive\n\n"], [ONE, b"data: [DO"]])
def test_a_stream_without_its_end_is_none(wire: list[bytes]) -> None:
    with pytest.raises(SentUnanswered) as caught:
        begun(taker(), *wire).answer(head())
    assert caught.value.reason in ("reset", "malformed")


def test_what_comes_after_the_end_is_not_looked_at() -> None:
    pieces = begun(taker(), ONE, DONE, b"data: garbage\n\n", ONE)
    assert json.loads(pieces.answer(head()).body)["choices"][0]["message"]["content"] == "hi"


@pytest.mark.parametrize(
    ("told", "status"),
    [
        ({"error": {"message": "m", "code": 400}}, 400),
        ({"error": {"message": "m", "code": "429", "status_code": 429}}, 429),
        ({"error": {"message": "m", "code": 200}}, 500),
        ({"error": {"message": "m", "code": None}}, 500),
        ({"error": "m"}, 500),
        ({"error": ["m"]}, 500),
    ],
)
def test_a_failure_in_the_stream_is_the_error_that_it_names(
    told: Mapping[str, object], status: int
) -> None:
    pieces = begun(taker(), ONE, b"data: %b\n\n" % json.dumps(told).encode(), DONE)
    answer = pieces.answer(head())
    assert (answer.status, json.loads(answer.body)) == (status, told)
    assert pieces.partial() is None


def test_a_bare_error_gets_the_envelope() -> None:
    pieces = begun(taker(), b'event: error\ndata: {"message":"m","code":503}\n\n')
    answer = pieces.answer(head())
    assert answer.status == 503
    assert json.loads(answer.body) == {"error": {"message": "m", "code": 503}}


def test_what_is_held_is_bounded_also_before_an_event_is_whole() -> None:
    for pieces, wire in (
        (taker(limit_bytes=100), [b"data: " + b"y" * 60, b"y" * 60]),
        (taker(limit_bytes=100), [ONE.replace(b"hi", b"y" * 40)] * 3),
    ):
        with pytest.raises(SentUnanswered) as caught:
            begun(pieces, *wire)
        assert caught.value.reason == "too_large"
    begun(taker(limit_bytes=200), *[b": keep-alive\n\n"] * 1000)


def test_a_partial_is_the_body_so_far_where_it_is_kept() -> None:
    assert taker().partial() is None
    assert begun(taker(), b": keep-alive\n\n").partial() is None
    assert begun(taker(keep_partial=False), ONE).partial() is None
    partial = begun(taker(), ONE).partial()
    assert partial is not None
    assert json.loads(partial)["choices"][0] == {
        "index": 0,
        "message": {"role": "assistant", "content": "hi"},
        "finish_reason": None,
    }


def test_a_partial_that_would_break_its_line_is_not_kept() -> None:
    assert begun(taker(), ONE.replace(b"hi", b"\xff")).partial() is None
    spread = b'data: {"id":"c",\ndata: "choices":[{"index":0,"delta":{"content":"hi"}}]}\n\n'
    partial = begun(taker(), spread).partial()
    assert partial is not None
    assert b"\n" not in partial


class _Broken:
    """A transport whose connection breaks when these pieces have come."""

    def __init__(self, *wire: bytes) -> None:
        self._wire = wire

    async def send(
        self,
        path: str,
        body: bytes,
        before_write: Callable[[], bool],
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        pieces: Pieces | None = None,
    ) -> Answer:
        del path, body, key, headers, before_write
        assert pieces is not None
        pieces.begin(head())
        for piece in self._wire:
            pieces.take(piece)
        raise SentUnanswered("broke", reason="reset")

    async def get_json(self, path: str, *, timeout_s: float) -> Answer:
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError


async def test_a_connection_that_breaks_behind_the_end_does_not_matter() -> None:
    answer = await exchange(
        _Broken(ONE, DONE), "/x", BODY, headers={}, before_write=lambda: True, pieces=taker()
    )
    assert json.loads(answer.body)["choices"][0]["message"]["content"] == "hi"
    with pytest.raises(SentUnanswered):
        await exchange(
            _Broken(ONE), "/x", BODY, headers={}, before_write=lambda: True, pieces=taker()
        )
