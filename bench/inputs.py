"""Input files of any number of lines, all of one length, written without holding them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from bench.fast_backend import MODEL

LINE_BYTES: Final = 600  # newline included
_LINES_AT_ONCE: Final = 10_000

_HEAD: Final = (
    '{"custom_id":"line-%010d","method":"POST","url":"/v1/chat/completions",'
    f'"body":{{"model":"{MODEL}","messages":[{{"role":"user","content":"'
)
_TAIL: Final = '"}],"max_tokens":16}}\n'
_WORDS: Final = "Some words of a prompt that no one is going to read. "


class _Line(msgspec.Struct):
    body: msgspec.Raw


def write_input(path: Path, lines: int) -> int:
    """Write a batch input of `lines` lines; its size in bytes."""
    room = LINE_BYTES - len(_HEAD % 0) - len(_TAIL)
    template = _HEAD + (_WORDS * (room // len(_WORDS) + 1))[:room] + _TAIL
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
