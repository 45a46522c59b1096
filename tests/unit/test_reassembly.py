"""Streamed answers put together: the same body as without streaming, however it was cut."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchline.domain.event_stream import Event, EventStream
from batchline.domain.model import Endpoint
from batchline.domain.reassembly import NotAStream, Reassembler, reassembler_for
from batchline.domain.results import read_success, usable_body
from tests.support.streams import DONE, Cut, Shape, event, events_of

SPELLED = (r"\u00e9", "é", r"\\", r"\"", r"\/", r"\ud83d\ude00")
CHAT, COMPLETIONS, RESPONSES = (
    Endpoint.CHAT_COMPLETIONS,
    Endpoint.COMPLETIONS,
    Endpoint.RESPONSES,
)

texts = st.text(max_size=30)
labels = st.text(st.characters(codec="ascii", categories=["L"]), min_size=1, max_size=8)
# A piece that says the whole name so far once more is taken for a repetition, as servers send it:
# a name that begins with the same text twice, cut between the two, cannot be told from one.
function_names = labels.filter(lambda name: len(set(name)) == len(name))
usages = st.fixed_dictionaries({"prompt_tokens": st.integers(0, 9), "total_tokens": st.just(9)})
anything = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(labels, inner, max_size=3),
    max_leaves=6,
)
token_logprobs = st.fixed_dictionaries(
    {"token": texts, "logprob": st.just(-0.5), "bytes": st.none(), "top_logprobs": st.just([])}
)
tool_calls = st.lists(
    st.fixed_dictionaries(
        {
            "id": labels,
            "type": st.just("function"),
            "function": st.fixed_dictionaries({"name": function_names, "arguments": texts}),
        }
    ),
    min_size=1,
    max_size=3,
)
messages = st.fixed_dictionaries(
    {"role": st.just("assistant"), "content": st.none() | texts},
    optional={
        "refusal": texts,
        "tool_calls": tool_calls,
        "function_call": st.fixed_dictionaries({"name": function_names, "arguments": texts}),
        "reasoning_content": texts,
        "server_thoughts": texts,
        "annotations": st.lists(st.fixed_dictionaries({"type": labels, "url": texts}), max_size=2),
    },
)
chat_logprobs = st.none() | st.fixed_dictionaries(
    {"content": st.none() | st.lists(token_logprobs, max_size=3), "refusal": st.none()}
)
completion_logprobs = st.none() | st.fixed_dictionaries(
    {
        "tokens": st.lists(texts, max_size=3),
        "token_logprobs": st.lists(st.none() | st.just(-0.25), max_size=3),
        # A token may be called like the number of an item.
        "top_logprobs": st.lists(st.just({"index": -1.0}) | st.none(), max_size=3),
    }
)
reasons = st.sampled_from(["stop", "length", "tool_calls"])


@st.composite
def bodies(draw: st.DrawFn, endpoint: str) -> Shape:
    """A whole answer of chat or completions."""
    chat = endpoint == CHAT
    choices = []
    for index in range(draw(st.integers(1, 3))):
        said: Shape = {"message": draw(messages)} if chat else {"text": draw(texts)}
        if draw(st.booleans()):
            said["logprobs"] = draw(chat_logprobs if chat else completion_logprobs)
        choices.append({"index": index, **said, "finish_reason": draw(reasons)})
    more = draw(st.dictionaries(labels, anything, max_size=2))
    optional = {
        "system_fingerprint": st.none() | labels,
        "service_tier": labels,
        "usage": usages,
    }
    return {
        **more,
        "id": draw(labels),
        "object": "chat.completion" if chat else "text_completion",
        "created": 1_750_000_000,
        "model": draw(texts),
        "choices": choices,
        **draw(st.fixed_dictionaries({}, optional=optional)),
    }


@st.composite
def responses(draw: st.DrawFn) -> Shape:
    """A whole answer of the Responses API."""
    parts = st.fixed_dictionaries({"type": st.just("output_text"), "text": texts})
    items = st.fixed_dictionaries(
        {"type": st.just("message"), "id": labels, "content": st.lists(parts, max_size=2)}
    )
    return {
        "id": draw(labels),
        "object": "response",
        "status": draw(st.sampled_from(["completed", "incomplete"])),
        "output": draw(st.lists(items, max_size=3)),
        "usage": draw(st.none() | usages),
    }


def randomly(data: st.DataObject) -> Cut:
    """Cuts a text where Hypothesis says, also into nothing."""

    def cut(text: str) -> list[str]:
        places = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=3)))
        return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True) if a < b]

    return cut


def fed(stream: bytes, cuts: list[int]) -> list[Event]:
    """What comes of a stream that arrives in pieces which end at `cuts`."""
    parser = EventStream()
    places = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    found = [one for a, b in pairwise(places) for one in parser.feed(stream[a:b])]
    return [*found, *parser.end()]


def put_together(endpoint: str, events: list[Event]) -> Reassembler:
    whole = reassembler_for(endpoint)
    assert whole is not None
    for one in events:
        if not whole.has_end:
            whole.add(one.name, one.data)
    return whole


def read(whole: Reassembler) -> Any:
    body = whole.body()
    assert body is not None
    assert usable_body(body) == body
    return json.loads(body)


@pytest.mark.parametrize("endpoint", [CHAT, COMPLETIONS])
@settings(max_examples=60)
@given(data=st.data())
def test_a_stream_gives_the_body_that_it_was_cut_from(endpoint: str, data: st.DataObject) -> None:
    body = data.draw(bodies(endpoint))
    whole = put_together(
        endpoint,
        fed(
            "".join(events_of(endpoint, body, cut=randomly(data))).encode(),
            data.draw(st.lists(st.integers(0, 5_000), max_size=6)),
        ),
    )
    assert whole.has_end
    assert read(whole) == body


@settings(max_examples=40)
@given(body=responses(), data=st.data())
def test_a_response_is_the_one_that_its_last_event_has(body: Shape, data: st.DataObject) -> None:
    stream = "".join(events_of(RESPONSES, body, cut=randomly(data))).encode()
    whole = put_together(RESPONSES, fed(stream, data.draw(st.lists(st.integers(0, 5_000)))))
    assert whole.has_end
    assert read(whole) == body


@settings(max_examples=60)
@given(
    data=st.data(),
    endpoint=st.sampled_from([CHAT, COMPLETIONS, RESPONSES]),
)
def test_what_a_stream_gave_until_it_was_cut_off_is_the_beginning_of_the_body(
    data: st.DataObject, endpoint: str
) -> None:
    body = data.draw(responses() if endpoint == RESPONSES else bodies(endpoint))
    events = events_of(endpoint, body)
    kept = data.draw(st.integers(1, len(events) - 1))
    whole = put_together(endpoint, fed("".join(events[:kept]).encode(), []))
    assert not whole.has_end
    got = read(whole)
    if endpoint == RESPONSES:
        assert got["id"] == body["id"]
        for item, one in zip(got["output"], body["output"], strict=False):
            assert "".join(p["text"] for p in one["content"]).startswith(
                "".join(p["text"] for p in item["content"])
            )
        return
    for choice in got["choices"]:
        true = body["choices"][choice["index"]]
        if endpoint == COMPLETIONS:
            assert true["text"].startswith(choice["text"])
            continue
        said, all_said = choice["message"], true["message"]
        assert said["role"] == "assistant"
        for key in ("content", "refusal", "reasoning_content", "server_thoughts"):
            assert (all_said.get(key) or "").startswith(said.get(key) or "")


# -- what servers do differently ---------------------------------------------------------------


def chunk(**changes: object) -> Shape:
    return {"id": "c", "object": "chat.completion.chunk", "model": "m", "choices": [], **changes}


def chat_of(*deltas: Shape) -> Any:
    stream = "".join(event(chunk(choices=[{"index": 0, "delta": one}])) for one in deltas)
    return read(put_together(CHAT, fed((stream + DONE).encode(), [])))["choices"][0]["message"]


def test_a_role_an_id_and_a_name_that_are_repeated_are_not_joined() -> None:
    call = {"index": 0, "id": "call_1", "type": "function"}
    said = chat_of(
        {"role": "assistant", "tool_calls": [{**call, "function": {"name": "f"}}]},
        {"role": "assistant", "tool_calls": [{**call, "function": {"arguments": "{"}}]},
        {"role": "", "tool_calls": [{**call, "function": {"name": "f", "arguments": "}"}}]},
    )
    assert said == {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        ],
    }


def test_a_text_stays_spelled_as_it_was() -> None:
    pieces = [rf'{{"choices":[{{"index":0,"delta":{{"content":"{one}"}}}}]}}' for one in SPELLED]
    stream = "".join(f"data: {one}\n\n" for one in pieces) + DONE
    body = put_together(CHAT, fed(stream.encode(), [])).body()
    assert body is not None
    assert b'"content":"%b"' % "".join(SPELLED).encode() in body


def test_without_done_each_choice_has_to_have_its_reason() -> None:
    first = event(chunk(choices=[{"index": 0, "delta": {"content": "a"}, "finish_reason": None}]))
    last = event(chunk(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}]))
    assert not put_together(CHAT, fed(first.encode(), [])).may_end
    assert put_together(CHAT, fed((first + last).encode(), [])).may_end


def test_a_stream_without_a_chunk_is_none() -> None:
    with pytest.raises(NotAStream, match="without a chunk"):
        put_together(CHAT, fed(DONE.encode(), []))


@pytest.mark.parametrize(
    "data",
    [
        *("{", "[]", "hello", '{"a":1}', '{"choices":3}', '{"choices":[3]}'),
        *('{"choices":[{"index":"x"}]}', '{"choices":[{"delta":"x"}]}'),
    ],
)
def test_what_is_no_chunk_is_refused(data: str) -> None:
    with pytest.raises(NotAStream):
        put_together(CHAT, [Event(b"", data.encode())])


@pytest.mark.parametrize("data", ["{", "[]", "hello", '{"type":"response.completed"}'])
def test_what_is_no_event_of_a_response_is_refused(data: str) -> None:
    with pytest.raises(NotAStream):
        put_together(RESPONSES, [Event(b"", data.encode())])


@pytest.mark.parametrize(
    ("endpoint", "one"),
    [
        (CHAT, Event(b"", b'{"error":{"message":"full","code":503}}')),
        (CHAT, Event(b"error", b'{"message":"full"}')),
        (RESPONSES, Event(b"error", b'{"type":"error","message":"full"}')),
    ],
)
def test_a_failure_in_the_stream_is_told_apart(endpoint: str, one: Event) -> None:
    whole = put_together(endpoint, [one])
    assert whole.failure == one.data
    assert not whole.has_end


def test_what_is_held_is_counted() -> None:
    for endpoint, key in ((CHAT, "delta"), (COMPLETIONS, "text")):
        piece = {"content": "y" * 1000} if key == "delta" else "y" * 1000
        data = json.dumps(chunk(choices=[{"index": 0, key: piece}])).encode()
        whole = put_together(endpoint, [Event(b"", data)] * 50)
        assert 50_000 < whole.size < 60_000


def test_usage_is_told_as_without_streaming() -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    stream = event(chunk(choices=[{"index": 0, "delta": {"content": "a"}}], usage=None))
    stream += event(chunk(usage=usage)) + DONE
    body = put_together(CHAT, fed(stream.encode(), [])).body()
    assert body is not None
    read_back = read_success(body)
    assert read_back is not None
    assert (read_back[1].input_tokens, read_back[1].output_tokens) == (3, 4)


# -- the stream itself -------------------------------------------------------------------------

WILD = (
    b"\xef\xbb\xbf: keep-alive\r\n\r\nid: 7\r\ndata: a\r\ndata:b\r\n\r\n:\n\nevent: x\ndata: {}\n\n"
    b"retry: 5\n\nevent: lost\n\n\rdata: z\r\rdata\n\ndata: last"
)
WILD_EVENTS = [
    Event(b"", b"a\nb"),
    Event(b"x", b"{}"),
    Event(b"", b"z"),
    Event(b"", b""),
    Event(b"", b"last"),
]


@given(st.lists(st.integers(0, len(WILD))))
def test_comments_names_and_line_ends_of_any_kind_split_anywhere(cuts: list[int]) -> None:
    assert fed(WILD, cuts) == WILD_EVENTS
    assert fed(WILD, list(range(len(WILD)))) == WILD_EVENTS


def test_an_event_that_is_not_whole_is_counted() -> None:
    parser = EventStream()
    for _ in range(100):
        assert list(parser.feed(b"y" * 1000)) == []
    assert parser.held_bytes == 100_000
    assert list(parser.feed(b"\ndata: 1\n")) == []
    assert parser.held_bytes == 1
    assert list(parser.feed(b"\n")) == [Event(b"", b"1")]
    assert parser.held_bytes == 0
