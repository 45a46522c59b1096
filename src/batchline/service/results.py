"""A batch's results while it runs: what is committed, in commit order, readable from any line on.

Places are byte offsets in the output file that the batch will have. It consists of the committed
ranges in their order, so a reader may start before the end of the batch and go on after it. When
damaged results were taken out, later ones moved up: places carry the number of such repairs, and
one from before a repair is refused rather than taken for another line.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Final

from batchline.domain.errors import InvalidRequest, NotFound
from batchline.domain.ids import ProjectId
from batchline.domain.lifecycle import BatchStatus
from batchline.domain.model import Batch, BlobRange
from batchline.service import manifest
from batchline.service.batches import Batches
from batchline.service.downloads import Downloads, holding
from batchline.store.blob_contract import BlobStore
from batchline.store.contract import Store

CHUNK_BYTES: Final = 256 * 1024
_REPAIR: Final = 2**48  # places of one file: 256 TiB of results; a few repairs stay below 2**53


@dataclass(frozen=True, slots=True, kw_only=True)
class CommittedResults:
    """Whole lines of the output, `size` bytes of them; the reader goes on at `next_after`.

    `status` is from before they were looked up: when it is terminal, what follows `next_after` is
    there already. Close `chunks` when the reader goes away.
    """

    status: BatchStatus
    size: int
    next_after: int
    chunks: AsyncGenerator[bytes, None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """Reads the committed output of batches."""

    store: Store
    blobs: BlobStore
    batches: Batches
    clock: Callable[[], float] = time.time
    downloads: Downloads = field(default_factory=Downloads)

    async def read(
        self, project_id: ProjectId, batch_id: str, *, after: int, limit: int
    ) -> CommittedResults:
        """What is committed from byte `after` on, as far as the commit that reaches `limit` bytes.

        Raises:
            InvalidRequest: no line begins at `after`; or as `Batches.get`.
            NotFound: the output file was deleted or has expired; or as `Batches.get`.
            BlobUnreadable: stored bytes are not there; also while iterating.
        """
        batch = await self.batches.get(project_id, batch_id)
        with self._hold(batch):
            return await self._read(batch, after=after, limit=limit)

    def _hold(self, batch: Batch) -> AbstractContextManager[None]:
        if batch.output_file_id is None:
            return self.downloads.of_batch(batch.id)
        return self.downloads.of_file(batch.output_file_id)

    async def _read(self, batch: Batch, *, after: int, limit: int) -> CommittedResults:
        repairs, offset = divmod(after, _REPAIR)
        if repairs != batch.repairs and after:
            raise _no_place(
                after,
                "Damaged results of the batch were taken out: begin again at 0."
                if repairs < batch.repairs
                else _EXPECTED,
            )
        end = await self.store.output_end(
            batch.id, after=offset, limit=limit, repairs=batch.repairs, now=self._now()
        )

        async def page(at: int, now: int | None = None) -> Sequence[BlobRange]:
            return await self.store.committed_output(
                batch.id,
                start=at,
                stop=end or 0,
                most=manifest.PAGE,
                repairs=batch.repairs,
                now=now,
            )

        first = await page(offset, now=self._now()) if end is not None and end > offset else ()
        if not first:
            await self._refuse_gone(await self.batches.get(batch.project_id, batch.id))
        # Something is there and was not given: damaged results were taken out beside us.
        lost = end is not None and end > offset and not first
        if end is None or lost or not await self._begins_a_line(first):
            raise _no_place(after, _EXPECTED)
        # Pages after the first are asked for whether or not the file is visible by then.
        chunks = manifest.read(
            page, self.blobs, start=offset, stop=end, chunk_bytes=CHUNK_BYTES, first=first
        )
        return CommittedResults(
            status=batch.status,
            size=end - offset,
            next_after=batch.repairs * _REPAIR + end,
            chunks=await holding(self._hold(batch), chunks),
        )

    async def _refuse_gone(self, batch: Batch) -> None:
        if batch.output_file_id is None:
            return
        found = await self.store.get_file(batch.project_id, batch.output_file_id, now=self._now())
        if found is None:
            raise NotFound(f"The results of batch '{batch.id}' were deleted or have expired.")

    async def _begins_a_line(self, ranges: Sequence[BlobRange]) -> bool:
        """Segments hold nothing but lines, so the byte before a line, if there is one, ends one."""
        if not ranges or ranges[0].start == 0:
            return True
        first = ranges[0]
        before = BlobRange(blob=first.blob, start=first.start - 1, stop=first.start)
        return [byte async for byte in self.blobs.read([before], chunk_bytes=1)] == [b"\n"]

    def _now(self) -> int:
        return int(self.clock())


_EXPECTED: Final = "Expected 0 or the value of an 'x-batchline-next-after' header."


def _no_place(after: int, hint: str) -> InvalidRequest:
    return InvalidRequest(
        f"Invalid 'after': no result begins at {after}. {hint}",
        param="after",
        wire_code="invalid_value",
    )
