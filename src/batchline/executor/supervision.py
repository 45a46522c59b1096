"""Keeping worker processes alive: started, heard, reaped, and followed by another.

There are no timed leases here: liveness is the socket plus a heartbeat counted in beats of our own
(so that a suspended laptop fences nobody). A silent worker is killed and reaped, and only then does
its end count. What workers say, and what they are for, is nothing to this.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from batchline import telemetry
from batchline.domain.ids import WorkerId
from batchline.executor import messages as m
from batchline.executor.protocol import PROTOCOL, other_version
from batchline.executor.worker_link import WorkerLink

BEAT_S: Final = 0.05
START_S: Final = 30.0  # a worker imports for a second, on a busy machine for several
FAILING_DEATHS: Final = 5  # deaths before the first hello that make readiness say so
_RESTART_S: Final = (0.0, 0.1, 0.5, 2.0, 5.0, 30.0)  # waits before the nth restart in a row
_QUARANTINE: Final = "q"  # its place; the others have numbers

InTurn = asyncio.Queue[m.ToControl | None]  # None: the worker has been reaped


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisionSettings:
    """How workers are started, and how patient one is with them.

    `command` starts one worker; ` --fd N` is appended. `worker_prefix` is unique per server start:
    segments carry the worker's name and are never reused.
    """

    workers: int
    command: Sequence[str]
    children: Path
    worker_prefix: str
    silent_s: float = 10.0


class Supervision:
    """The workers that there are, by name; each is there from its start until it is reaped."""

    def __init__(
        self,
        settings: SupervisionSettings,
        *,
        greet: Callable[[WorkerLink, bool], None],
        heard: Callable[[WorkerLink, m.ToControl], bool],
        heard_in_turn: Callable[[WorkerLink, m.ToControl], Awaitable[None]],
        lost: Callable[[WorkerLink], Awaitable[None]],
    ) -> None:
        """`greet` says the first words to a new worker; True: it is one of the first, and follows
        nobody. `heard` is given each message as it comes; where it says False, the message goes to
        `heard_in_turn`, one after another. `lost` hears of each worker that was reaped, after all
        that it said has been dealt with, and before another takes its place.
        """
        self._settings = settings
        self._greet = greet
        self._heard = heard
        self._heard_in_turn = heard_in_turn
        self._lost = lost
        self._links: dict[WorkerId, WorkerLink] = {}
        self._stopping = asyncio.Event()
        self._started = 0
        self._deaths_at_start = 0
        self._other_version: str | None = None  # what is installed instead of what runs
        self._all_ready = asyncio.Event()
        self._keepers: list[asyncio.Task[None]] = []
        self._quarantine: asyncio.Task[None] | None = None
        self._quarantine_wanted = False
        self._watching: asyncio.Task[None] | None = None

    @property
    def links(self) -> Mapping[WorkerId, WorkerLink]:
        """Every worker that runs, also the one in quarantine and those that are not ready; a view
        that stays."""
        return self._links

    @property
    def failing(self) -> str | None:
        """Why workers do not come up, or None; without a stop at its end."""
        if self._other_version is not None:
            return other_version(self._other_version)
        if self._deaths_at_start >= FAILING_DEATHS:
            return f"workers died at start {self._deaths_at_start} times in a row"
        return None

    @property
    def ready_workers(self) -> int:
        return sum(link.ready and not link.quarantine for link in self._links.values())

    @property
    def stopping(self) -> bool:
        """Whether the drain has begun."""
        return self._stopping.is_set()

    async def start(self) -> None:
        """Start the workers; returns when each is ready or is known to be failing."""
        loop, places = asyncio.get_running_loop(), range(self._settings.workers)
        self._keepers = [loop.create_task(self._keep(f"{n}")) for n in places]
        self._watching = loop.create_task(self._watch())
        await self._all_ready.wait()

    def set_quarantine(self, wanted: bool) -> None:
        """Whether there is to be one worker more, apart from the others. Never blocks."""
        self._quarantine_wanted = wanted
        if wanted and (self._quarantine is None or self._quarantine.done()):
            keeping = self._keep(_QUARANTINE, quarantine=True)
            self._quarantine = asyncio.get_running_loop().create_task(keeping)
        elif not wanted:
            for link in self._links.values():
                if link.quarantine:
                    link.tell(m.Drain(0.0))

    async def drain(self, *, grace_s: float) -> None:
        """Have every worker drain within `grace_s`; returns when all are reaped."""
        self._stopping.set()
        links = list(self._links.values())
        for link in links:
            link.tell(m.Drain(grace_s))
        # A worker that is drained ends by itself; one second more covers its last commit.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s + 1.0):
                for link in links:
                    await link.gone.wait()
        for link in links:
            link.kill()
        quarantine = [] if self._quarantine is None else [self._quarantine]
        await asyncio.gather(*self._keepers, *quarantine)
        if self._watching is not None:
            self._watching.cancel()

    # -- one place, one worker after another -----------------------------------------------

    async def _keep(self, place: str, *, quarantine: bool = False) -> None:
        """Keep one worker running: start it, serve it, reap it, start the next."""
        deaths = 0
        while self._quarantine_wanted or not quarantine:
            if await self._stops_within(_RESTART_S[min(deaths, len(_RESTART_S) - 1)]):
                return
            deaths = 1 if await self._one_life(place, quarantine=quarantine) else deaths + 1

    async def _stops_within(self, delay_s: float) -> bool:
        """Wait `delay_s`, less when a drain begins meanwhile; whether it does."""
        if delay_s > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay_s):
                    await self._stopping.wait()
        return self.stopping

    async def _one_life(self, place: str, *, quarantine: bool) -> bool:
        """One worker from start to reaped; whether it ever said hello."""
        self._started += 1
        worker = WorkerId(f"{self._settings.worker_prefix}-{place}-{self._started}")
        try:
            return await self._serve(worker, quarantine=quarantine)
        except Exception as exc:  # noqa: BLE001  # whatever it was, the place must be kept
            telemetry.trouble("worker_link_failed", worker=worker, error=repr(exc))
            return False

    async def _serve(self, worker: WorkerId, *, quarantine: bool) -> bool:
        link = await self._begin(worker, quarantine=quarantine)
        in_turn = InTurn()
        serving = asyncio.get_running_loop().create_task(self._serve_in_turn(link, in_turn))
        # A worker whose commits nobody answers any more would hold its shards for ever.
        serving.add_done_callback(lambda _: link.kill())
        try:
            await link.messages(lambda message: self._on_message(link, message, in_turn))
        finally:
            link.kill()
            status = await link.reap()
            in_turn.put_nowait(None)
            try:
                # What was received before the end is durable in the worker's segment: it counts.
                await serving
            finally:
                self._note_version(link)
                self._note_end(link, status)
                await self._lost(link)
        return link.ready

    async def _begin(self, worker: WorkerId, *, quarantine: bool) -> WorkerLink:
        settings = self._settings
        link = await WorkerLink.start(
            worker,
            settings.command,
            children=settings.children,
            environment=os.environ,
            quarantine=quarantine,
        )
        self._links[worker] = link
        self._greet(link, self._started <= settings.workers)
        if quarantine and not self._quarantine_wanted:
            link.tell(m.Drain(0.0))
        if self.stopping:  # a drain that began meanwhile does not know of this one
            link.kill()
        return link

    # -- what it says ----------------------------------------------------------------------

    def _on_message(self, link: WorkerLink, message: m.ToControl, in_turn: InTurn) -> None:
        if isinstance(message, m.Hello):
            link.ready = True
            self._deaths_at_start = 0
            self._other_version = None
            if self.ready_workers >= self._settings.workers:
                self._all_ready.set()
        if not self._heard(link, message):
            in_turn.put_nowait(message)

    async def _serve_in_turn(self, link: WorkerLink, in_turn: InTurn) -> None:
        while (message := await in_turn.get()) is not None:
            await self._heard_in_turn(link, message)

    # -- silence and end -------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            self._beat()

    def _beat(self) -> None:
        """One beat more in which nobody said a word; who is silent for too many is killed."""
        silent = max(1, round(self._settings.silent_s / BEAT_S))
        starting = max(silent, round(START_S / BEAT_S))
        for link in self._links.values():
            link.silent_beats += 1
            if link.silent_beats > (silent if link.ready else starting):
                telemetry.trouble("worker_silent", worker=link.worker)
                link.silent_beats = 0
                link.kill()

    def _note_version(self, link: WorkerLink) -> None:
        if link.other_version is not None:
            self._other_version = link.other_version
            telemetry.trouble(
                "worker_of_another_version_refused",
                worker=link.worker,
                installed=link.other_version,
                running=PROTOCOL,
            )

    def _note_end(self, link: WorkerLink, status: int) -> None:
        self._links.pop(link.worker, None)
        if self.stopping or (link.quarantine and not self._quarantine_wanted):
            return  # as it was told
        telemetry.trouble(
            "worker_ended", worker=link.worker, status=status, shards=len(link.holding.works)
        )
        if not link.ready and not link.quarantine:
            self._deaths_at_start += 1
            if self._deaths_at_start >= FAILING_DEATHS:
                self._all_ready.set()
