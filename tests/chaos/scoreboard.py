"""What a campaign says in the end: a table for docs/benchmarks.md, or JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from math import ceil
from typing import Final

from tests.chaos.explain import Resent, Why

PHASES: Final = (
    *("starting", "uploading", "creating", "validating", "planning", "running", "committing"),
    *("cancelling", "expiring", "finalizing", "deleting"),
)


@dataclass(slots=True, kw_only=True)
class Scoreboard:
    """Sums over all rounds. Only `resent` and what is below it may be other than 0."""

    seed: str
    lost: int = 0
    duplicated: int = 0
    stuck: int = 0
    stepped_back: int = 0
    unexplained: int = 0
    other_breaches: int = 0
    resent: Counter[str] = field(default_factory=Counter)  # by Why
    most_resent: int = 0  # by one fault
    oldest_s: float = 0.0  # answered before a fault that lost it, and not while stopped
    kills: Counter[str] = field(default_factory=Counter)  # by victim
    phases: Counter[str] = field(default_factory=Counter)
    stops: int = 0
    outages: Counter[str] = field(default_factory=Counter)
    batches: Counter[str] = field(default_factory=Counter)  # by how they ended
    creates: Counter[str] = field(default_factory=Counter)  # by what was answered
    cancels: int = 0
    lines: int = 0
    requests: int = 0
    looks: int = 0
    went_on_s: list[float] = field(default_factory=list)
    too_slow: int = 0  # of these, for a machine that busy
    seconds: float = 0.0

    def count_resent(self, found: Sequence[Resent]) -> None:
        by_fault: Counter[int] = Counter(id(one.fault) for one in found if one.fault is not None)
        self.most_resent = max(self.most_resent, *by_fault.values(), 0)
        for one in found:
            self.resent[one.why.value] += 1
            self.unexplained += one.why is Why.NOTHING
            self.oldest_s = max(self.oldest_s, one.before_s)

    def json(self) -> dict[str, object]:
        """Everything, and the two numbers that are drawn from `went_on_s`."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {
            **{name: dict(v) if isinstance(v, Counter) else v for name, v in values.items()},
            "kills_a_minute": self.kills_a_minute,
            "went_on_p99_s": percentile(self.went_on_s, 99),
            "went_on_most_s": max(self.went_on_s, default=0.0),
        }

    @property
    def kills_a_minute(self) -> float:
        return 60 * self.kills.total() / self.seconds if self.seconds else 0.0

    def table(self) -> str:
        """Markdown."""
        rows = [
            ("Kills", f"{self.kills.total():,} ({_listed(self.kills)})"),
            ("Beside them", f"{self.stops} processes stopped, outages: {_listed(self.outages)}"),
            ("Batches", f"{self.batches.total():,} ({_listed(self.batches)})"),
            ("Lines, requests", f"{self.lines:,}, {self.requests:,}"),
            ("Creates, accepted cancels", f"{_listed(self.creates)}; {self.cancels:,}"),
            ("Lines lost", f"**{self.lost}**"),
            ("Lines twice in files", f"**{self.duplicated}**"),
            ("Batches stuck", f"**{self.stuck}**"),
            ("Status or counts gone back", f"**{self.stepped_back}** in {self.looks:,} looks"),
            ("Other invariants broken", f"**{self.other_breaches}**"),
            ("Requests sent again", f"{self.resent.total():,}, unexplained **{self.unexplained}**"),
            *((f"- {why}", f"{self.resent[why.value]:,}") for why in Why if why is not Why.NOTHING),
            ("- most by one fault", f"{self.most_resent}"),
            ("- answered before a fault, longest", f"{self.oldest_s:.2f} s"),
            ("Restart to first request", self._went_on()),
            *((f"Kills that met: {phase}", f"{self.phases[phase]}") for phase in PHASES),
            ("Time", f"{self.seconds:.0f} s, {self.kills_a_minute:.0f} kills a minute"),
        ]
        return "\n".join(
            [f"| Campaign, seed {self.seed} | |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows)]
        )

    def _went_on(self) -> str:
        took = self.went_on_s
        return (
            f"median {percentile(took, 50):.2f} s, p99 {percentile(took, 99):.2f} s, "
            f"most {max(took, default=0.0):.2f} s ({len(took)} restarts with work)"
        )


def percentile(values: Sequence[float], percent: int) -> float:
    """The smallest value that so many percent do not exceed; 0 of none."""
    ordered = sorted(values)
    return ordered[ceil(len(ordered) * percent / 100) - 1] if ordered else 0.0


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {number:,}" for name, number in sorted(counts.items())) or "none"
