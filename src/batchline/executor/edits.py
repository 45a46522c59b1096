"""What is added to the bodies of one backend's requests before they go out."""

from __future__ import annotations

from dataclasses import dataclass

from batchline.domain.errors import BlobUnreadable
from batchline.domain.splices import with_member
from batchline.executor.contract import BackendSettings
from batchline.executor.streamed import StreamedAnswer, Streaming, streamed, streaming_of

_PRIORITY = "priority"


@dataclass(frozen=True, slots=True)
class Edits:
    """`streaming` None: answers are asked for whole. `priority` None: the backend is told none."""

    streaming: Streaming | None
    priority: int | None

    def made(self, endpoint: str, body: bytes) -> tuple[bytes, StreamedAnswer | None] | None:
        """The body to send, and what takes its answer where that comes as a stream.

        A `priority` of the line's own is kept: the file is the caller's word, and what the server
        adds is only for lines that say nothing. None: it is not the body that was validated.
        """
        if self.priority is not None:
            try:
                body = with_member(body, _PRIORITY, self.priority) or body
            except BlobUnreadable:
                return None
        if self.streaming is None:
            return body, None
        return streamed(self.streaming, endpoint, body)


def edits_of(settings: BackendSettings) -> Edits | None:
    """None for a backend whose requests go out as they came in."""
    streaming = streaming_of(settings)
    if streaming is None and settings.priority is None:
        return None
    return Edits(streaming, settings.priority)
