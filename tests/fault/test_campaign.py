"""A campaign of random kills: of the server, of one worker, of all of them at once.

Every process is real and every moment is random. `make chaos KILLS=200 SEED=7` makes it longer and
repeats one; the backend's log is the witness of what was sent again and why.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Final

import anyio
import pytest

from tests.support.inputs import make_lines
from tests.support.scripted_backend import (
    Answer,
    BackendControl,
    BackendLog,
    Event,
    Kind,
    Script,
    backend_process,
)
from tests.support.server import (
    POLL_S,
    TERMINAL,
    ServerProcess,
    conserved,
    server,
    submit,
    wait_for,
)

KILLS: Final = int(os.environ.get("BATCHLINE_KILLS") or 20)
SEED: Final = int(os.environ.get("BATCHLINE_SEED") or random.SystemRandom().randrange(2**32))

KILLS_PER_BATCH: Final = 7
# Deaths of a worker alone. From the third on what was under way runs alone, in a worker whose
# deaths are blamed on its line: that is test_worker_lost.py's.
WORKER_KILLS_PER_BATCH: Final = 2
LINES_PER_KILL: Final = 100  # more than can be answered between two kills
PAUSE_S: Final = (0.05, 0.8)
GOES_ON_S: Final = 5.0  # from the start of a process to the first request that it sends
COMMIT_S: Final = 0.1  # worker.commit_interval_s
COMMITTING_S: Final = 0.2  # what one commit may take on a busy machine; else a tenth of that
DYING_S: Final = 0.3  # what a killed process wrote may be read, and its orphans may write, so long


@dataclass(slots=True, kw_only=True)
class Kill:
    """One kill; instants are `time.time()`. `resent` are the arrivals that it explains, and
    `oldest_s` is how long before it the oldest of them had been answered."""

    victim: str
    at: float
    in_flight: int
    started_at: float | None = None  # of the next server process, if this killed one
    resent: list[Event] = field(default_factory=list)
    oldest_s: float = 0.0


@pytest.mark.campaign
@pytest.mark.timeout(60 + 6 * KILLS)
async def test_random_kills_lose_nothing_and_repeat_only_what_was_at_risk(tmp_path: Path) -> None:
    _say(f"\nseed {SEED}, {KILLS} kills (BATCHLINE_SEED, BATCHLINE_KILLS)")
    chance = random.Random(SEED)  # noqa: S311  # moments, not secrets
    script = Script(answer=Answer(latency_s=0.05, latency_max_s=0.5), seed=SEED)
    kills: list[Kill] = []
    lost = 0
    async with backend_process(script) as backend:
        with server(tmp_path, backend.base_url, options=["--workers", "2"]) as running:
            for first in range(0, KILLS, KILLS_PER_BATCH):
                victims = _victims(min(KILLS_PER_BATCH, KILLS - first), chance)
                content = make_lines(len(victims) * LINES_PER_KILL, start=first * LINES_PER_KILL)
                batch = submit(running.client(), content)
                await backend.wait_for_arrivals((await backend.stats()).arrivals + 1)
                for victim in victims:
                    await anyio.sleep(chance.uniform(*PAUSE_S))
                    kill = await _kill(victim, running, backend, chance)
                    kills.append(kill)
                    _say(f"kill {len(kills):3}: {victim:6}  {kill.in_flight:3} in flight")
                    if victim != "worker":
                        await _start_again(running, backend, kill, batch.id)
                ended = wait_for(running.client(), batch.id, timeout_s=60)
                assert ended.status == "completed"
                summary = conserved(running.client(), ended, content, await backend.log())
                lost += summary.total - summary.finished
            log = await backend.log()

    unexplained = [event.id for event in _explain(log, kills)]
    _say(
        f"re-sent {log.resent()} of {len(log.attempts())}, lost {lost}, "
        f"at most {max(len(kill.resent) for kill in kills)} re-sent by one kill, "
        f"answered at most {max(kill.oldest_s for kill in kills):.2f} s before it, "
        f"slowest to go on {max(_went_on_after(log, kills), default=0.0):.2f} s"
    )
    assert lost == 0
    assert unexplained == [], "sent again though no kill put them at risk"
    assert all(seconds <= GOES_ON_S for seconds in _went_on_after(log, kills))
    met = sum(kill.in_flight > 0 for kill in kills)
    assert 2 * met >= KILLS, f"only {met} kills met requests in flight: this run proves little"


def _victims(count: int, chance: random.Random) -> list[str]:
    workers = min(count, WORKER_KILLS_PER_BATCH)
    victims = ["worker"] * workers + chance.choices(("server", "all"), k=count - workers)
    chance.shuffle(victims)
    return victims


async def _kill(
    victim: str, running: ServerProcess, backend: BackendControl, chance: random.Random
) -> Kill:
    in_flight = (await backend.stats()).in_flight
    at = time.time()
    match victim:
        case "server":
            running.kill()
        case "worker":
            workers = _some_worker(running)
            at = time.time()
            os.kill(chance.choice(workers), signal.SIGKILL)
        case _:
            running.kill_all()
    return Kill(victim=victim, at=at, in_flight=in_flight)


def _some_worker(running: ServerProcess) -> list[int]:
    """The workers; waits when all have just been killed and none is there yet."""
    while not (workers := running.workers()):
        time.sleep(POLL_S)
    return workers


async def _start_again(
    running: ServerProcess, backend: BackendControl, kill: Kill, batch_id: str
) -> None:
    """Start the server; returns when it has sent a request, or has nothing more to send."""
    while running.children():  # they end by themselves; what they still send is not the new one's
        assert time.time() < kill.at + GOES_ON_S
        await anyio.sleep(POLL_S)
    before = (await backend.stats()).arrivals
    kill.started_at = time.time()
    running.start()
    client = running.client()
    while (await backend.stats()).arrivals == before:
        if client.batches.retrieve(batch_id).status in TERMINAL:
            kill.started_at = None
            return
        assert time.time() < kill.started_at + GOES_ON_S, "the batch does not go on by itself"
        await anyio.sleep(POLL_S)


def _went_on_after(log: BackendLog, kills: Sequence[Kill]) -> list[float]:
    """For each restart, how long it took from the process's start to the first request."""
    came = sorted(event.first_byte_at for event in log.arrivals)
    return [
        next(at for at in came if at > kill.started_at) - kill.started_at
        for kill in kills
        if kill.started_at is not None
    ]


