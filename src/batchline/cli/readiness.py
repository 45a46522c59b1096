"""How the parts are, as `/healthz/ready` and the commands show it."""

from __future__ import annotations

from collections.abc import Sequence

from batchline.api.services import BackendHealth, Readiness
from batchline.cli.parts import Parts
from batchline.config import Settings
from batchline.executor.catalogue import Reach


def readiness(parts: Parts, settings: Settings, *, started: bool) -> Readiness:
    """What `/healthz/ready` answers: whether the server takes work, and how its parts are."""
    reasons = [] if started else ["The server is starting."]
    failing = parts.executor.failing or parts.jobs.failing  # of both: one upgrade, one reason
    if failing is not None:
        reasons.append(_sentence(failing))
    trouble = parts.store.trouble()
    if trouble is not None:
        reasons.append(_sentence(trouble))
    disk = parts.executor.paused or parts.executor.storage_trouble() or "ok"
    return Readiness(
        ready=not reasons,
        reasons=reasons,
        backends=backend_health(parts),
        workers_wanted=settings.workers,
        workers_running=parts.executor.ready_workers,
        disk=disk,
        disk_free_bytes=parts.disk.free_bytes,
        damaged=parts.alarms.damaged,
    )


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."


def backend_health(parts: Parts) -> Sequence[BackendHealth]:
    """Every backend, in the order of the settings, as readiness shows it."""
    waiting = parts.executor.waiting_reasons()
    return [
        BackendHealth(
            name=report.name,
            state=(
                "gated"
                if report.name in waiting
                else "up"
                if report.reach is Reach.REACHABLE and report.trouble is None
                else report.reach.value
            ),
            reason=waiting.get(report.name) or report.trouble,
            models=report.models or (),
        )
        for report in parts.catalogue.report()
    ]
