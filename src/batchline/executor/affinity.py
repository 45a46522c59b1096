"""Which backend each group of lines prefers: rendezvous hashing with bounded load. Pure.

Lines that share a prefix should meet at one backend, whose cache then has it; all workers, shards
and restarts should agree on which, and when a backend comes or goes only its own groups should
move. Rendezvous hashing does that: every group ranks the backends by a hash of both. The bound
keeps a group that is too big for its first choice, and bad luck of the hash, from piling up lines.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

LOAD: Final = 1.25  # of its fair share of a shard: the most that a backend prefers of it

_64: Final = (1 << 64) - 1

Range = list[int]  # [next, stop): entries of a shard, from 0


@dataclass(frozen=True, slots=True)
class Seat:
    """A backend as groups rank it: by its name, so that all who know it agree."""

    name: str
    weight: float = 1.0
    seed: int = field(init=False)

    def __post_init__(self) -> None:
        digest = hashlib.blake2b(self.name.encode(), digest_size=8).digest()
        object.__setattr__(self, "seed", int.from_bytes(digest, "little"))


def _score(prefix_hash: int, seat: Seat) -> float:
    """How much a group likes a seat: highest for each of them as often as its weight says.

    The logarithm of a uniform number's `weight`-th root, whose maximum has that distribution.
    """
    mixed = _mixed(prefix_hash ^ seat.seed)
    return math.log((mixed + 1) / (1 << 64)) / seat.weight


def _mixed(x: int) -> int:
    """SplitMix64's finalizer: XOR with a seed alone would leave the ranks of seats correlated."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _64
    return x ^ (x >> 31)


def groups(hashes: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """(hash, first, stop) of each run of equal hashes."""
    first, count = 0, len(hashes)
    while first < count:
        here = hashes[first]
        stop = first + 1
        while stop < count and hashes[stop] == here:
            stop += 1
        yield here, first, stop
        first = stop


@dataclass(slots=True)
class Preferences:
    """What of a shard each seat prefers, in plan order; `free` is for anybody (hash 0)."""

    own: list[list[Range]]
    free: list[Range] = field(default_factory=list)


def preferences(hashes: Sequence[int], seats: Sequence[Seat]) -> Preferences:
    """Who prefers which of the entries; every entry is in exactly one range.

    A group goes whole to the first seat of its ranking that stays within `LOAD` times its fair
    share, and is split only where no seat has room for all of it.
    """
    found = Preferences(own=[[] for _ in seats])
    weights = sum(seat.weight for seat in seats)
    room = [math.ceil(LOAD * len(hashes) * seat.weight / weights) for seat in seats]
    for prefix_hash, first, stop in groups(hashes):
        if not prefix_hash:
            found.free.append([first, stop])
            continue
        lines = stop - first
        scores = [_score(prefix_hash, seat) for seat in seats]
        best = scores.index(max(scores))
        if room[best] >= lines:
            found.own[best].append([first, stop])
            room[best] -= lines
            continue
        ranking = sorted(range(len(seats)), key=scores.__getitem__, reverse=True)
        whole = [at for at in ranking if room[at] >= lines][:1]
        for at in whole or ranking:
            part = min(stop - first, room[at])
            if part:
                found.own[at].append([first, first + part])
                room[at] -= part
                first += part
    return found


def without(ranges: Sequence[Range], settled: Collection[int]) -> list[Range]:
    """`ranges` but for the entries in `settled`, which is quick to ask."""
    left: list[Range] = []
    for first, stop in ranges:
        begin = first
        for entry in range(first, stop) if settled else ():
            if entry in settled:
                if entry > begin:
                    left.append([begin, entry])
                begin = entry + 1
        if begin < stop:
            left.append([begin, stop])
    return left
