"""What a campaign does: drawn from its seed before anything runs, so that the seed repeats it.

Each actor has a stream of chance of its own, so that what one of them draws moves none of the
others. When a thing happens after what, the machine decides: the schedule says what and how long.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Victim(StrEnum):
    """Who is killed."""

    SERVER = "server"  # alone: its children are to notice by themselves
    ALL = "all"  # the server and every child at once
    WORKER = "worker"  # one of them
    CHILD = "child"  # one that validates or writes never-run lines; a worker when there is none


ENDS_SERVER: Final = frozenset({Victim.SERVER, Victim.ALL})

# Points of the program at which a process can be made to die, by the phase of a batch that they
# belong to. All of them take the server with them. `@` is which time that it comes by: the first
# one after a restart is often that of a batch that was half way through.
AIMED: Final = {
    "uploading": ("file.create.inside=kill", "blob.synced=kill", "blob.durable=kill"),
    "creating": ("batch.create.before=kill", "batch.create.inside=kill", "batch.create.after=kill"),
    "validating": ("validation.done=kill", "validation.done=kill@2"),
    "planning": (
        "plan.synced=kill_both",
        "batch.start.before=kill",
        "batch.start.inside=kill",
        "batch.start.after=kill",
    ),
    "running": ("worker.dispatching=kill_both@9", "worker.answered=kill_both@9"),
    "committing": (
        "segment.writing=kill_both@2",
        "segment.written=kill_both@2",
        "segment.synced=kill_both",
        "commit.sending=kill_both",
        "commit.sent=kill_both",
        "commit.before=kill@2",
        "commit.inside=kill@2",
        "commit.after=kill@2",
    ),
    "cancelling": (
        "cancel.before=kill",
        "cancel.inside=kill",
        "cancel.after=kill",
        "gate.closed=kill_both",
        "gate.acknowledged=kill_both",
    ),
    "finalizing": (
        "finalize.starting=kill",
        "finalize.before=kill",
        "finalize.inside=kill",
        "finalize.after=kill",
        "never_run.synced=kill_both",
        "never_run.written=kill",
        "shard.releasing=kill_both",
    ),
    "deleting": ("blobs.deleted=kill", "blobs.deleted=kill@2"),
}
PHASE_OF: Final = {probe: phase for phase, probes in AIMED.items() for probe in probes}

# Not a death: the disk refuses once, and the caller gets an error.
REFUSALS: Final = (
    "batch.create.inside=eio@2",
    "file.create.inside=eio@3",
    "batch.create.before=eio",
)

_AIMED_SHARE: Final = 0.45  # of the kills that follow a start
_AT_START_SHARE: Final = 0.35  # of the others that follow a start
_REFUSALS_SHARE: Final = 0.15  # of all starts
_STOPPED_SHARE: Final = 0.15  # of all kills
_VICTIMS: Final = {Victim.SERVER: 0.25, Victim.ALL: 0.2, Victim.WORKER: 0.35, Victim.CHILD: 0.2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """One kill, and what comes before it.

    The victim dies `pause_s` after the server's start (`at_start`) or after it is ready. Unless
    `probe` is reached first: it was armed at that start. Before that, `stopped` is stopped for
    `stop_s`, and goes on or (`dies_stopped`) is killed as it is. `orphans_first`: the next server
    starts when the children of this one are gone, else at once.
    """

    victim: Victim
    at_start: bool = False
    pause_s: float = 0.0
    probe: str = ""
    refusal: str = ""
    stopped: Victim | None = None
    stop_s: float = 0.0
    dies_stopped: bool = False
    orphans_first: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One batch as its customer wants it. Waits are from the create's answer, None for never."""

    lines: int
    window: str = "24h"
    delay_s: float = 0.0  # what each answer takes; 0: what the backend usually takes
    cancel_after_s: float | None = None
    cancels: int = 1  # at once
    deletes_input: bool = False  # right after the create
    deletes_files: bool = False  # after it has ended and its files were read
    is_wrong: bool = False  # asks for a window that there is not


