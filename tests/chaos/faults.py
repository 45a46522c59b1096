"""Carries the schedule's kills out, on one server and its children, and notes what they met."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from http.client import HTTPException
from pathlib import Path
from typing import Final

from tests.chaos.caller import Caller
from tests.chaos.records import Fault, Life
from tests.chaos.rows import Rows, look
from tests.chaos.schedule import ENDS_SERVER, PHASE_OF, Kill, Victim
from tests.support.invariants import ShardRow, fallen_back
from tests.support.scripted_backend import BackendControl
from tests.support.server import START_S, ServerProcess, is_worker

POLL_S: Final = 0.005
REACHED_S: Final = 1.0  # after the server is ready an armed probe has so long to be reached
ORPHANS_S: Final = 20.0  # children of a dead server are gone by then, or something is wrong

# What of the server's own log says that it ended one of its workers on purpose.
OWN_KILLS: Final = frozenset({"worker_silent", "gate_not_acknowledged", "batch_fenced"})
# What it says only when something of ours is wrong.
TRACE_LINES: Final = 40
DEFECTS: Final = frozenset({"batch_step_failed", "input_lost"})

Shards = Mapping[tuple[str, int], ShardRow]


class Faults:
    """The one who kills. `faults` and `lives` are in the order of their instants."""

    def __init__(
        self,
        running: ServerProcess,
        backend: BackendControl,
        caller: Caller,
        chance: random.Random,
    ) -> None:
        self._running = running
        self._backend = backend
        self._caller = caller
        self._chance = chance
        self.faults: list[Fault] = []
        self.lives: list[Life] = []
        self.fallen_back: list[str] = []
        self.after_sequence = 0  # batches up to it are over
        self._shards: Shards = {}
        self._finding: asyncio.Task[None] | None = None

    # -- life ----------------------------------------------------------------------------------

    async def start(self, *, probes: str = "", rows: Rows | None = None) -> None:
        """Start the server; returns at once."""
        self.lives.append(Life(started_at=time.time(), had_work=rows is not None and rows.has_work))
        await asyncio.to_thread(self._running.start, probes=probes, wait=False)
        self._finding = asyncio.create_task(self._find(self.lives[-1]))

    async def _find(self, life: Life) -> None:
        """Tell callers where the server listens as soon as it does, and note when it is ready."""
        deadline = time.monotonic() + START_S
        while self._running.is_running and life.ended_at is None:
            assert time.monotonic() < deadline, f"not ready:\n{self._running.tail()}"
            with suppress(OSError, HTTPException, AssertionError):
                if self._running.note is not None:
                    self._caller.serves_at(self._running.origin)
                    if (await asyncio.to_thread(self._running.readiness))["status"] == "ready":
                        life.ready_at = time.time()
                        return
            await asyncio.sleep(POLL_S)

    async def _ready(self) -> bool:
        """Wait until the server is; False when it has ended instead."""
        assert self._finding is not None
        await self._finding
        return self._running.is_running

    async def calm(self) -> float:
        """Have a server run that nothing will kill any more; the instant of its being ready."""
        assert await self._ready(), f"the server ended:\n{self._running.tail()}"
        return time.time()

    # -- one kill ------------------------------------------------------------------------------

    async def run(self, kills: Sequence[Kill]) -> None:
        """One after the other; the server that runs in the end has no probe armed."""
        for kill, following in zip(kills, [*kills[1:], Kill(victim=Victim.ALL)], strict=True):
            fault = await self._carry_out(kill)
            self.faults.append(fault)
            if self.lives[-1].ended_at is not None:
                rows = await self._bury(kill)
                probes = ",".join(filter(None, (following.probe, following.refusal)))
                await self.start(probes=probes, rows=rows)

    async def _carry_out(self, kill: Kill) -> Fault:
        if kill.probe:
            return await self._wait_for_probe(kill) or await self._kill(kill)
        if kill.at_start:
            await asyncio.sleep(max(0.0, self.lives[-1].started_at + kill.pause_s - time.time()))
        else:
            await self._ready()
            await asyncio.sleep(kill.pause_s)
        # Without a probe it ends by nobody's hand but ours.
        if not self._running.is_running:
            status = await asyncio.to_thread(self._running.wait_ended)
            raise AssertionError(f"the server ended by itself, {status}:\n{self._running.tail()}")
        return await self._kill(kill)

    async def _wait_for_probe(self, kill: Kill) -> Fault | None:
        """The death at the armed probe; None when it was not reached in time."""
        deadline = None
        while deadline is None or time.time() < deadline:
            if not self._running.is_running:
                now = time.time()
                status = await asyncio.to_thread(self._running.wait_ended)
                assert status == -signal.SIGKILL, f"{status}:\n{self._running.tail()}"
                fault = Fault(what="probe", since=now, at=now, until=now, probe=kill.probe)
                fault.phases = frozenset({PHASE_OF[kill.probe], *self._calls()})
                self._server_gone()
                return fault
            if deadline is None and self.lives[-1].ready_at is not None:
                deadline = time.time() + REACHED_S
            await asyncio.sleep(POLL_S)
        return None

    async def _kill(self, kill: Kill) -> Fault:
        since = None
        if kill.stopped is not None:
            since = await self._stop(kill)
        before = await asyncio.to_thread(
            look, self._running.data, after_sequence=self.after_sequence
        )
        in_flight = (await self._backend.stats()).in_flight
        starting = self.lives[-1].ready_at is None
        calls = self._calls()
        at = time.time()
        what = kill.victim.value
        match kill.victim:
            case Victim.SERVER:
                await asyncio.to_thread(self._kill_server)
            case Victim.ALL:
                await asyncio.to_thread(self._running.kill_all)
            case Victim.WORKER | Victim.CHILD:
                what = self._kill_child(kill.victim)
        if not what:  # no child is there yet
            what = Victim.ALL.value
            await asyncio.to_thread(self._running.kill_all)
        if what in ENDS_SERVER:
            self._server_gone()
        fault = Fault(what=what, since=since or at, at=at, until=time.time(), in_flight=in_flight)
        phases = {*before.phases, *calls} - ({"running"} if not in_flight else set())
        fault.phases = frozenset(phases | {"starting"} if starting else phases)
        return fault

    def _calls(self) -> set[str]:
        """The phases of calls that are under way."""
        phases = {"uploading", "creating", "cancelling", "deleting"}
        names = {"delete": "deleting"}
        return {
            names.get(what, what)
            for what, number in self._caller.under_way.items()
            if number and names.get(what, what) in phases
        }

    def _kill_server(self) -> None:
        with suppress(ProcessLookupError):  # it has reached its probe just now
            os.kill(self._running.pid, signal.SIGKILL)
        status = self._running.wait_ended()
        assert status == -signal.SIGKILL, f"{status}:\n{self._running.tail()}"

    def _kill_child(self, victim: Victim) -> str:
        """What died; "" when there is no child at the moment."""
        children = self._running.children()
        workers = [pid for pid in children if is_worker(pid)]
        others = [pid for pid in children if pid not in workers]
        for what, pids in ((Victim.CHILD, others), (Victim.WORKER, workers)):
            if pids and (victim is what or not workers):
                with suppress(ProcessLookupError):
                    os.kill(self._chance.choice(pids), signal.SIGKILL)
                return what.value
        return ""

    async def _stop(self, kill: Kill) -> float | None:
        """SIGSTOP for a while; since when, if it is to die stopped."""
        workers = self._running.workers()
        if kill.stopped is Victim.WORKER and not workers:
            return None
        pid = self._running.pid if kill.stopped is Victim.SERVER else self._chance.choice(workers)
        at = time.time()
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(kill.stop_s)
            if kill.dies_stopped and kill.victim in ENDS_SERVER:
                return at
            os.kill(pid, signal.SIGCONT)
        # Its server may have killed it for it.
        self.faults.append(
            Fault(what=f"{kill.stopped} stopped", since=at, at=at, until=time.time(), is_kill=False)
        )
        return None

    # -- afterwards ----------------------------------------------------------------------------

    def _server_gone(self) -> None:
        self.lives[-1].ended_at = time.time()
        self._caller.serves_at("")

    async def _bury(self, kill: Kill) -> Rows:
        """Look at what a dead server has left; wait for its children, if the schedule says so."""
        if self._finding is not None:
            await self._finding
        rows = await asyncio.to_thread(look, self._running.data, after_sequence=self.after_sequence)
        self.fallen_back += fallen_back(self._shards, rows.shards)
        self._shards = self.faults[-1].settled = rows.shards
        self.faults[-1].phases |= rows.phases & {"planning", "expiring", "finalizing", "deleting"}
        # A child that is stopped cannot notice: the next server has to kill it.
        deadline = time.monotonic() + ORPHANS_S
        while kill.orphans_first and kill.stopped is not Victim.WORKER and self._running.children():
            assert time.monotonic() < deadline, "children outlive their server"
            await asyncio.sleep(POLL_S)
        return rows


def of_the_log(log: Path) -> tuple[list[Fault], list[str]]:
    """From what servers said: workers that they ended themselves, and what must never be said."""
    own: list[Fault] = []
    defects: list[str] = []
    lines = log.read_text(errors="replace").splitlines()
    for number, line in enumerate(lines):
        if "Traceback (most recent" in line:
            defects.append("\n    ".join(lines[max(0, number - 3) : number + TRACE_LINES]))
        if not line.startswith("{"):
            continue
        with suppress(ValueError):  # a line that was cut by a kill
            said = json.loads(line)
            if said.get("event") in OWN_KILLS:
                at = datetime.fromisoformat(said["timestamp"]).timestamp()
                own.append(
                    Fault(what=said["event"], since=at, at=at, until=at + 0.5, is_kill=False)
                )
            if said.get("event") in DEFECTS or said.get("status") in _CRASHED:
                defects.append(line)
    return own, defects


# The exit status of a worker that neither was killed nor ended because its server had.
_CRASHED: Final = frozenset({1, 2, 3, -signal.SIGSEGV, -signal.SIGABRT, -signal.SIGTERM})
