"""Input files for batches: lines with markers that the scripted backend echoes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

from batchline.domain.model import Endpoint

MODEL: Final = "test-model"

# Letters of two, three and four bytes, a quote, a backslash, a line break and a null in a string.
AWKWARD: Final = 'é 漢 😀 " \\ \n \u0000 \u2028'


def line_id(number: int) -> str:
    """The custom_id and the marker of a line; numbers count from 0."""
    return f"line-{number:07d}"


def make_lines(
    count: int,
    *,
    endpoint: str = Endpoint.CHAT_COMPLETIONS,
    model: str = MODEL,
    start: int = 0,
    markers: Callable[[int], str] | None = None,
    awkward: bool = False,
    crlf: bool = False,
    blank_every: int = 0,
    final_newline: bool = True,
    bom: bool = False,
    padding: int = 0,
) -> bytes:
    """A JSONL input of `count` lines, numbered from `start`.

    `markers` gives more markers for a line's number, such as `[[delay=0.5]]`. `awkward` puts
    characters into prompts and custom_ids that have to survive byte for byte, `blank_every` a blank
    line after so many lines, `padding` that many bytes into each prompt.
    """
    newline = b"\r\n" if crlf else b"\n"
    made = []
    for number in range(start, start + count):
        text = f"[[id={line_id(number)}]]{markers(number) if markers else ''} " + "x" * padding
        custom_id = line_id(number)
        if awkward:
            text += AWKWARD
            custom_id += AWKWARD
        line = {
            "custom_id": custom_id,
            "method": "POST",
            "url": str(endpoint),
            "body": {"model": model, **_prompt(str(endpoint), text)},
        }
        # Every other awkward line goes out as \u escapes: both spellings are one text.
        escaped = not awkward or number % 2 == 0
        made.append(json.dumps(line, ensure_ascii=escaped).encode())
        if blank_every and (number - start + 1) % blank_every == 0:
            made.append(b"  ")
    body = newline.join(made) + (newline if final_newline else b"")
    return b"\xef\xbb\xbf" + body if bom else body


def _prompt(endpoint: str, text: str) -> dict[str, Any]:
    match endpoint:
        case Endpoint.CHAT_COMPLETIONS:
            return {"messages": [{"role": "user", "content": text}]}
        case (
            Endpoint.COMPLETIONS
            | Endpoint.IMAGES_GENERATIONS
            | Endpoint.IMAGES_EDITS
            | Endpoint.VIDEOS
        ):
            return {"prompt": text}
        case Endpoint.RERANK:
            return {"query": text, "documents": ["one", "two"]}
        case Endpoint.SCORE:
            return {"text_1": text, "text_2": ["one", "two"]}
        case _:
            return {"input": text}
