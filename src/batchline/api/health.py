"""`/healthz/…` for whoever runs the server, and `/v1/models` from the backends' catalogues."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from batchline.api import wire
from batchline.api.request import answer
from batchline.api.services import ListedModel, Readiness, services
from batchline.domain.errors import NotFound

router = APIRouter()


@router.get("/healthz/live", response_model=None)
async def live() -> Response:
    return answer({"status": "alive"})


@router.get("/healthz/ready", response_model=None)
async def ready(request: Request) -> Response:
    now = services(request).readiness()
    return answer(_readiness(now), status=200 if now.ready else 503)


@router.get("/v1/models", response_model=None)
async def list_models(request: Request) -> Response:
    models = services(request).models()
    return answer({"object": "list", "data": [_model(model) for model in models]})


# A path: ids such as `org/model` arrive with their slash, escaped or not.
@router.get("/v1/models/{model_id:path}", response_model=None)
async def get_model(request: Request, model_id: str) -> Response:
    for model in services(request).models():
        if model.id == model_id:
            return answer(_model(model))
    raise NotFound(
        f"The model '{model_id}' does not exist", param="model", wire_code="model_not_found"
    )


def _model(model: ListedModel) -> wire.Shape:
    return {
        "id": model.id,
        "object": "model",
        "created": model.created,
        "owned_by": model.owned_by,
    }


def _readiness(now: Readiness) -> wire.Shape:
    """The body of both answers; the 503 carries the error envelope beside the same fields."""
    shape: dict[str, object] = {
        "status": "ready" if now.ready else "unready",
        "reasons": now.reasons,
        "backends": [
            {
                "name": backend.name,
                "state": backend.state,
                "reason": backend.reason,
                "code": None if backend.code is None else backend.code.value,
                "models": backend.models,
            }
            for backend in now.backends
        ],
        "workers": {"wanted": now.workers_wanted, "running": now.workers_running},
        "disk": {"state": now.disk, "free_bytes": now.disk_free_bytes},
        "damaged": now.damaged,
    }
    if not now.ready:
        why = " ".join(now.reasons) or "The server is starting."
        shape |= wire.error(why, kind="server_error", code="not_ready")
    return shape
