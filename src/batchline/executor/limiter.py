"""How many requests may be in flight at one backend: arithmetic only.

A fixed limit, as configured. The scheduler's side asks for `limit` and hands it out as permits
(`permits.py`); what happened to requests is reported here and changes nothing yet in this limiter.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedLimit:
    """`max_in_flight` for all workers together, whatever the backend answers."""

    max_in_flight: int

    def limit(self) -> int:
        return self.max_in_flight
