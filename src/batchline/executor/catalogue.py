"""Which backend serves which model, and whether it answers: asked again and again, never guessed.

The control process owns one catalogue. Validation and the scheduler ask it, `GET /v1/models` and
readiness show it. A backend that went away keeps the models it had, so that lines for them wait
instead of failing as `model_not_found`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

import msgspec

from batchline import telemetry
from batchline.domain.errors import NotSent, SentUnanswered, UpstreamError
from batchline.domain.results import usable_body
from batchline.executor.contract import BackendSettings
from batchline.executor.looks import page_of, said_by_proxy
from batchline.executor.transport.contract import Answer, Transport

LISTING_BYTES: Final = 8 * 1024 * 1024  # of an answer of `/v1/models`: some 100,000 models


class Reach(StrEnum):
    """Whether a backend answers HTTP at all."""

    UNKNOWN = "unknown"  # not asked yet
    REACHABLE = "reachable"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogueTiming:
    """When backends are asked: steadily while they answer, with doubling pauses while not."""

    refresh_s: float = 60.0
    first_retry_s: float = 1.0
    retry_ceiling_s: float = 30.0
    answer_timeout_s: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendReport:
    """What is known of one backend now.

    `models` None: its catalogue is unknown, it may serve anything. `trouble` is for a person: what
    is wrong, or None; a reachable backend can have one (a refused key). `checked_at_s` is on the
    catalogue's clock, None before the first answer or failure.
    """

    name: str
    base_url: str
    reach: Reach = Reach.UNKNOWN
    models: Sequence[str] | None = None
    trouble: str | None = None
    checked_at_s: float | None = None
    failures: int = 0  # in a row
    connected: bool = True  # at the last look, whether or not it answered
    silent: bool = False  # it did not, at all
    by_proxy: bool = False  # it did not, and a proxy did in its place
    owners: Sequence[str] = ()  # of its models, as it says: engines are told by that
    key_refused: bool = False

    @property
    def takes_lines(self) -> bool:
        """Whether lines go there, as far as looks tell. One that does not list its models may be
        sent any: that is a trouble to tell of, and keeps nothing waiting."""
        listed_none = self.models is not None and not self.models
        return self.reach is Reach.REACHABLE and not self.key_refused and not listed_none


class _Model(msgspec.Struct):
    id: str
    owned_by: object = None  # a text, or whatever


class _ModelList(msgspec.Struct):
    data: list[_Model] | None  # Ollama writes null when it has none


_MODEL_LIST: Final = msgspec.json.Decoder(_ModelList)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What one answer of `/v1/models` gave: models, or what is wrong.

    `key_refused` marks the one fault that matters where the models are configured.
    """

    models: Sequence[str] | None = None
    owners: Sequence[str] = ()
    trouble: str | None = None
    key_refused: bool = False


def read_listing(answer: Answer) -> Listing:
    """The models that an answer of `/v1/models` lists, in its order and without repeats."""
    if answer.status in (401, 403):
        return Listing(trouble=f"refuses the key (status {answer.status})", key_refused=True)
    if answer.status != 200:
        return Listing(trouble=f"does not list its models (status {answer.status})")
    try:
        models = _MODEL_LIST.decode(answer.body).data or []
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Listing(trouble="lists its models in a form that is not OpenAI's")
    if not models:
        return Listing(models=(), trouble="has no models")
    owners = dict.fromkeys(one.owned_by for one in models if isinstance(one.owned_by, str))
    return Listing(models=tuple(dict.fromkeys(model.id for model in models)), owners=tuple(owners))


