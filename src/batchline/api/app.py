"""The HTTP application: routes behind the edge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Final, NoReturn

from fastapi import FastAPI, Request
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from batchline.api import batches as api_batches
from batchline.api import docs, extensions, health, metrics
from batchline.api import files as api_files
from batchline.api import uploads as api_uploads
from batchline.api.edge import Edge
from batchline.api.services import ListedModel, Readiness, Services
from batchline.domain.keys import KeyRing
from batchline.service.batches import Batches
from batchline.service.dry_run import DryRun
from batchline.service.files import Files
from batchline.service.progress import ProgressReader
from batchline.service.results import Results
from batchline.service.uploads import Uploads

# In this order: `/v1/batches/validate` of the extensions comes before `/v1/batches/{batch_id}`.
_ROUTERS: Final = tuple(
    module.router
    for module in (api_files, api_uploads, extensions, api_batches, health, metrics, docs)
)


def create_app(
    files: Files,
    batches: Batches,
    models: Callable[[], Sequence[ListedModel]],
    readiness: Callable[[], Readiness],
    *,
    ring: KeyRing | None = None,
    uploads: Uploads,
    dry_run: DryRun,
    results: Results,
    progress: ProgressReader,
    loopback_only: bool = True,
) -> FastAPI:
    """The application on these services. It holds no state and needs no lifespan.

    Once `ring` has a key, requests need one; None stands for a ring that stays empty. Until then
    `loopback_only` refuses requests that do not name a loopback address as their host, and writes
    from web pages of other origins.
    """
    app = FastAPI(
        openapi_url=None,  # takes its /docs and /redoc with it; ours are in docs.py
        redirect_slashes=False,  # a 307 has no envelope, and not every client follows one
        exception_handlers={HTTPException: _to_the_edge},
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.services = Services(
        files=files,
        uploads=uploads,
        batches=batches,
        dry_run=dry_run,
        results=results,
        progress=progress,
        models=models,
        readiness=readiness,
    )
    for router in _ROUTERS:
        app.include_router(router)
    app.add_middleware(Edge, ring=ring or KeyRing(), loopback_only=loopback_only)
    return app


async def _to_the_edge(request: Request, exc: Exception) -> NoReturn:
    """Hand on what the framework refused, so that one place makes every envelope.

    The framework names the methods of one route only; `Allow` is about all of a path (RFC 9110).
    """
    if isinstance(exc, HTTPException) and exc.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        exc.headers = {"allow": ", ".join(_methods_of(request.scope["route"].path))}
    raise exc


def _methods_of(path: str) -> Sequence[str]:
    """What may be done at the path of a route, as the path is written there."""
    routes = (route for router in _ROUTERS for route in router.routes)
    alike = [route for route in routes if isinstance(route, APIRoute) and route.path == path]
    return sorted({method for route in alike for method in route.methods or ()})
