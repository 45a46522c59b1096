"""Which files are being downloaded: the bytes of one that is deleted meanwhile stay for a while.

As on POSIX, a download that began goes on to its end when its file is deleted or expires, and a new
one is answered 404. What it reads is held in the memory of this process alone, so a crash leaves no
hold behind: the first sweep after it lets go of everything that is hidden (`Maintenance`).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, aclosing, contextmanager
from typing import Final

from batchline import telemetry
from batchline.domain.ids import BatchId, FileId

LONGEST_S: Final = 3_600


class Downloads:
    """What running downloads hold.

    A client that reads a byte a minute must not keep disk space for ever: what is hidden is held
    for `longest_s` at most, and not at all while `has_room` is False, for the disk is low.
    """

    def __init__(
        self,
        *,
        longest_s: float = LONGEST_S,
        has_room: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` counts seconds from anywhere, and never jumps."""
        self._longest_s = longest_s
        self._has_room = has_room
        self._clock = clock
        self._files: Counter[FileId] = Counter()
        self._batches: Counter[BatchId] = Counter()
        self._hidden_at: dict[FileId, float] = {}  # of what is held: when a sweep first saw it so

    @contextmanager
    def of_file(self, file_id: FileId) -> Iterator[None]:
        """Hold a file that is seen to be visible in this block; one that was hidden before may go
        at any time."""
        self._files[file_id] += 1
        try:
            yield
        finally:
            self._files[file_id] -= 1
            if not self._files[file_id]:
                del self._files[file_id]

    @contextmanager
    def of_batch(self, batch_id: BatchId) -> Iterator[None]:
        """The same of the output of a batch that has no file yet: until the reader is at its end,
        the file may have come, and been deleted."""
        self._batches[batch_id] += 1
        try:
            yield
        finally:
            self._batches[batch_id] -= 1
            if not self._batches[batch_id]:
                del self._batches[batch_id]

    @property
    def files(self) -> Collection[FileId]:
        """The files that are held."""
        return self._files.keys()

    @property
    def batches(self) -> Sequence[BatchId]:
        """The batches whose output is held."""
        return list(self._batches)

    def still_kept(self, hidden: Iterable[FileId], held: Collection[FileId]) -> Collection[FileId]:
        """Of some that are hidden, those whose bytes stay for now; `held` are all that are held.

        Asked at every sweep: the time of a file runs from the first that finds it hidden.
        """
        now = self._clock()
        longest_s = self._longest_s if self._has_room() else 0.0
        self._hidden_at = {one: at for one, at in self._hidden_at.items() if one in held}
        kept = []
        for one in hidden:
            if one in held:
                if now - self._hidden_at.setdefault(one, now) < longest_s:
                    kept.append(one)
                else:
                    telemetry.event("download_hold_ended", file_id=one)
        return kept


async def holding(
    hold: AbstractContextManager[None], chunks: AsyncGenerator[bytes, None]
) -> AsyncGenerator[bytes, None]:
    """`chunks`, held by `hold` from now on until they end or are closed.

    It has begun when this returns: a generator that never began would not end its hold either.
    """
    held = _chunks(hold, chunks)
    await anext(held)
    return held


async def _chunks(
    hold: AbstractContextManager[None], chunks: AsyncGenerator[bytes, None]
) -> AsyncGenerator[bytes, None]:
    with hold:
        yield b""
        async with aclosing(chunks):
            async for chunk in chunks:
                yield chunk
