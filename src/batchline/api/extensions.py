"""What the service does not have: routes of our own beside its own (docs/compatibility.md, X)."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter, Request
from starlette.responses import Response

from batchline.api import wire
from batchline.api.download import Download
from batchline.api.request import answer, integer_of, json_body, limit_of, project_of
from batchline.api.services import services

MAX_OFFSET: Final = 10**18 - 1  # more than any file has, and twice as much still fits 64 bits

router = APIRouter()


@router.get("/v1/batches/{batch_id}/receipt", response_model=None)
async def get_receipt(request: Request, batch_id: str) -> Response:
    batch = await services(request).batches.with_receipt(project_of(request), batch_id)
    return answer(wire.receipt(batch))


@router.get("/v1/batches/{batch_id}/progress", response_model=None)
async def get_progress(request: Request, batch_id: str) -> Response:
    found = await services(request).progress.read(project_of(request), batch_id)
    return answer(wire.progress(found))


@router.get("/v1/batches/{batch_id}/results", response_model=None)
async def get_results(request: Request, batch_id: str) -> Response:
    found = await services(request).results.read(
        project_of(request),
        batch_id,
        after=integer_of(request, "after", default=0, minimum=0, maximum=MAX_OFFSET),
        limit=limit_of(request, default=MAX_OFFSET, maximum=MAX_OFFSET),
    )
    headers = {
        "content-type": "application/jsonl",
        "x-batchline-next-after": str(found.next_after),
        "x-batchline-batch-status": found.status.value,
    }
    return await Download.open(found.size, found.chunks, headers=headers)


@router.post("/v1/batches/validate", response_model=None)
async def validate_batch(request: Request) -> Response:
    body = await json_body(request)
    found = await services(request).dry_run.run(project_of(request), body)
    return answer(wire.validation(found))
