"""The bytes of a file, read by its manifest a page at a time.

A slow backend's file has a range for every few lines, half a million of them for ten million lines:
no more than a page of them is in memory, and nothing before the first byte that is asked for is
looked at. While the reader takes its time, nothing is held but a page and a chunk.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Final

from batchline.domain.errors import BlobUnreadable, StoreUnavailable
from batchline.domain.model import BlobRange
from batchline.store.blob_contract import BlobStore

PAGE: Final = 256  # ranges; some 60 KB
RETRY_S: Final = 0.5
TRIES: Final = 20  # of a page that the store does not give, while the reader waits

Pages = Callable[[int], Awaitable[Sequence[BlobRange]]]


async def read(
    pages: Pages,
    blobs: BlobStore,
    *,
    start: int,
    stop: int,
    chunk_bytes: int,
    first: Sequence[BlobRange] = (),
) -> AsyncGenerator[bytes, None]:
    """Bytes `start` to `stop`. `pages(at)` gives some ranges from byte `at` on, cut there and at
    `stop`; `first` are those of `start`, where they are known already.

    Raises (while iterating):
        BlobUnreadable: the manifest or the bytes are not there (any more).
    """
    at, page = start, first
    while at < stop:
        if not page:
            page = await _given(pages, at)
        size = sum(part.stop - part.start for part in page)
        if not size:
            raise BlobUnreadable(f"the manifest ends at byte {at}, before {stop}")
        async with aclosing(blobs.read(page, chunk_bytes=chunk_bytes)) as chunks:
            async for chunk in chunks:
                yield chunk
        at, page = at + size, ()


async def _given(pages: Pages, at: int) -> Sequence[BlobRange]:
    """A page; the store may need some time: an answer that began can no longer be refused."""
    for _ in range(TRIES - 1):
        try:
            return await pages(at)
        except StoreUnavailable:
            await asyncio.sleep(RETRY_S)
    return await pages(at)
