"""Input files of any number of lines, all of one length, written without holding them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from bench.fast_backend import MODEL

LINE_BYTES: Final = 600  # newline included
_LINES_AT_ONCE: Final = 10_000

CHAT: Final = "/v1/chat/completions"
EMBEDDINGS: Final = "/v1/embeddings"

_LINE: Final = '{"custom_id":"line-%010d","method":"POST","url":"ENDPOINT","body":{"model":"MODEL",'
# What stands before and after the words of a body, whose length makes all lines one length.
_BODIES: Final = {
    CHAT: ('"messages":[{"role":"user","content":"', '"}],"max_tokens":16}}\n'),
    EMBEDDINGS: ('"input":["The first text.","The second.","The third, and then: ","', '"]}}\n'),
}
EMBEDDING_INPUTS: Final = 4  # of a line
_WORDS: Final = "Some words of a prompt that no one is going to read. "


class _Line(msgspec.Struct):
    body: msgspec.Raw


def write_input(path: Path, lines: int, endpoint: str = CHAT, model: str = MODEL) -> int:
    """Write a batch input of `lines` lines; its size in bytes."""
    before, after = _BODIES[endpoint]
    head = _LINE.replace("ENDPOINT", endpoint).replace("MODEL", model) + before
    room = LINE_BYTES - len(head % 0) - len(after)
    template = head + (_WORDS * (room // len(_WORDS) + 1))[:room] + after
    with path.open("wb") as file:
        for start in range(0, lines, _LINES_AT_ONCE):
            stop = min(lines, start + _LINES_AT_ONCE)
            file.write("".join([template % number for number in range(start, stop)]).encode())
    return lines * LINE_BYTES


def bodies(path: Path) -> Iterator[bytes]:
    """The request bodies of an input file, as they stand in it."""
    decode = msgspec.json.Decoder(_Line).decode
    with path.open("rb") as file:
        for line in file:
            yield bytes(decode(line).body)
