"""Bytes that are being received: they go, unless they were finished."""

from __future__ import annotations

from types import TracebackType
from typing import Self

import anyio

from batchline.store.blob_contract import BlobWriter


class Incoming:
    """What is written to `writer`. Used by one task, as `async with`."""

    def __init__(self, writer: BlobWriter) -> None:
        self._writer = writer

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.discard()

    async def discard(self) -> None:
        """Drop the bytes; does nothing after `finish` returned or a second time."""
        # Shielded: the bytes must go even when the task is ending because it was cancelled.
        with anyio.CancelScope(shield=True):
            await self._writer.discard()
