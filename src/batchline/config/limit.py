"""How many requests may be in flight at a backend, from its table in the settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from batchline.domain.errors import ConfigError
from batchline.executor.contract import Concurrency

ADAPTIVE_CEILING: Final = 1024  # of who lets the limit be found, and does not say how high


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The four settings, with each other in order."""

    concurrency: Concurrency
    floor: int
    ceiling: int
    slowdown: float


def limits_of(table: Mapping[str, object], get: Callable[[str, Any], Any], place: str) -> Limits:
    """The limits of one backend; `get` reads one key of its `table`, as a type.

    Raises:
        ConfigError: a value is out of bounds, or means nothing beside the others.
    """
    name = get("concurrency", str)
    if name not in list(Concurrency):
        raise ConfigError(
            f"{place}: concurrency: expected one of {', '.join(Concurrency)}, got {name!r}"
        )
    concurrency = Concurrency(name)
    if concurrency is Concurrency.FIXED:
        for key in ("min_in_flight", "interactive_slowdown"):
            if key in table:
                raise ConfigError(f'{place}: {key}: means nothing without concurrency = "adaptive"')
    ceiling = get("max_in_flight", int)
    if concurrency is Concurrency.ADAPTIVE and "max_in_flight" not in table:
        ceiling = ADAPTIVE_CEILING
    floor = get("min_in_flight", int)
    if floor > ceiling:
        raise ConfigError(f"{place}: min_in_flight: above max_in_flight")
    slowdown = get("interactive_slowdown", float)
    if 0 < slowdown < 1:
        raise ConfigError(
            f"{place}: interactive_slowdown: expected 1 or more, or 0, got {slowdown:g}"
        )
    return Limits(concurrency=concurrency, floor=floor, ceiling=ceiling, slowdown=slowdown)
