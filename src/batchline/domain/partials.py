"""What had been generated of a line when it was cut off: kept until its error line is written.

A record is one line of a segment: 8 hex of the line number, a space, and the body so far, which
comes from `results.usable_body` and so has no line break.
"""

from __future__ import annotations

from typing import Final

HEAD_BYTES: Final = 9


def record(line_number: int, body: bytes) -> bytes:
    """The record of one line, newline included."""
    return b"%08x %b\n" % (line_number, body)


def line_number_of(head: bytes) -> int:
    """The line number that the first `HEAD_BYTES` of a record name; ValueError when none."""
    if len(head) != HEAD_BYTES or head[-1:] != b" ":
        raise ValueError("this is no head of a record")
    return int(head[:-1], 16)


def with_partial(error_line: bytes, body: bytes) -> bytes:
    """A line of the error file with the body so far as one more member; newlines included."""
    return b'%b,"partial":%b}\n' % (error_line.removesuffix(b"}\n"), body)