class Weather(StrEnum):
    """What ails the backend."""

    REFUSES = "refuses"  # connections are refused, open ones reset
    HANGS = "hangs"  # it takes requests and answers none, until it is over
    SHEDS = "sheds"  # 503 for everything


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """After `calm_s` of good weather, `length_s` of bad."""

    calm_s: float
    weather: Weather
    length_s: float


def kills(seed: str, count: int) -> Sequence[Kill]:
    """The kills of one round; after the last one the server starts with no probe armed."""
    chance = _stream(seed, "kills")
    probes = _forever([probe for probes in AIMED.values() for probe in probes], chance)
    drawn: list[Kill] = []
    for number in range(count):
        fresh = number == 0 or drawn[-1].victim in ENDS_SERVER
        probe = next(probes) if fresh and number and chance.random() < _AIMED_SHARE else ""
        (victim,) = chance.choices(list(_VICTIMS), list(_VICTIMS.values()))
        if probe or number == count - 1:
            victim = chance.choice((Victim.SERVER, Victim.ALL))
        at_start = fresh and victim in ENDS_SERVER and chance.random() < _AT_START_SHARE
        drawn.append(
            _kill(victim, chance, at_start=at_start and not probe, probe=probe, fresh=fresh)
        )
    return drawn


def _kill(
    victim: Victim, chance: random.Random, *, at_start: bool, probe: str, fresh: bool
) -> Kill:
    refuses, stops = chance.random() < _REFUSALS_SHARE, chance.random() < _STOPPED_SHARE
    stopped = chance.choice((Victim.SERVER, Victim.WORKER)) if stops else None
    return Kill(
        victim=victim,
        at_start=at_start,
        pause_s=chance.uniform(0.0, 1.2) if at_start else min(1.5, chance.expovariate(5.0)),
        probe=probe,
        refusal=chance.choice(REFUSALS) if refuses and fresh else "",
        stopped=None if at_start or probe else stopped,
        stop_s=chance.uniform(0.02, 0.6) if chance.random() < 0.8 else chance.uniform(0.6, 2.0),
        dies_stopped=chance.random() < 0.4,
        orphans_first=chance.random() < 0.6,
    )


def jobs(seed: str, customer: int) -> Iterator[Job]:
    """What one customer orders, one after the other, without an end."""
    chance = _stream(seed, f"customer {customer}")
    while True:
        kind = chance.random()
        if kind < 0.03:
            yield Job(lines=3, is_wrong=True)
        elif kind < 0.17:  # cannot be done in its window
            yield Job(lines=chance.randint(5, 30), window="2s", delay_s=3.0)
        else:
            cancel = chance.random() < 0.35
            yield Job(
                lines=_size(chance, customer),
                cancel_after_s=chance.uniform(0.0, 1.2) if cancel else None,
                cancels=2 if chance.random() < 0.2 else 1,
                deletes_input=chance.random() < 0.3,
                deletes_files=chance.random() < 0.5,
            )


def _size(chance: random.Random, customer: int) -> int:
    """The first customer has the large batches: there is always work that waits."""
    if customer == 0:
        return chance.randint(1_100, 2_500)
    return chance.choice((1, chance.randint(2, 20), chance.randint(20, 120), 300))


def outages(seed: str) -> Iterator[Outage]:
    """The backend's weather, without an end."""
    chance = _stream(seed, "weather")
    while True:
        yield Outage(
            calm_s=chance.uniform(3.0, 8.0),
            weather=chance.choice(list(Weather)),
            length_s=chance.uniform(0.1, 1.5),
        )


def _stream(seed: str, name: str) -> random.Random:
    return random.Random(f"{seed} {name}")  # noqa: S311  # a schedule, not a secret


def _forever(values: Sequence[str], chance: random.Random) -> Iterator[str]:
    """All of `values` in some order, then in another."""
    while True:
        yield from chance.sample(values, len(values))
