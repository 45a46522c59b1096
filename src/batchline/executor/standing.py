"""How one backend stands with the dispatch, for people: readiness, `batchline backends`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from batchline.domain.waiting import Reason, of_drain


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One backend now.

    `permits` may be in use by workers, at most `max_in_flight`; `in_flight` were at their last
    heartbeats, never more than `permits`. `gated` is why its circuit is closed, None when it
    admits. `drained`: nothing goes there until somebody undoes it. `paced` is the rate limit that
    lines wait for there, None when none does. `away` are models that it does not have now, by its
    names, with the reason: their lines wait, others go.
    """

    name: str
    weight: float
    max_in_flight: int
    permits: int
    in_flight: int
    gated: Reason | None
    drained: bool
    paced: Reason | None = None
    away: Mapping[str, Reason] = field(default_factory=dict)

    @property
    def quiet(self) -> bool:
        """Nothing of ours runs there or could: no worker holds a permit."""
        return self.permits == 0

    @property
    def waits(self) -> Reason | None:
        """Why lines wait for it, None when they go there at once."""
        if not self.drained:
            return self.gated or self.paced
        return of_drain(self.in_flight, quiet=self.quiet)

    @property
    def reason(self) -> Reason | None:
        """Why some lines wait for it, None when all go there at once."""
        if self.waits is not None or not self.away:
            return self.waits
        reasons = [reason for _, reason in sorted(self.away.items())]
        return Reason(reasons[0].code, ", and it ".join(reason.text for reason in reasons))
