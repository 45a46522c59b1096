"""A whole answer, as the event stream that an inference server sends when it is asked for one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

Shape = dict[str, Any]
Cut = Callable[[str], list[str]]

DONE = "data: [DONE]\n\n"
# Members of a message that a piece of a stream has whole.
_AT_ONCE = ("role", "id", "type")


def in_words(text: str) -> list[str]:
    """A text in the pieces that a model's tokens might be."""
    return [text[at : at + 4] for at in range(0, len(text), 4)]


def event(data: object, *, name: str | None = None) -> str:
    """One event, its data spelled as JSON."""
    head = "" if name is None else f"event: {name}\n"
    return f"{head}data: {json.dumps(data, ensure_ascii=False)}\n\n"


def events_of(endpoint: str, body: Shape, *, cut: Cut = in_words) -> list[str]:
    """The events of a stream whose whole is `body`; `cut` says how texts come."""
    match endpoint:
        case "/v1/chat/completions":
            return [event(chunk) for chunk in _chunks(body, cut, chat=True)] + [DONE]
        case "/v1/completions":
            return [event(chunk) for chunk in _chunks(body, cut, chat=False)] + [DONE]
        case "/v1/responses":
            return [event(one, name=one["type"]) for one in _typed(body, cut)]
        case _:
            raise ValueError(f"{endpoint} is not streamed")


# -- chat and completions ----------------------------------------------------------------------


def _chunks(body: Shape, cut: Cut, *, chat: bool) -> Iterator[Shape]:
    top = {key: value for key, value in body.items() if key not in ("choices", "usage")}
    if top.get("object") == "chat.completion":
        top["object"] = "chat.completion.chunk"
    ways = [_pieces(choice, cut, chat=chat) for choice in body["choices"]]
    while ways:  # the choices come side by side
        for way in list(ways):
            piece = next(way, None)
            if piece is None:
                ways.remove(way)
            else:
                yield {**top, "choices": [piece]}
    if "usage" in body:
        yield {**top, "choices": [], "usage": body["usage"]}


def _pieces(choice: Shape, cut: Cut, *, chat: bool) -> Iterator[Shape]:
    index = choice["index"]
    deltas = _deltas(choice["message"], cut) if chat else _texts(choice["text"], cut)
    logprobs = _logprobs(choice.get("logprobs"))
    rest = {k: v for k, v in choice.items() if k not in ("index", "message", "text", "logprobs")}
    unfinished: Shape = {**rest, "finish_reason": None}
    for delta in deltas:
        more = {"logprobs": next(logprobs, None)} if "logprobs" in choice else {}
        yield {"index": index, **delta, **more, **unfinished}
    for left in logprobs:
        nothing: Shape = {"delta": {}} if chat else {"text": ""}
        yield {"index": index, **nothing, "logprobs": left, **unfinished}
    nothing = {"delta": {}} if chat else {"text": ""}
    more = {"logprobs": None} if "logprobs" in choice else {}
    yield {"index": index, **nothing, **more, **rest}


def _texts(text: str, cut: Cut) -> Iterator[Shape]:
    yield from ({"text": piece} for piece in cut(text))


def _deltas(message: Shape, cut: Cut) -> Iterator[Shape]:
    yield {"delta": {"role": message["role"], "content": None}}
    for key, value in message.items():
        if key != "role" and value is not None:
            yield from ({"delta": {key: piece}} for piece in _of_value(key, value, cut))


def _of_value(key: str, value: Any, cut: Cut) -> Iterator[Any]:
    if isinstance(value, str) and key not in _AT_ONCE:
        yield ""
        yield from cut(value)
    elif isinstance(value, dict):
        for inner, part in value.items():
            yield from ({inner: piece} for piece in _of_value(inner, part, cut))
    elif key == "tool_calls":
        for index, call in enumerate(value):
            yield [{"index": index}]
            for inner, part in call.items():
                for piece in _of_value(inner, part, cut):
                    yield [{"index": index, inner: piece}]
    else:
        yield value


def _logprobs(whole: Shape | None) -> Iterator[Shape | None]:
    """Array by array and item by item."""
    if whole is None:
        return
    yield {key: None if value is None else [] for key, value in whole.items()}
    for key, items in whole.items():
        yield from ({key: [item]} for item in items or ())


# -- responses ---------------------------------------------------------------------------------


def _typed(body: Shape, cut: Cut) -> Iterator[Shape]:
    begun = {**body, "status": "in_progress", "output": [], "usage": None}
    yield {"type": "response.created", "response": begun}
    for index, item in enumerate(body["output"]):
        at = {"output_index": index, "item_id": item.get("id")}
        yield {"type": "response.output_item.added", "item": {**item, "content": []}, **at}
        for place, part in enumerate(item.get("content", ())):
            for piece in cut(part["text"]):
                here = {**at, "content_index": place}
                yield {"type": "response.output_text.delta", "delta": piece, **here}
        yield {"type": "response.output_item.done", "item": item, **at}
    yield {"type": "response.completed", "response": body}
