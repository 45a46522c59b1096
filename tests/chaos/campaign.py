"""A campaign: rounds of faults, each of them followed by calm and a look at every invariant."""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import msgspec
from openai.types import Batch as ApiBatch

from tests.chaos import schedule
from tests.chaos.caller import Caller, caller
from tests.chaos.customers import Customers
from tests.chaos.explain import (
    Resent,
    Why,
    failed_for_nothing,
    resent,
    sent_though_settled,
    went_on_after,
)
from tests.chaos.faults import Faults, of_the_log
from tests.chaos.records import Batch, Fault, Order
from tests.chaos.rows import last_sequence
from tests.chaos.scoreboard import Scoreboard
from tests.chaos.watch import NAME, Watch
from tests.chaos.weather import FINE, Sky
from tests.support import invariants
from tests.support.invariants import Story
from tests.support.scripted_backend import BackendControl, BackendLog, Kind, backend_process
from tests.support.server import ServerProcess, server
from tests.support.stored import wait_until_nothing_is_left, wait_until_rows_and_bytes_agree

ROUND: Final = 50  # kills: the backend keeps the requests of one round in memory
CUSTOMERS: Final = 6
LIVENESS_S: Final = 60.0  # once faults have stopped; a worker that died often is back in 30 s
SHOWN: Final = 20
AROUND_S: Final = 3.0  # of the timeline before a breach

SETTINGS: Final[Mapping[str, object]] = {
    "windows": ["24h", "2s"],
    # A worker that a busy machine holds up is not to be killed for it; one that is stopped is.
    "cancel": {"grace_s": 0.3, "ack_s": 1.0},
    "expire": {"grace_s": 0.3},
    "worker": {"silent_s": 1.5, "segment_idle_s": 0.5},
    "retention": {"sweep_s": 0.2},
}

_LOST: Final = re.compile(r"^\s*lost:", re.MULTILINE)
_DOUBLED: Final = re.compile(r"^\s*doubled:", re.MULTILINE)


class Breach(AssertionError):
    """An invariant did not hold; the message has the seed and what was done around it."""


async def run(directory: Path, seed: str, kills: int, say: Callable[[str], None]) -> Scoreboard:
    """Run it; the scoreboard.

    Raises:
        Breach: as soon as a round ends with one.
    """
    board = Scoreboard(seed=seed)
    began = time.monotonic()
    options = ["--workers", "2"]
    async with backend_process(FINE) as backend, caller() as calls:
        with server(
            directory, backend.base_url, settings=SETTINGS, options=options, start=False
        ) as running:
            campaign = Campaign(running, backend, calls, board)
            await campaign.faults.start()
            await campaign.faults.calm()  # the first start makes the tables that are looked at
            for number, first in enumerate(range(0, kills, ROUND)):
                await campaign.round(f"{seed}/{number}", min(ROUND, kills - first))
                board.seconds = time.monotonic() - began
                say(
                    f"round {number}: {board.kills.total()} kills in {board.seconds:.0f} s, "
                    f"{board.batches.total()} batches, re-sent {board.resent.total()}, "
                    f"lost {board.lost}"
                )
            await campaign.end()
    return board


