"""What the settings say that a project's work weighs, found by its name."""

from __future__ import annotations

from collections.abc import Mapping

from batchline.domain.ids import ProjectId
from batchline.store.contract import Store


class ProjectWeights:
    """Asks the store once for each project: it keeps its name for ever."""

    def __init__(self, store: Store, by_name: Mapping[str, float] | None = None) -> None:
        """`by_name`: the weight of a project that is not among them is 1."""
        self._store = store
        self._by_name = by_name or {}
        self._known: dict[ProjectId, float] = {}

    async def of(self, project_id: ProjectId) -> float:
        if not self._by_name:
            return 1.0
        if project_id not in self._known:
            name = await self._store.project_name(project_id)
            self._known[project_id] = self._by_name.get(name, 1.0)
        return self._known[project_id]


async def weight_of(weights: ProjectWeights | None, project_id: ProjectId) -> float:
    """The project's weight; without `weights` all are the same."""
    return 1.0 if weights is None else await weights.of(project_id)
