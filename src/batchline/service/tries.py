"""How often the server died over the validation of a batch: so that no file ends it for ever.

A file that kills the child that validates it is refused after a few children (`planning.py`). But
where a kernel or a supervisor ends the server together with its children, as memory limits of
containers do, nothing of that is remembered, and the next server would begin again. So what is
being validated is noted in a file beside the database, and taken out when it is over, however that
went; what is found there at a start was under way when a server died, or at the last start that it
did not come to be tried again.

Not synced: a note that is lost with the power costs one more try.
"""

from __future__ import annotations

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
        if note is not None:
            with suppress(OSError, ValueError):  # none yet, or not one of ours
                self._earlier = msgspec.json.decode(note.read_bytes(), type=dict[str, int])

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
        # A full disk must not keep a batch from being validated.
        with suppress(OSError):
            partial = self._note.with_name(f".{self._note.name}")
            partial.write_bytes(msgspec.json.encode({**self._earlier, **self._running}))
            partial.replace(self._note)
