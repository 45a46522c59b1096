"""Which part of a file a request wants: RFC 9110, 14.2, for one range of bytes.

Several ranges, other units and what is malformed mean the whole, as the RFC allows: a client has to
look at the status anyway.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from batchline.api.errors import RangeNotSatisfiable

_ONE: Final = re.compile(r"[Bb][Yy][Tt][Ee][Ss]=[ \t]*([0-9]{0,18})-([0-9]{0,18})[ \t]*")


class Part(NamedTuple):
    """Bytes `start` to `stop` of a file."""

    start: int
    stop: int


def part_wanted(headers: Mapping[str, str], *, size: int, tag: str) -> Part | None:
    """The part that the request's headers ask for; None: the whole.

    `tag` is the file's entity tag: with an `If-Range` that has another one, the whole is wanted.

    Raises:
        RangeNotSatisfiable: the file has no byte of that part.
    """
    asked = _ONE.fullmatch(headers.get("range", ""))
    if asked is None or headers.get("if-range", tag) != tag:
        return None
    first, last = asked.groups()
    if not first:
        part = Part(max(0, size - int(last)), size) if last else None
    elif last and int(last) < int(first):
        part = None
    else:
        part = Part(int(first), min(size, int(last) + 1) if last else size)
    if part is not None and part.start >= part.stop:
        message = f"The file has {size} bytes, and none of them in that range."
        raise RangeNotSatisfiable(message, size=size)
    return part
