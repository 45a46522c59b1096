"""Answers that are bytes of the blob store."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

import anyio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send


class Download(Response):
    """Stored bytes as they are read, with their length; no limit on how slowly they are taken.

    Reading stops when the client goes away. Starlette's StreamingResponse was not taken: it starts
    its answer before the first byte was read, so that a lost blob could no longer be a 500.
    """

    media_type = "application/octet-stream"

    def __init__(
        self,
        size: int,
        first: bytes,
        rest: AsyncGenerator[bytes, None],
        *,
        headers: Mapping[str, str],
        status: int = 200,
    ) -> None:
        super().__init__(status_code=status, headers={**headers, "content-length": str(size)})
        self._first = first
        self._rest = rest

    @classmethod
    async def open(
        cls,
        size: int,
        chunks: AsyncGenerator[bytes, None],
        *,
        headers: Mapping[str, str],
        status: int = 200,
    ) -> Download:
        """Read the first chunk. A `content-type` among `headers` replaces the usual one.

        Raises:
            BlobUnreadable: it could not be read.
        """
        return cls(size, await anext(chunks, b""), chunks, headers=headers, status=status)

    async def __call__(
        self,
        scope: Scope,  # noqa: ARG002  # ASGI's signature
        receive: Receive,
        send: Send,
    ) -> None:
        async with aclosing(self._rest):
            try:
                async with anyio.create_task_group() as watched:
                    watched.start_soon(_until_gone, receive, watched.cancel_scope)
                    await self._stream(send)
                    watched.cancel_scope.cancel()
            except ExceptionGroup as group:
                raise group.exceptions[0] from None  # one at most: the watcher raises none

    async def _stream(self, send: Send) -> None:
        await send(
            {
                "type": "http.response.start",
                "status": self.status_code,
                "headers": self.raw_headers,
            }
        )
        first, self._first = self._first, b""  # a slow reader need not cost one chunk more
        await send({"type": "http.response.body", "body": first, "more_body": True})
        del first
        async for chunk in self._rest:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _until_gone(receive: Receive, scope: anyio.CancelScope) -> None:
    """Cancel `scope` once the client has gone; a body that comes with a GET is passed over."""
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()
