"""`/v1/batches`: translate, call the service, translate back."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter, Request
from starlette.responses import Response

from batchline.api import wire
from batchline.api.request import answer, json_body, key_of, limit_of, project_of, text_of
from batchline.api.services import services
from batchline.service.batches import MAX_LIST

DEFAULT_LIST: Final = 20

router = APIRouter()


@router.post("/v1/batches", response_model=None)
async def create_batch(request: Request) -> Response:
    batch = await services(request).batches.create(
        project_of(request),
        await json_body(request),
        idempotency_header=request.headers.get("idempotency-key"),
    )
    return answer(wire.batch(batch))


@router.get("/v1/batches", response_model=None)
async def list_batches(request: Request) -> Response:
    page = await services(request).batches.list(
        project_of(request),
        after=text_of(request, "after"),
        limit=limit_of(request, default=DEFAULT_LIST, maximum=MAX_LIST),
    )
    return answer(wire.page(page, wire.batch))


@router.get("/v1/batches/{batch_id}", response_model=None)
async def get_batch(request: Request, batch_id: str) -> Response:
    return answer(wire.batch(await services(request).batches.get(project_of(request), batch_id)))


@router.post("/v1/batches/{batch_id}/cancel", response_model=None)
async def cancel_batch(request: Request, batch_id: str) -> Response:
    # The body is not looked at: SDKs send none, with or without a Content-Type.
    batch = await services(request).batches.cancel(
        project_of(request), batch_id, key_id=key_of(request)
    )
    return answer(wire.batch(batch))
