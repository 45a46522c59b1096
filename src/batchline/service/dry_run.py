"""What would happen if a batch were created: the same checks, and nothing is written."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Final

from batchline.domain.ids import BATCH_PREFIX, BatchId, ProjectId
from batchline.service import idempotency
from batchline.service.batches import BatchSettings, parse_order
from batchline.service.bodies import object_of
from batchline.service.planning import Planner
from batchline.service.validation import ValidationResult

_NOBODY: Final = BatchId(f"{BATCH_PREFIX}{'0' * 32}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRun:
    """Validates files for batches that do not exist; one at a time, so that batches go first."""

    planner: Planner
    settings: BatchSettings = field(default_factory=BatchSettings)
    _turn: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))

    async def run(self, project_id: ProjectId, body: object) -> ValidationResult:
        """What validation says about a create with the decoded JSON `body`.

        Raises:
            InvalidRequest: the create itself would be refused.
            StorageFull: the disk is low.
        """
        order = parse_order(body, windows=self.settings.windows)
        idempotency.parse_key(object_of(body), None)  # of no use here, but the create would refuse
        async with self._turn:
            return await self.planner.check(
                project_id,
                order.input_file_id,
                order.endpoint.value,
                skipped_into=_NOBODY if order.skip_invalid else None,
            )