def after_answer(
    before: BackendReport, listing: Listing, *, configured: Sequence[str] | None, now_s: float
) -> BackendReport:
    """What is known once the backend answered; configured models outweigh what it lists."""
    trouble = listing.trouble
    if configured is not None and not listing.key_refused:
        trouble = None  # many proxies list nothing, which is why one configures models
    known = configured if configured is not None else listing.models
    return replace(
        before,
        reach=Reach.REACHABLE,
        models=known if known is not None else before.models,
        trouble=trouble,
        checked_at_s=now_s,
        failures=0 if trouble is None else before.failures + 1,
        connected=True,
        silent=False,
        by_proxy=False,
        owners=listing.owners,
        key_refused=listing.key_refused,
    )


def after_lines(before: BackendReport, *, now_s: float) -> BackendReport:
    """What is known after a look that met silence while lines were answered: as before.

    A server with a thread for each connection (llama.cpp's) lets a look wait until one is free. It
    is not down for that, and to stop sending would make a fault of it.
    """
    return replace(
        before,
        reach=Reach.REACHABLE,
        trouble=None,
        checked_at_s=now_s,
        failures=0,
        connected=True,
        silent=False,
        by_proxy=False,
    )


def after_failure(
    before: BackendReport,
    reason: str,
    *,
    now_s: float,
    connected: bool = False,
    silent: bool = True,
    by_proxy: bool = False,
) -> BackendReport:
    """What is known once the backend could not be reached: the models that it had stay."""
    return replace(
        before,
        reach=Reach.UNREACHABLE,
        trouble=reason,
        checked_at_s=now_s,
        failures=before.failures + 1,
        connected=connected,
        silent=silent,
        by_proxy=by_proxy,
    )


def next_look_s(report: BackendReport, timing: CatalogueTiming) -> float:
    """How long until the backend is asked again."""
    if report.failures == 0:
        return timing.refresh_s
    # The exponent is clamped because 2.0 ** 1024 overflows and a backend may be away for weeks.
    return min(timing.retry_ceiling_s, timing.first_retry_s * 2.0 ** min(report.failures - 1, 32))


