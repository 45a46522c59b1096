"""`/v1/files`: translate, call the service, translate back."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final
from urllib.parse import quote

import anyio
from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from batchline.api import wire
from batchline.api.file_form import receive_file
from batchline.api.request import answer, limit_of, project_of, text_of
from batchline.api.services import services
from batchline.domain.errors import InvalidRequest
from batchline.service.files import MAX_LIST

router = APIRouter()


@router.post("/v1/files", response_model=None)
async def create_file(request: Request) -> Response:
    files = services(request).files
    async with files.begin(project_of(request)) as incoming:
        file = await receive_file(request, incoming, max_bytes=files.limits.max_bytes)
    return answer(wire.file(file))


@router.get("/v1/files", response_model=None)
async def list_files(request: Request) -> Response:
    page = await services(request).files.list(
        project_of(request),
        purpose=text_of(request, "purpose"),
        after=text_of(request, "after"),
        limit=limit_of(request, default=MAX_LIST, maximum=MAX_LIST),
        ascending=_is_ascending(request),
    )
    return answer(wire.page(page, wire.file))


@router.get("/v1/files/{file_id}", response_model=None)
async def get_file(request: Request, file_id: str) -> Response:
    return answer(wire.file(await services(request).files.get(project_of(request), file_id)))


@router.get("/v1/files/{file_id}/content", response_model=None)
async def get_content(request: Request, file_id: str) -> Response:
    file, chunks = await services(request).files.content(project_of(request), file_id)
    return await Download.open(file.filename, file.bytes, chunks)


@router.delete("/v1/files/{file_id}", response_model=None)
async def delete_file(request: Request, file_id: str) -> Response:
    return answer(
        wire.file_deleted(await services(request).files.delete(project_of(request), file_id))
    )


def _is_ascending(request: Request) -> bool:
    order = text_of(request, "order") or "desc"
    if order not in ("asc", "desc"):
        raise InvalidRequest(
            f"Invalid value: '{order}'. Supported values are: 'asc' and 'desc'.",
            param="order",
            wire_code="invalid_value",
        )
    return order == "asc"


class Download(Response):
    """A file's bytes as they are read, with their length; no limit on how slowly they are taken.

    Reading stops when the client goes away. Starlette's StreamingResponse was not taken: it starts
    its answer before the first byte was read, so that a lost blob could no longer be a 500.
    """

    media_type = "application/octet-stream"

    def __init__(
        self, filename: str, size: int, first: bytes, rest: AsyncGenerator[bytes, None]
    ) -> None:
        super().__init__()
        self._first = first
        self._rest = rest
        self.headers["content-length"] = str(size)
        self.headers["content-disposition"] = disposition(filename)

    @classmethod
    async def open(cls, filename: str, size: int, chunks: AsyncGenerator[bytes, None]) -> Download:
        """Read the first chunk.

        Raises:
            BlobUnreadable: it could not be read.
        """
        return cls(filename, size, await anext(chunks, b""), chunks)

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
        await send({"type": "http.response.body", "body": self._first, "more_body": True})
        async for chunk in self._rest:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _until_gone(receive: Receive, scope: anyio.CancelScope) -> None:
    """Cancel `scope` once the client has gone; a body that comes with a GET is passed over."""
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


_PLAIN: Final = frozenset(map(chr, range(0x20, 0x7F)))


def disposition(filename: str) -> str:
    """RFC 6266: the name quoted, and once more in UTF-8 when it is not plain ASCII."""
    plain = "".join(char if char in _PLAIN else "_" for char in filename)
    quoted = plain.replace("\\", "\\\\").replace('"', '\\"')
    header = f'attachment; filename="{quoted}"'
    if plain != filename:
        header += f"; filename*=UTF-8''{quote(filename, safe='')}"
    return header
