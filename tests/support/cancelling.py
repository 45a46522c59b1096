"""Cancels against backends that each have a way of their own to end requests."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import anyio
import openai

from batchline.executor.contract import CancelBy
from tests.support.inputs import MODEL

AT_ONCE: Final = 8  # requests in flight at each backend
RID_CALL: Final = {"path": "/abort_request", "id_field": "rid"}
NO_COUNTS: Final = dict.fromkeys(
    ("finished_late", "answered", "closed", "called", "calls_failed", "unanswered"), 0
)


def backend_table(
    base_url: str, way: CancelBy, *, name: str | None = None, **more: object
) -> dict[str, object]:
    """A `[[backend]]` that ends requests in that way; its name is the way's if nobody says more."""
    return {
        "name": name or way.value,
        "base_url": base_url,
        "max_in_flight": AT_ONCE,
        "models": [MODEL],
        "cancel": way.value,
        **({"abort_call": RID_CALL} if way is CancelBy.CALL else {}),
        **more,
    }


def receipt_of(client: openai.OpenAI, batch_id: str) -> dict[str, Any]:
    """The cancel receipt as its route gives it."""
    answer = client.get(f"/batches/{batch_id}/receipt", cast_to=object)
    assert isinstance(answer, dict)
    return answer


class DeafBackend:
    """Takes connections and never reads a byte of them."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._taken: list[socket.socket] = []
        self.base_url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"

    async def wait_for_connections(self, count: int, *, timeout_s: float = 10.0) -> None:
        with anyio.fail_after(timeout_s):
            while len(self._taken) < count:
                await anyio.wait_readable(self._listener)
                self._taken.append(self._listener.accept()[0])

    def close(self) -> None:
        for taken in self._taken:
            taken.close()


@contextmanager
def deaf_backend() -> Iterator[DeafBackend]:
    """One on a port of its own. The system reads a few kilobytes in its place."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listener.setblocking(False)
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        deaf = DeafBackend(listener)
        try:
            yield deaf
        finally:
            deaf.close()