class Campaign:
    """The actors of one campaign and what they note."""

    def __init__(
        self, running: ServerProcess, backend: BackendControl, calls: Caller, board: Scoreboard
    ) -> None:
        chance = random.Random(board.seed)  # noqa: S311  # victims, not secrets
        self._running = running
        self._backend = backend
        self._caller = calls
        self._board = board
        self._watch = Watch(calls, backend)
        self._customers = Customers(calls, self._watch, backend)
        self._checked: set[str] = set()  # ids of batches
        self.faults = Faults(running, backend, calls, chance)

    async def round(self, seed: str, kills: int) -> None:
        """Faults, calm, checks; the next round goes on with the same server and directory."""
        sky = Sky(self._backend)
        self._customers.closing = False
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(self._watch.run())
            for number in range(CUSTOMERS):
                tasks.create_task(self._customers.buy(schedule.jobs(seed, number)))
            weather = tasks.create_task(sky.run(schedule.outages(seed)))
            await self.faults.run(schedule.kills(seed, kills))
            weather.cancel()
            await asyncio.wait([weather])
            calm_at = await self.faults.calm()
            self._customers.closing = True
            stuck = await self._wait_for_all(calm_at)
            if stuck:
                self._keep(await self._backend.log())
                self._fail(seed, sky, [(line, calm_at) for line in stuck])
            await self._watch.settled()
            watching.cancel()
        await self._check(seed, sky)

    async def _wait_for_all(self, calm_at: float) -> list[str]:
        """Return when all batches have ended, or with those that are stuck."""
        while True:
            await asyncio.sleep(0.05)
            unended = self._watch.unended()
            stuck = list(
                invariants.not_ended(
                    {f"{b.name} {b.id}": b.last.status for b in unended},
                    calm_at=calm_at,
                    now=time.time(),
                    within_s=LIVENESS_S,
                )
            )
            self._board.stuck += len(stuck)
            if stuck or (not unended and await self._all_seen()):
                return stuck

    async def _all_seen(self) -> bool:
        """Whether every batch that is listed has been watched to its end."""
        listed = await self._listed()
        return all(
            id_ in self._checked or (id_ in self._watch.batches and self._watch.batches[id_].ended)
            for ids in listed.values()
            for id_ in ids
        )

    async def _listed(self) -> Mapping[str, list[str]]:
        """Ids of all batches of this round by the names in their metadata."""
        found: dict[str, list[str]] = defaultdict(list)
        after = ""
        while True:
            path = f"/v1/batches?limit=100{after}"
            page = (await self._caller.until_ok("list", "GET", path)).body
            for body in page["data"]:
                if body["id"] not in self._checked:
                    found[body["metadata"][NAME]].append(body["id"])
            if not page["has_more"] or page["last_id"] in self._checked:
                return found
            after = f"&after={page['last_id']}"

    # -- after the faults ----------------------------------------------------------------------

    async def _check(self, seed: str, sky: Sky) -> None:
        log = await self._backend.log()
        orders = self._customers.orders
        batches = [b for b in self._watch.batches.values() if b.id not in self._checked]
        own, defects = of_the_log(self._running.log)
        faults = sorted([*self.faults.faults, *own], key=lambda fault: fault.since)
        again = list(resent(log, faults))
        found: list[tuple[str, float]] = [(line, time.time()) for line in defects]
        found += [
            (line, time.time())
            for line in self._about_all(orders, log, await self._listed(), faults)
        ]
        events = invariants.by_line(log)
        for batch in batches:
            order = orders.get(batch.name)
            if order is not None:
                lines = self._about_one(batch, order, invariants.log_of(order.story, events))
                found += [(f"{batch.id}: {line}", batch.last_at) for line in lines]
            self._board.stepped_back += len(batch.steps_back)
            found += [(f"{batch.id}: {line}", batch.last_at) for line in batch.steps_back]
        found += [
            (f"{one.event.id}: sent again, and nothing explains it", one.event.first_byte_at)
            for one in again
            if one.why is Why.NOTHING
        ]
        self._count(log, batches, orders, again, sky)
        found += [(line, time.time()) for line in await self._watch.changes(batches)]
        if found:
            self._keep(log)
            self._fail(seed, sky, found)
        await asyncio.to_thread(wait_until_rows_and_bytes_agree, self._running.data)
        await self._forget(batches)

    def _about_all(
        self,
        orders: Mapping[str, Order],
        log: BackendLog,
        listed: Mapping[str, list[str]],
        faults: list[Fault],
    ) -> Iterator[str]:
        stories: list[Story] = [order.story for order in orders.values()]
        yield from invariants.dishonest_creates(stories, listed, log)
        kills = [instant for fault in faults for instant in (fault.since, fault.at, fault.until)]
        yield from invariants.sent_twice_at_once(log, kills)
        yield from self.faults.fallen_back
        batches = {batch.name: batch.id for batch in self._watch.batches.values()}
        entries = {
            line: (batches[story.name], entry)
            for story in stories
            if story.name in batches
            for entry, line in enumerate(story.ids)
        }
        yield from sent_though_settled(log, self.faults.faults, entries)

    def _about_one(self, batch: Batch, order: Order, log: BackendLog) -> Iterator[str]:
        story = order.story
        yield from invariants.cancel_not_honoured(story, batch.last.status, log)
        if batch.last.status == "cancelled" and batch.cancelled_read_at is not None:
            yield from invariants.open_after_the_end(story, batch.cancelled_read_at, log)
        for line in invariants.unconserved(
            order.content, ApiBatch.model_validate(batch.body), batch.output, batch.errors, log
        ):
            self._board.lost += len(_LOST.findall(line))
            self._board.duplicated += len(_DOUBLED.findall(line))
            yield line
        yield from _blamed(batch, log)
        yield from failed_for_nothing(batch.body or {}, self.faults.faults)

    def _count(
        self,
        log: BackendLog,
        batches: list[Batch],
        orders: Mapping[str, Order],
        again: list[Resent],
        sky: Sky,
    ) -> None:
        board, faults = self._board, self.faults
        board.count_resent(again)
        for one in again:
            if one.fault is not None and one.why in LOST_COMMITS:
                one.fault.phases |= {"committing"}
        board.kills.update(fault.what for fault in faults.faults if fault.is_kill)
        board.phases.update(p for fault in faults.faults if fault.is_kill for p in fault.phases)
        stops = [fault for fault in faults.faults if not fault.is_kill or fault.since < fault.at]
        board.stops += len(stops)
        board.outages.update(bad.what for bad in sky.bad)
        board.batches.update(batch.last.status for batch in batches)
        board.creates.update(order.story.created.value for order in orders.values())
        board.cancels += sum(len(order.story.cancels) for order in orders.values())
        board.lines += sum(len(order.story.ids) for order in orders.values())
        board.requests += len(log.arrivals)
        board.looks, self._watch.looks = board.looks + self._watch.looks, 0
        went_on = went_on_after(log, faults.lives, [*sky.bad, *stops], now=time.time())
        board.went_on_s += [one.seconds for one in went_on]
        board.too_slow += sum(one.seconds > one.allowed_s for one in went_on)

    async def _forget(self, batches: list[Batch]) -> None:
        """What was checked takes no room any more, but for what its end looked like."""
        self._checked |= {batch.id for batch in batches}
        for batch in batches:
            batch.output = batch.errors = batch.body = None
        self._customers.orders.clear()
        self.faults.faults.clear()
        del self.faults.lives[:-1]
        self.faults.lives[-1].had_work = False
        self.faults.after_sequence = await asyncio.to_thread(last_sequence, self._running.data)
        self._running.log.write_bytes(b"")  # servers append to it
        await self._backend.clear()

    async def end(self) -> None:
        """Nothing has changed since it ended; and when every file is deleted, nothing is left."""
        if changes := await self._watch.changes(self._watch.batches.values()):
            raise Breach("\n".join(changes))
        while files := (await self._caller.until_ok("list", "GET", "/v1/files?limit=100")).body[
            "data"
        ]:
            for file in files:
                path = f"/v1/files/{file['id']}"
                await self._caller.until_ok("delete", "DELETE", path, gone_is_ok=True)
        await asyncio.to_thread(wait_until_nothing_is_left, self._running.data)

    # -- failing -------------------------------------------------------------------------------

    def _keep(self, log: BackendLog) -> None:
        """Leave what the backend saw and what was done beside the data directory."""
        folder = self._running.directory
        (folder / "backend.jsonl").write_bytes(b"\n".join(map(msgspec.json.encode, log.events)))
        faults = [replace(fault, settled={}) for fault in self.faults.faults]
        (folder / "faults.json").write_bytes(msgspec.json.encode(faults))

    def _fail(self, seed: str, sky: Sky, found: list[tuple[str, float]]) -> None:
        """Raise Breach, with what was done around the first ones."""
        self._board.other_breaches += len(found)
        around = min((at for _, at in found), default=time.time())
        first = self.faults.lives[0].started_at
        done = [(f.since, f.told(first)) for f in self.faults.faults] + [
            (b.since, f"{b.since - first:8.3f} backend {b.what} until {b.until - first:.3f}")
            for b in sky.bad
        ]
        timeline = [text for at, text in sorted(done) if abs(at - around) < AROUND_S] or [
            text for _, text in sorted(done)[-SHOWN:]
        ]
        raise Breach(
            f"round {seed}: {len(found)} breaches\n  "
            + "\n  ".join(f"{at - first:8.3f} {line}" for line, at in found[:SHOWN])
            + "\nfaults around the first:\n  "
            + "\n  ".join(timeline)
            + f"\nall of it is in {self._running.directory}"
        )


# What only a commit that did not come about explains.
LOST_COMMITS: Final = frozenset({Why.INTERVAL, Why.STOPPED, Why.COMMITTING})
MAX_ATTEMPTS: Final = 5  # of a line that breaks; and the deaths until a line is blamed for them


def _blamed(batch: Batch, log: BackendLog) -> Iterator[str]:
    """Lines that failed although they had not used up their attempts."""
    broken = [e.id for e in log.of(Kind.DROPPED, Kind.ABORTED)]
    for line in (batch.errors or b"").splitlines():
        value: dict[str, Any] = json.loads(line)
        error = value["error"]
        if error is not None and error["code"] in ("upstream_unreachable", "worker_lost"):
            attempts = broken.count(value["custom_id"])
            if attempts < MAX_ATTEMPTS:
                yield f"{value['custom_id']}: {error['code']} after {attempts} broken attempts"
