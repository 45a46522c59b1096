"""How one backend stands with the dispatch, for people: readiness, `batchline backends`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One backend now.

    `permits` may be in use by workers, at most `max_in_flight`; `in_flight` were at their last
    heartbeats, never more than `permits`. `gated` is why its circuit is closed, None when it
    admits. `drained`: nothing goes there until somebody undoes it.
    """

    name: str
    weight: float
    max_in_flight: int
    permits: int
    in_flight: int
    gated: str | None
    drained: bool

    @property
    def quiet(self) -> bool:
        """Nothing of ours runs there or could: no worker holds a permit."""
        return self.permits == 0

    @property
    def waits(self) -> str | None:
        """Why lines wait for it, None when they go there."""
        if not self.drained:
            return self.gated
        if self.quiet:
            return "drained: nothing of ours runs there"
        return f"drained: {self.in_flight or 'some'} in flight run to their end"
