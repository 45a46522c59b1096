"""`/v1/uploads`: translate, call the service, translate back."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from batchline.api import wire
from batchline.api.multipart import receive_form
from batchline.api.request import answer, json_body, project_of
from batchline.api.services import services
from batchline.service.uploads import MAX_PART_BYTES

router = APIRouter()


@router.post("/v1/uploads", response_model=None)
async def create_upload(request: Request) -> Response:
    body = await json_body(request)
    return answer(wire.upload(await services(request).uploads.create(project_of(request), body)))


@router.post("/v1/uploads/{upload_id}/parts", response_model=None)
async def add_part(request: Request, upload_id: str) -> Response:
    uploads = services(request).uploads
    async with await uploads.begin_part(project_of(request), upload_id) as part:
        await receive_form(request, part, binary="data", max_bytes=MAX_PART_BYTES, fields={})
        return answer(wire.upload_part(await part.finish()))


@router.post("/v1/uploads/{upload_id}/complete", response_model=None)
async def complete_upload(request: Request, upload_id: str) -> Response:
    body = await json_body(request)
    upload, file = await services(request).uploads.complete(project_of(request), upload_id, body)
    return answer(wire.upload(upload, file))


@router.post("/v1/uploads/{upload_id}/cancel", response_model=None)
async def cancel_upload(request: Request, upload_id: str) -> Response:
    # The body is not looked at: SDKs send none, with or without a Content-Type.
    return answer(
        wire.upload(await services(request).uploads.cancel(project_of(request), upload_id))
    )
