"""How the parts are, as `/healthz/ready` and the commands show it."""

from __future__ import annotations

from collections.abc import Sequence

from batchline import telemetry
from batchline.api.admin_backends import ShownBackend
from batchline.api.services import BackendHealth, Readiness
from batchline.cli.parts import Parts
from batchline.config.settings import Settings
from batchline.domain.attempts import Outcome
from batchline.domain.waiting import Reason, WaitCode, of_fault
from batchline.executor.catalogue import BackendReport, Reach
from batchline.executor.standing import Standing


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
    standings = {one.name: one for one in parts.executor.standings()}
    return [_health(report, standings[report.name]) for report in parts.catalogue.report()]


def _health(report: BackendReport, standing: Standing) -> BackendHealth:
    reason = standing.reason or _by_looks(report)
    return BackendHealth(
        name=report.name,
        state=_state(report, standing),
        reason=report.trouble if reason is None else reason.text,
        code=None if reason is None else reason.code,
        models=report.models or (),
    )


class ServedBackends:
    """Implements `api.admin_backends.Backends`."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def shown(self) -> Sequence[ShownBackend]:
        standings = {one.name: one for one in self._parts.executor.standings()}
        return [_shown(report, standings[report.name]) for report in self._parts.catalogue.report()]

    async def set_drained(self, name: str, *, drained: bool) -> None:
        await self._parts.drains.set(name, drained=drained)
        telemetry.event("backend_drained" if drained else "backend_undrained", backend=name)


def _by_looks(report: BackendReport) -> Reason | None:
    """Why lines would wait, as far as looks tell and no line has found out."""
    if report.trouble is None:
        return None
    if report.reach is Reach.UNREACHABLE:
        return of_fault(Outcome.NOT_SENT, report.trouble)
    return Reason(WaitCode.BACKEND_REFUSED, report.trouble) if report.key_refused else None


def _shown(report: BackendReport, standing: Standing) -> ShownBackend:
    health = _health(report, standing)
    return ShownBackend(
        name=report.name,
        state=health.state,
        base_url=report.base_url,
        weight=standing.weight,
        max_in_flight=standing.max_in_flight,
        permits=standing.permits,
        in_flight=standing.in_flight,
        circuit="admits" if standing.gated is None else standing.gated.code.value,
        drained=standing.drained,
        quiet=standing.quiet,
        reason=health.reason,
        models=None if report.models is None else list(report.models),
        code=None if health.code is None else health.code.value,
    )


def _state(report: BackendReport, standing: Standing) -> str:
    if standing.drained:
        return "drained" if standing.quiet else "draining"
    if standing.gated is not None:
        return "gated"
    return "up" if report.takes_lines else report.reach.value
