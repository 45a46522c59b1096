"""What can be said about closing a connection."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """What was found out."""

    PROVEN = "proven"  # closing stops the generation
    REFUTED = "refuted"  # it goes on
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Closing:
    """The verdict on one way of asking, and what it rests on."""

    verdict: Verdict
    evidence: str


class Inconclusive(Exception):
    """Nothing can be concluded; the message says why."""