class Catalogue:
    """What every configured backend serves. One event loop reads and writes it."""

    def __init__(
        self,
        backends: Sequence[BackendSettings],
        *,
        transports: Mapping[str, Transport],
        aliases: Mapping[str, str] | None = None,
        timing: CatalogueTiming | None = None,
        clock: Callable[[], float] = time.monotonic,
        on_change: Callable[[BackendReport], None] | None = None,
        on_look: Callable[[BackendReport], None] | None = None,
        answers_lines: Callable[[str, float], bool] | None = None,
    ) -> None:
        """`transports` holds one for each backend, by name; they are closed by their owner.

        `aliases` are names that files may use for a model, with the name that backends have for it;
        where a backend lists a model of an alias's name, the alias hides it.
        `on_change` is called after a look that changed the reach, the models or the trouble,
        `on_look` after every one. `answers_lines` says whether a backend answered a line since an
        instant on the clock.
        """
        self._settings = {backend.name: backend for backend in backends}
        self._transports = transports
        self._aliases = aliases or {}
        self._timing = timing or CatalogueTiming()
        self._clock = clock
        self._on_change = on_change
        self._on_look = on_look
        self._answers_lines = answers_lines or (lambda _name, _since: False)
        self._reports = {
            backend.name: BackendReport(
                name=backend.name, base_url=backend.base_url, models=backend.models
            )
            for backend in backends
        }
        self._ever = {model for report in self._reports.values() for model in report.models or ()}
        self._look_now = {name: asyncio.Event() for name in self._reports}

    async def refresh(self, name: str) -> BackendReport:
        """Ask one backend now and return what is known afterwards; never raises for its faults."""
        before, began = self._reports[name], self._clock()
        try:
            answer = await self._transports[name].get_json(
                "/models", timeout_s=self._timing.answer_timeout_s
            )
        except UpstreamError as exc:
            connected = not isinstance(exc, NotSent)
            silent = not isinstance(exc, SentUnanswered) or exc.is_cut_off
            known = connected and silent and before.models is not None
            if known and self._answers_lines(name, began):
                after = after_lines(before, now_s=self._clock())
            else:
                after = after_failure(
                    before,
                    exc.message,
                    now_s=self._clock(),
                    connected=connected,
                    silent=silent,
                )
        else:
            after = self._after(before, answer)
        self._set(before, after)
        if self._on_look is not None:
            self._on_look(after)
        return after

    def _after(self, before: BackendReport, answer: Answer) -> BackendReport:
        if page := page_of(answer.status, usable_body(answer.body)):
            return after_failure(
                before, said_by_proxy(page), now_s=self._clock(), connected=True, by_proxy=True
            )
        configured = self._settings[before.name].models
        return after_answer(
            before, read_listing(answer), configured=configured, now_s=self._clock()
        )

    async def refresh_all(self) -> None:
        """Ask every backend once, all at the same time."""
        await asyncio.gather(*(self.refresh(name) for name in self._reports))

    async def run(self) -> None:
        """Keep every backend's entry fresh until cancelled; the first look is at once."""
        async with asyncio.TaskGroup() as group:
            for name in self._reports:
                group.create_task(self._keep_fresh(name), name=f"catalogue of {name}")

    def note_reachable(self, name: str) -> None:
        """A request got an answer; when that is news the catalogue is asked at once."""
        if self._reports[name].reach is not Reach.REACHABLE:
            self._look_now[name].set()

    def note_unreachable(self, name: str, reason: str) -> None:
        """A request could not be sent; shown from now on, and looked into soon."""
        before = self._reports[name]
        if before.reach is Reach.REACHABLE:
            self._set(before, after_failure(before, reason, now_s=self._clock()))
            self._look_now[name].set()

    def backends_for(self, model: str) -> list[str]:
        """Who may serve `model`: those that list it, and those whose catalogue is unknown."""
        wanted = self.name_at_backends(model)
        return [
            name
            for name, report in self._reports.items()
            if report.models is None or wanted in report.models
        ]

    def name_at_backends(self, model: str) -> str:
        """What backends call the model that a file calls `model`: the same, but for aliases."""
        return self._aliases.get(model, model)

    def known(self) -> bool:
        """Whether every backend's models are known, so that a missing one is really missing.

        False without backends: lines then wait for a configuration that has some.
        """
        return bool(self._reports) and all(
            report.models is not None for report in self._reports.values()
        )

    def lists(self, name: str, model: str) -> bool:
        """Whether the backend itself says that it serves `model` (or is configured to)."""
        report = self._reports.get(name)
        if report is None or report.models is None:
            return False
        return self.name_at_backends(model) in report.models

    def has_listed(self, model: str) -> bool:
        """Whether some backend lists `model`, or did since the start."""
        return self.name_at_backends(model) in self._ever

    def models(self) -> list[str]:
        """Every name that a file may use: the backends' models in their order, without repeats,
        then the aliases of those."""
        served = dict.fromkeys(
            model for report in self._reports.values() for model in report.models or ()
        )
        aliases = [alias for alias, model in self._aliases.items() if model in served]
        return [model for model in served if model not in self._aliases] + aliases

    def report(self) -> list[BackendReport]:
        """What is known of each backend, for readiness and the start-up block."""
        return list(self._reports.values())

    async def _keep_fresh(self, name: str) -> None:
        while True:
            self._look_now[name].clear()
            report = await self.refresh(name)
            pause_s = min(self._settings[name].health_s, next_look_s(report, self._timing))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._look_now[name].wait()

    def _set(self, before: BackendReport, after: BackendReport) -> None:
        self._reports[after.name] = after
        self._ever.update(after.models or ())
        changed = (before.reach, before.models, before.trouble) != (
            after.reach,
            after.models,
            after.trouble,
        )
        if not changed:
            return
        models = len(after.models or ())
        if after.trouble is None:
            telemetry.event("backend_answered", backend=after.name, models=models)
        else:
            telemetry.trouble("backend_troubled", backend=after.name, trouble=after.trouble)
        if self._on_change is not None:
            self._on_change(after)
