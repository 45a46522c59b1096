"""What waits, by model and project, and what is known of the work for each model: values only."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from batchline.domain.fairness import FairQueue
from batchline.domain.ids import ProjectId
from batchline.domain.urgency import Danger, first_part


@dataclass(slots=True, eq=False)
class Member:
    """A batch that runs. `lines` are those without a result."""

    sequence: int
    project: ProjectId
    created_at: int
    expires_at: int
    lines: int
    models: set[str] = field(default_factory=set)  # it has been waiting for
    tokens: int = 0  # that its results told
    told: int = 0  # results with tokens


@dataclass(slots=True, eq=False)
class Wanting:
    """The batches of one project that want one model."""

    queue: FairQueue[int] = field(default_factory=FairQueue)
    members: dict[int, Member] = field(default_factory=dict)
    danger: Danger = field(default_factory=Danger)
    raised: float = 0.0  # the weight while in danger; 0: its own

    def part(self, sequence: int) -> float:
        """The weight of a batch among its siblings."""
        if sequence != self.danger.first:
            return 1.0
        return first_part(len(self.queue) - 1)


@dataclass(slots=True, eq=False)
class ModelWork:
    """What is known of the work for one model."""

    tokens: int = 0
    told: int = 0
    work: float = 0.0  # done since the last look
    rate: float | None = None  # of work, a second
    held: int = 0  # shards that run
    waiting: int = 0  # projects that have something to give out
    looked_at: float = -math.inf
    projects: dict[ProjectId, Wanting] = field(default_factory=dict)  # with a batch of it

    @property
    def each(self) -> float:
        """What a line of it takes, as far as is known."""
        return self.tokens / self.told if self.told else 1.0

    def each_of(self, member: Member) -> float:
        """The same of a line of `member`."""
        return member.tokens / member.told if member.told else self.each
