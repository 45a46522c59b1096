"""How often the server died over the validation of a batch: so that no file ends it for ever.

A file that kills the child that validates it is refused after a few children (`planning.py`). But
where a kernel or a supervisor ends the server together with its children, as memory limits of
containers do, nothing of that is remembered, and the next server would begin again. So what is
being validated is noted in a file beside the database, and taken out when it is over, however that
went; what is found there at a start was under way when a server died, or at the last start that it
did not come to be tried again.

Not synced: a note that is lost with the power costs one more try. Written in place, by one call
that a death of ours leaves done or undone: to put a new file in the place of the old one would be
to wait for the disk, as ext4 writes out what such a rename puts there, and the event loop with it.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from batchline.domain.ids import BatchId


class Tries:
    """Belongs to one event loop."""

    def __init__(self, note: Path | None) -> None:
        """`note` is the file; None: nothing is remembered."""
        self._note = note
        self._earlier: dict[str, int] = {}  # deaths of servers before this one
        self._running: dict[BatchId, int] = {}
        self._bytes = 0  # of the note as it is
        if note is not None:
            with suppress(OSError, ValueError):  # none yet, or not one of ours
                found = note.read_bytes()
                self._bytes = len(found)
                self._earlier = msgspec.json.decode(found, type=dict[str, int])

    def deaths(self, batch_id: BatchId) -> int:
        """How many servers in a row died while they validated the batch."""
        return self._earlier.get(batch_id, 0)

    @contextmanager
    def noted(self, batch_id: BatchId) -> Iterator[None]:
        """The block validates the batch: should the server die in it, that counts."""
        self._running[batch_id] = self.deaths(batch_id) + 1
        self._write()
        try:
            yield
        finally:
            self._running.pop(batch_id, None)
            self._write()

    def running(self) -> Collection[BatchId]:
        """The batches that are being validated now."""
        return self._running

    def over(self, batch_id: BatchId) -> None:
        """The validation has ended, however, and no server died over it."""
        if self._earlier.pop(batch_id, None) is not None:
            self._write()

    def _write(self) -> None:
        if self._note is None:
            return
        # Blanks in the place of what it no longer says.
        text = msgspec.json.encode({**self._earlier, **self._running}).ljust(self._bytes)
        # A full disk must not keep a batch from being validated.
        with suppress(OSError):
            fd = os.open(self._note, os.O_CREAT | os.O_WRONLY, 0o600)
            try:
                os.pwrite(fd, text, 0)
            finally:
                os.close(fd)
            self._bytes = len(text)
