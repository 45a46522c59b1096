"""`/v1/files`: translate, call the service, translate back."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

from fastapi import APIRouter, Request
from starlette.responses import Response

from batchline.api import wire
from batchline.api.byte_range import part_wanted
from batchline.api.download import Download
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
    files = services(request).files
    file = await files.downloadable(project_of(request), file_id)
    tag = f'"{file.id}"'  # a file never changes
    headers = {
        "content-disposition": disposition(file.filename),
        "accept-ranges": "bytes",
        "etag": tag,
    }
    part = part_wanted(request.headers, size=file.bytes, tag=tag)
    if part is None:
        return await Download.open(file.bytes, await files.content(file), headers=headers)
    headers["content-range"] = f"bytes {part.start}-{part.stop - 1}/{file.bytes}"
    chunks = await files.content(file, start=part.start, stop=part.stop)
    return await Download.open(part.stop - part.start, chunks, headers=headers, status=206)


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


_PLAIN: Final = frozenset(map(chr, range(0x20, 0x7F)))


def disposition(filename: str) -> str:
    """RFC 6266: the name quoted, and once more in UTF-8 when it is not plain ASCII."""
    plain = "".join(char if char in _PLAIN else "_" for char in filename)
    quoted = plain.replace("\\", "\\\\").replace('"', '\\"')
    header = f'attachment; filename="{quoted}"'
    if plain != filename:
        header += f"; filename*=UTF-8''{quote(filename, safe='')}"
    return header
