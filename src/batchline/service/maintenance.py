"""What has to happen by itself: what expired goes, unreferenced bytes go, orphans at start."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from batchline import telemetry
from batchline.domain.errors import StoreError
from batchline.domain.ids import FileId
from batchline.domain.model import DAY_S
from batchline.service.downloads import LONGEST_S, Downloads
from batchline.store.blob_contract import BlobStore
from batchline.store.contract import Store

SWEEP_S: Final = 20.0  # what expired is gone from disk within a minute
_AT_ONCE: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionSettings:
    """How long things are kept, and how often is looked for what is past its time.

    `batch_file_s` and `output_s` are for files whose creators said nothing; 30 days, and the hour
    of an upload in parts, are the service's. `download_s` is for how long at most a file that is
    deleted or expires stays there for downloads that run.
    """

    batch_file_s: int = 30 * DAY_S
    output_s: int = 30 * DAY_S
    upload_s: int = 3_600
    download_s: int = LONGEST_S
    sweep_s: float = SWEEP_S


class Deletion:
    """Whether bytes that nothing references any more may go: not while somebody copies them."""

    def __init__(self) -> None:
        self._holds = 0

    @property
    def is_held(self) -> bool:
        return self._holds > 0

    @contextmanager
    def held(self) -> Iterator[None]:
        """What is referenced at the beginning of the block, or later, is there until its end."""
        self._holds += 1
        telemetry.event("deletion_held", holds=self._holds)
        try:
            yield
        finally:
            self._holds -= 1
            telemetry.event("deletion_resumed", holds=self._holds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Maintenance:
    """Sweeps; each pass is idempotent, and a crash between its steps leaves work for the next."""

    store: Store
    blobs: BlobStore
    clock: Callable[[], float] = time.time
    sweep_s: float = SWEEP_S
    deletion: Deletion = field(default_factory=Deletion)
    downloads: Downloads = field(default_factory=Downloads)

    async def recover(self) -> int:
        """Clean up behind an earlier server: before anyone uploads or dispatches.

        Unfinished uploads, scratch files, bytes without a row (a crash came between the two) and
        the references of workers that no longer exist. Returns how many orphans were removed.
        """
        telemetry.probe("start.sweeping")
        await self.blobs.sweep_scratch()
        await self.store.release_worker_references(None)
        orphans = 0
        async for names in self.blobs.stored():
            known = await self.store.known_blobs(names)
            unknown = [name for name in names if name not in known]
            telemetry.probe("orphans.deleting")
            await self.blobs.delete(unknown)
            telemetry.probe("orphans.deleted")
            orphans += len(unknown)
        if orphans:
            telemetry.event("orphans_removed", blobs=orphans)
        return orphans

    async def run(self) -> None:
        """Sweep for ever."""
        while True:
            try:
                await self.sweep()
            except StoreError as exc:
                telemetry.trouble("sweep_failed", code=exc.code)
            await asyncio.sleep(self.sweep_s)

    async def sweep(self) -> None:
        """One pass over expired files, uploads and keys, over what is hidden and over unreferenced
        blobs."""
        now = int(self.clock())
        for expire in (self.store.expire_files, self.store.expire_uploads):
            while await expire(now=now, limit=_AT_ONCE) == _AT_ONCE:
                pass
        await self.store.drop_idempotency_keys(now=now)
        await self._let_go_of_hidden()
        while blobs := await self.store.unreferenced_blobs(limit=_AT_ONCE):
            # Asked after the look and not before: what was let go of since somebody began to hold
            # is in the look, and a hold that comes later copies nothing of it.
            if self.deletion.is_held:
                break
            names = [blob.name for blob in blobs]
            # Bytes first: a row without bytes is found again by the next sweep, the reverse never.
            telemetry.probe("blobs.deleting")
            await self.blobs.delete(names)
            telemetry.probe("blobs.deleted")
            await self.store.forget_blobs(names)
            if len(blobs) < _AT_ONCE:
                break

    async def _let_go_of_hidden(self) -> None:
        """Let go of files that are deleted or expired, but for what is being downloaded."""
        last: FileId | None = None
        while hidden := await self.store.hidden_files(after=last, limit=_AT_ONCE):
            # Asked after the look and not before: whoever begins later finds the file hidden.
            kept = self.downloads.still_kept(hidden, await self._held())
            free = [one for one in hidden if one not in kept]
            if free:
                await self.store.let_go_files(free)
            if len(hidden) < _AT_ONCE:
                break
            last = hidden[-1]

    async def _held(self) -> Collection[FileId]:
        """The files that are being downloaded."""
        found = set(self.downloads.files)
        for batch_id in self.downloads.batches:
            output = (await self.store.load_batch(batch_id)).output_file_id
            if output is not None:
                found.add(output)
        return found
