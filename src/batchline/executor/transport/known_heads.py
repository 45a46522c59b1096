"""Heads of answers that were read once: the same bytes again need no parser.

A server begins all its good answers alike, but for the length of the body and, once a second, the
date. llhttp calls us for every header of each; to find the bytes the same costs a fifth of that
(docs/decisions/0036-known-heads.md).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from batchline.executor.transport.contract import Answer

_LENGTH: Final = re.compile(rb"\r\ncontent-length: *([0-9]+)\r\n", re.IGNORECASE)
_NAME: Final = b"content-length"
_CODED: Final = (b"content-encoding", b"transfer-encoding")  # the body is not the bytes after it
_END: Final = b"\r\n\r\n"
_MOST_DIGITS: Final = 18
_MOST_HEADS: Final = 64  # with a date in them, a minute's
_LEARN_EVERY: Final = 16  # strange heads: one with a new id in each is learnt in vain, for 4 µs


class _Known(NamedTuple):
    """What follows the digits of the length up to the body, and what the parser made of it all."""

    rest: bytes
    status: int
    headers: Mapping[str, str]


class KnownHeads:
    """Of the answers of one backend. Bodies of more than `limit_bytes` are the parser's."""

    __slots__ = ("_digits_at", "_heads", "_limit_bytes", "_strange")

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._heads: dict[bytes, _Known] = {}  # by what comes before the digits of the length
        self._digits_at = 0  # in the head that was learnt last
        self._strange = 0

    def answer(self, data: bytes) -> Answer | None:
        """The answer that `data` is, if it is exactly one, whole, and its head is known.

        All of the head's bytes are those of one that the parser took, but for the digits of the
        length; the connection stays open after it.
        """
        begin = self._digits_at
        known = self._heads.get(data[:begin])
        if known is None:
            return None
        rest, status, headers = known
        end = data.find(b"\r", begin, begin + _MOST_DIGITS + 1)
        digits = data[begin:end]
        if end < 0 or not digits.isdigit() or not data.startswith(rest, end):
            return None
        body = data[end + len(rest) :]
        if len(body) != int(digits) or len(body) > self._limit_bytes:
            return None
        return Answer(status, headers, body)

    def note(self, data: bytes, answer: Answer) -> None:
        """The parser made `answer` of exactly `data`, and the connection stays open after it."""
        self._strange += 1
        if answer.status != 200 or self._strange % _LEARN_EVERY != 1:
            return
        head, _, body = data.partition(_END)
        head += _END
        lower = head.lower()
        if lower.count(_NAME) != 1 or any(name in lower for name in _CODED):
            return
        length = _LENGTH.search(head)
        if length is None or body != answer.body:
            return
        begin, end = length.span(1)
        if len(self._heads) >= _MOST_HEADS:
            self._heads.clear()
        self._heads[data[:begin]] = _Known(head[end:], answer.status, answer.headers)
        self._digits_at = begin
