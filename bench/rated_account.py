"""A hosted account in virtual time: what it lets through, what it sends back, what it tells."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Final

MINUTE_S: Final = 60.0


@dataclass(slots=True)
class Counted:
    """One allowance of `limit` a minute, as services enforce it.

    `window`: "bucket" holds a minute of it and is filled all the time; "minute" counts anew at each
    full minute; "rolling" looks back over the last one; "second" lets a sixtieth go in each second.
    """

    limit: float
    window: str = "bucket"
    level: float = field(init=False)
    at: float = 0.0
    spent: float = 0.0
    recent: deque[tuple[float, float]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.level = self._whole

    @property
    def _whole(self) -> float:
        return self.limit / 60 if self.window == "second" else self.limit

    def has(self, amount: float, now: float) -> bool:
        if self.window == "bucket":
            self.level = min(self.limit, self.level + (now - self.at) * self.limit / MINUTE_S)
        elif self.window == "rolling":
            while self.recent and self.recent[0][0] <= now - MINUTE_S:
                self.level += self.recent.popleft()[1]
        else:
            each_s = 1.0 if self.window == "second" else MINUTE_S
            if math.floor(now / each_s) > math.floor(self.at / each_s):
                self.level = self._whole
        self.at = now
        return self.level >= amount - 1e-9

    def take(self, amount: float, now: float) -> None:
        self.level = min(self._whole, self.level - amount)
        self.spent += amount
        if self.window == "rolling":
            self.recent.append((now, amount))

    def told(self, kind: str, now: float) -> dict[str, str]:
        """The headers of an answer to a request that came now."""
        self.has(0, now)
        if self.window == "bucket":
            reset_s = (self.limit - self.level) / self.limit * MINUTE_S
        else:
            reset_s = MINUTE_S - now % MINUTE_S
        return {
            f"x-ratelimit-limit-{kind}": f"{self.limit:.0f}",
            f"x-ratelimit-remaining-{kind}": f"{max(0, math.floor(self.level))}",
            f"x-ratelimit-reset-{kind}": _spelled(reset_s),
        }

    def retry_after_s(self, amount: float, now: float) -> float:
        """As the service says it in a 429: when so much would be there."""
        if self.window == "bucket":
            return max(0.0, (amount - self.level) / self.limit * MINUTE_S)
        return 1.0 if self.window == "second" else MINUTE_S - now % MINUTE_S


@dataclass(slots=True)
class Account:
    """Both allowances of an account; None: not counted. `tells`: its answers have the headers."""

    requests: Counted | None = None
    tokens: Counted | None = None
    tells: bool = True
    refused: int = 0
    let_through: int = 0

    def asks(self, tokens: float, now: float) -> tuple[bool, dict[str, str]]:
        """A request arrives; whether it is let through, and the headers of its answer."""
        wanted = [(one, n) for one, n in ((self.requests, 1.0), (self.tokens, tokens)) if one]
        lacking = [(one, n) for one, n in wanted if not one.has(n, now)]
        for one, amount in [] if lacking else wanted:
            one.take(amount, now)
        headers: dict[str, str] = {}
        if self.tells:
            for kind, counted in (("requests", self.requests), ("tokens", self.tokens)):
                headers |= counted.told(kind, now) if counted else {}
        if not lacking:
            self.let_through += 1
            return True, headers
        self.refused += 1
        wait_s = max(one.retry_after_s(n, now) for one, n in lacking)
        return False, headers | {"retry-after": f"{math.ceil(wait_s)}"}


def _spelled(seconds: float) -> str:
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    if seconds < MINUTE_S:
        return f"{seconds:.3f}s"
    return f"{seconds // MINUTE_S:.0f}m{seconds % MINUTE_S:.2f}s"
