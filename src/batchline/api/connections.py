"""How long a connection waits for its client, and how many there may be: arithmetic, no socket.

A client that never ends its request, or never reads its answer, costs a descriptor and some memory
for as long as it likes, unless somebody counts. The protocol (`http_protocol.py`) tells what it
sees, and asks now and then what is overdue.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

KEEP_ALIVE_S: Final = 75.0  # longer than the SDKs keep idle connections, so they close first

_LOOKS_PER_TIMEOUT: Final = 4  # so that nothing is noticed more than a quarter too late
_RAREST_LOOK_S: Final = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionSettings:
    """What clients may take. `body_bytes_per_s` is the pace below which a body counts as standing
    still, over a whole `body_timeout_s`; `send_timeout_s` has no pace: a reader may be as slow as
    it likes, as long as it reads."""

    max_open: int = 4096
    head_timeout_s: float = 30.0
    body_timeout_s: float = 60.0
    body_bytes_per_s: int = 100
    send_timeout_s: float = 300.0


class Overdue(Enum):
    """What a client was waited for in vain."""

    REQUEST = "request"  # nothing of it has come
    HEAD = "head"
    BODY = "body"
    READING = "reading"  # the client does not take its answer


class _Due(Enum):
    REQUEST = auto()
    HEAD = auto()
    BODY = auto()
    NOTHING = auto()  # the next step is ours


class Patience:
    """What one connection waits for, and since when. Instants are the event loop's, in seconds."""

    __slots__ = ("_due", "_received", "_settings", "_since", "_timeout_s", "_unsent", "_unsent_at")

    def __init__(self, settings: ConnectionSettings, now: float) -> None:
        """A new connection: its first request is due at once, head and all."""
        self._settings = settings
        self._due = _Due.REQUEST
        self._since = now
        self._timeout_s = settings.head_timeout_s
        self._received = 0  # of the body, since `_since`
        self._unsent = 0  # of the answer, when last looked at
        self._unsent_at = now

    @property
    def look_s(self) -> float:
        """How often `overdue` is to be asked."""
        settings = self._settings
        shortest = min(settings.head_timeout_s, settings.body_timeout_s, settings.send_timeout_s)
        return min(shortest / _LOOKS_PER_TIMEOUT, _RAREST_LOOK_S)

    @property
    def is_midway(self) -> bool:
        """Whether a request has begun and is not whole."""
        return self._due in (_Due.HEAD, _Due.BODY)

    def head_began(self, now: float) -> None:
        """The first bytes of a request came."""
        self._wait(_Due.HEAD, now, self._settings.head_timeout_s)

    def head_ended(self, now: float) -> None:
        self._wait(_Due.BODY, now, self._settings.body_timeout_s)

    def body_came(self, size: int) -> None:
        self._received += size

    def request_ended(self, now: float) -> None:
        """The request is whole."""
        self._wait(_Due.NOTHING, now, 0.0)

    def answered(self, now: float) -> None:
        """The answer is written; it may have been given before the whole request was there."""
        if self._due is _Due.NOTHING:
            self._wait(_Due.REQUEST, now, KEEP_ALIVE_S)

    def taken(self, now: float) -> None:
        """The client took a good part of what there was to send."""
        self._unsent_at = now

    def overdue(self, now: float, *, reading: bool, unsent: int) -> Overdue | None:
        """What has taken too long, if anything.

        `reading` False: we do not take more at the moment, so the client is not to blame.
        `unsent` is how many bytes of the answer have not left yet.
        """
        if unsent == 0 or unsent < self._unsent:
            self._unsent_at = now
        self._unsent = unsent
        if now - self._unsent_at >= self._settings.send_timeout_s:
            return Overdue.READING
        if not reading:
            self._since, self._received = now, 0
        if self._due is _Due.NOTHING or now - self._since < self._timeout_s:
            return None
        if self._due is not _Due.BODY:
            return Overdue.HEAD if self._due is _Due.HEAD else Overdue.REQUEST
        if self._received >= max(1.0, self._settings.body_bytes_per_s * (now - self._since)):
            self._since, self._received = now, 0  # the next stretch
            return None
        return Overdue.BODY

    def _wait(self, due: _Due, now: float, timeout_s: float) -> None:
        self._due, self._since, self._timeout_s = due, now, timeout_s
        self._received = 0