def _explain(log: BackendLog, kills: Sequence[Kill]) -> Iterator[Event]:
    """Note each re-sent request with the kill that explains it; yields those that none explains.

    A kill explains it when the line's attempt before was in flight at that moment, or had been
    answered so shortly before that its commit was under way.
    """
    ends = {e.request: e for e in log.of(Kind.ANSWERED, Kind.DROPPED, Kind.ABORTED)}
    attempts: dict[str, list[Event]] = defaultdict(list)
    for event in log.arrivals:
        attempts[event.id].append(event)
    for one in attempts.values():
        for before, again in pairwise(one):
            for kill in kills:
                if kill.at <= again.first_byte_at and _at_risk(before, ends, kill):
                    end = ends.get(before.request)
                    if end is not None and end.kind is Kind.ANSWERED:
                        kill.oldest_s = max(kill.oldest_s, kill.at - end.at)
                    kill.resent.append(again)
                    break
            else:
                yield again


def _at_risk(attempt: Event, ends: dict[int, Event], kill: Kill) -> bool:
    if attempt.at > kill.at + DYING_S:
        return False
    end = ends.get(attempt.request)
    return end is None or end.at >= kill.at - COMMIT_S - COMMITTING_S


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201  # the record of a run; pytest shows it on failure or -s
