"""Looks for batches in danger among all that wait, a few at a time. No clock and no I/O."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from operator import attrgetter
from typing import Final

from batchline.domain.ids import ProjectId
from batchline.domain.urgency import Demand, danger, raised_weight
from batchline.domain.wanting import ModelWork, Wanting

_REVIEW_S: Final = 1.0  # dangers are looked for this often,
_SLICE: Final = 200  # and not at all batches at once, which would hold up the control process:
_SLICE_S: Final = 0.1  # so many a tenth of a second, all of 10,000 in five
_RATE_S: Final = 30.0  # the rate of a model is that of about so long
_STALE_S: Final = 120.0  # a longer gap between looks says nothing of the rate


class Review:
    """Keeps `danger` and `raised` of each `Wanting`, and the rate of each model, up to date."""

    def __init__(
        self,
        models: Mapping[str, ModelWork],
        weights: Mapping[ProjectId, float],
        *,
        urgent_share: float,
    ) -> None:
        """`models` and `weights` are the book's own, and change."""
        self._models = models
        self._weights = weights
        self._urgent_share = urgent_share
        self._now = -math.inf
        self._review_at = -math.inf
        self._looks = self._look_at_all()

    def go_on(self, now: float) -> None:
        """Go on looking for batches in danger, if that is due."""
        if self._review_at - _STALE_S < now < self._review_at:
            return
        self._now = now
        self._review_at = now + _SLICE_S
        looked = 0
        for batches in self._looks:
            looked += batches
            if looked >= _SLICE:
                return
        self._looks = self._look_at_all()
        self._review_at = now + max(_REVIEW_S, looked * _SLICE_S / _SLICE)

    def _look_at_all(self) -> Iterator[int]:
        """One round; after each project how many batches it took."""
        for of_model in list(self._models.values()):
            self._measure(of_model, self._now)
            competing = {
                project: self._weights[project]
                for project, wanting in of_model.projects.items()
                if len(wanting.queue)
            }
            of_all = sum(competing.values())
            for project, wanting in list(of_model.projects.items()):
                self._look(of_model, wanting, self._weights[project] / (of_all or 1.0))
                yield 1 + len(wanting.members)
            self._raise(of_model, competing)

    def _measure(self, of_model: ModelWork, now: float) -> None:
        """The rate of the model, from what was done since the last look."""
        past_s = now - of_model.looked_at
        work, of_model.work, of_model.looked_at = of_model.work, 0.0, now
        if not 0 < past_s < _STALE_S or not (of_model.held or work):
            return
        rate = work / past_s
        if of_model.rate is None:
            of_model.rate = rate or None
        else:
            of_model.rate += (1 - math.exp(-past_s / _RATE_S)) * (rate - of_model.rate)

    def _look(self, of_model: ModelWork, wanting: Wanting, share: float) -> None:
        most = of_model.rate
        rate = None if most is None else most * min(1.0, share)
        wanting.danger = danger(
            self._demands(wanting, of_model), now=self._now, rate=rate, most=most
        )

    def _raise(self, of_model: ModelWork, competing: Mapping[ProjectId, float]) -> None:
        """Give more weight to the projects that need more than their shares."""
        urgent = {
            project: competing[project]
            for project, wanting in of_model.projects.items()
            if wanting.danger.beyond and project in competing
        }
        of_all, of_urgent = sum(competing.values()), sum(urgent.values())
        for project, wanting in of_model.projects.items():
            wanting.raised = 0.0
            if project in urgent:
                wanting.raised = raised_weight(
                    urgent[project],
                    of_all=of_all,
                    of_urgent=of_urgent,
                    urgent_share=self._urgent_share,
                )

    def _demands(self, wanting: Wanting, of_model: ModelWork) -> list[Demand]:
        each = of_model.each
        waiting = wanting.queue
        return [
            Demand(
                one.sequence,
                one.created_at,
                one.expires_at,
                one.lines * (one.tokens / one.told if one.told else each),
                one.sequence in waiting,
            )
            for one in sorted(wanting.members.values(), key=attrgetter("expires_at"))
        ]
