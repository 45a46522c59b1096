"""A limit per time that the backend enforces, as hosted services do: a bucket that is filled."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

from tests.support.scripted_backend.script import Answer, Rate

MINUTE_S = 60.0


@dataclass(slots=True)
class Limiter:
    """Lets through what there is. Tells it of a minute, whatever the bucket holds."""

    rate: Rate
    level: float
    at: float

    @classmethod
    def of(cls, rate: Rate) -> Limiter:
        return cls(rate, rate.at_start, time.monotonic())

    def answer(self, answer: Answer) -> Answer:
        """`answer`, or a 429 when the request that it is for is one too many."""
        now = time.monotonic()
        rate = self.rate
        self.level = min(rate.holds, self.level + (now - self.at) * rate.per_s)
        self.at = now
        lacking = rate.cost - self.level
        if lacking > 0:
            answer = Answer(
                status=429,
                code="rate_limit_exceeded",
                retry_after=f"{math.ceil(lacking / rate.per_s)}",
            )
        else:
            self.level -= rate.cost
        return replace(answer, headers=self._told()) if rate.tells else answer

    def _told(self) -> dict[str, str]:
        limit = self.rate.per_s * MINUTE_S
        reset_s = (limit - self.level) / self.rate.per_s
        return {
            f"x-ratelimit-limit-{self.rate.tells}": f"{limit:.0f}",
            f"x-ratelimit-remaining-{self.rate.tells}": f"{self.level:.0f}",
            f"x-ratelimit-reset-{self.rate.tells}": f"{reset_s:.3f}s",
        }
