"""What the service does not have: routes of our own beside its own (docs/compatibility.md, X)."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from batchline.api import wire
from batchline.api.request import answer, json_body, project_of
from batchline.api.services import services

router = APIRouter()


@router.get("/v1/batches/{batch_id}/receipt", response_model=None)
async def get_receipt(request: Request, batch_id: str) -> Response:
    batch = await services(request).batches.cancelled(project_of(request), batch_id)
    return answer(wire.receipt(batch))


@router.post("/v1/batches/validate", response_model=None)
async def validate_batch(request: Request) -> Response:
    body = await json_body(request)
    found = await services(request).dry_run.run(project_of(request), body)
    return answer(wire.validation(found))
