"""Whom the routes translate for: the services, and what `serve` tells of models and readiness."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from starlette.requests import Request

from batchline.domain.waiting import WaitCode
from batchline.service.batches import Batches
from batchline.service.dry_run import DryRun
from batchline.service.files import Files
from batchline.service.progress import ProgressReader
from batchline.service.results import Results
from batchline.service.uploads import Uploads


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedModel:
    """A model that some backend serves. `created` is in Unix seconds, 0 when nobody said."""

    id: str
    created: int = 0
    owned_by: str = "backend"


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendHealth:
    """A backend as the scheduler sees it; `reason` says why it is not `up`, or that lines wait for
    its rate limit, and `code` the same for programs, where there is one. Backends do not make the
    server unready: its batches wait."""

    name: str
    state: str
    reason: str | None = None
    code: WaitCode | None = None
    models: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """Whether the server can do its work; `reasons` says why not, one sentence each.

    `disk` is `ok` or why dispatch is paused; `disk_free_bytes` None when it is not known. `damaged`
    is how often stored bytes were found damaged since the start; the log has each.
    """

    ready: bool
    reasons: Sequence[str] = ()
    backends: Sequence[BackendHealth] = ()
    workers_wanted: int = 0
    workers_running: int = 0
    disk: str = "ok"
    disk_free_bytes: int | None = None
    damaged: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What the routes translate for; both callables answer from memory."""

    files: Files
    uploads: Uploads
    batches: Batches
    dry_run: DryRun
    results: Results
    progress: ProgressReader
    models: Callable[[], Sequence[ListedModel]]
    readiness: Callable[[], Readiness]


def services(request: Request) -> Services:
    """The services of the application that the request came to."""
    found: Services = request.app.state.services
    return found
