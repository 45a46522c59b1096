"""What the `x-ratelimit-*` headers of an answer say of a backend's allowances."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from batchline.executor.rates import Kind, Told

_UNITS_S: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_PART: Final = re.compile(r"(\d{1,15}(?:\.\d+)?)(us|ms|s|m|h|d)")
_DURATION: Final = re.compile(rf"(?:{_PART.pattern})+")
_NUMBER: Final = re.compile(r"\d{1,15}(?:\.\d+)?")


def told_in(headers: Mapping[str, str]) -> dict[Kind, Told]:
    """What is told of each kind; what cannot be read is not told, and nothing raises."""
    return {kind: told for kind in Kind if (told := _told(headers, kind)) is not None}


def _told(headers: Mapping[str, str], kind: Kind) -> Told | None:
    remaining = _number(headers.get(f"x-ratelimit-remaining-{kind}"))
    if remaining is None:
        return None
    limit = _number(headers.get(f"x-ratelimit-limit-{kind}"))
    return Told(
        remaining=remaining,
        # Under a limit below one nothing could ever be sent.
        limit=limit if limit is not None and limit >= 1 else None,
        reset_s=duration_s(headers.get(f"x-ratelimit-reset-{kind}")),
    )


def duration_s(text: str | None) -> float | None:
    """Seconds of `1s`, `6m0s`, `17ms`, `2m59.56s` or plain `12.5`; None for anything else."""
    if text is None:
        return None
    text = text.strip()
    if _NUMBER.fullmatch(text):
        return float(text)
    if not _DURATION.fullmatch(text):
        return None
    return sum(float(number) * _UNITS_S[unit] for number, unit in _PART.findall(text))


def _number(text: str | None) -> float | None:
    if text is None or not _NUMBER.fullmatch(text.strip()):
        return None
    return float(text)
