"""Puts identical requests of a plan behind one another, so that the first can run for all of them.

The others of a group *follow* it in the plan and are marked (`plan.FOLLOWS`). A group has at most
as many lines as a shard, since a shard is the unit in which results are committed; what is left of
a larger one is another group, with a first of its own.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

from batchline.domain import bitmap, plan
from batchline.domain.identical import DIGEST_BYTES, digest_of
from batchline.service.inputs import BLOCK_BYTES, InputFile
from batchline.service.plans import PlanWriter
from batchline.service.record_sort import RecordSort

_BY_DIGEST: Final = struct.Struct(f">{DIGEST_BYTES}sQ")  # digest, place in the plan
_BY_LEADER: Final = struct.Struct(">QQ")  # places in the plan of the first of a group, of another
_AT_ONCE: Final = 4_096  # entries


def bring_together(
    planned: PlanWriter, source: InputFile, scratch_dir: Path, *, endpoint: str, most: int
) -> None:
    """Move every line that is the same request as an earlier one of the plan behind that one.

    `planned` is grouped by model. Groups of more than `most` lines are cut. About 6 us
    for a line of 600 bytes (bench/prefix.py).

    Raises:
        OSError: the scratch files could not be written.
        BlobUnreadable: as `InputFile`.
    """
    moved = bitmap.empty(planned.entries)
    with (
        closing(RecordSort(scratch_dir, _BY_DIGEST.size)) as by_digest,
        closing(RecordSort(scratch_dir, _BY_LEADER.size)) as by_leader,
    ):
        for place, raw in enumerate(_lines(planned, source)):
            digest = digest_of(raw, endpoint)
            if digest is not None:
                by_digest.add(_BY_DIGEST.pack(digest, place))
        followers = 0
        for leader, follower in _followers(by_digest.ascending(), most):
            bitmap.mark(moved, follower)
            by_leader.add(_BY_LEADER.pack(leader, follower))
            followers += 1
        by_digest.close()
        if followers:
            planned.follow(_together(planned, moved, by_leader.ascending()))


def _lines(planned: PlanWriter, source: InputFile) -> Iterator[bytes]:
    """The bytes of every line, in the order of the plan."""
    window, start = b"", 0
    last = 0
    for packed in planned.packed():
        for offset, length, _, _ in plan.ENTRY.iter_unpack(packed):
            if offset < start or offset + length > start + len(window):
                # Ahead only where the plan follows the file: what is read must be of use.
                near = last <= offset <= last + BLOCK_BYTES
                ahead = min(BLOCK_BYTES, source.size - offset) if near else 0
                window, start = source.at(offset, max(length, ahead)), offset
            last = offset
            yield window[offset - start : offset - start + length]


def _followers(by_digest: Iterator[bytes], most: int) -> Iterator[tuple[int, int]]:
    """(place of the first, place of another) for every line that is to follow."""
    last, leader, members = b"", 0, 0
    for digest, place in map(_BY_DIGEST.unpack, by_digest):
        if digest == last and members < most:
            members += 1
            yield leader, place
        else:
            last, leader, members = digest, place, 1


def _together(planned: PlanWriter, moved: bytearray, by_leader: Iterator[bytes]) -> Iterator[bytes]:
    """All entries, those that follow behind their first one."""
    following = map(_BY_LEADER.unpack, by_leader)
    leader, follower = next(following, (-1, -1))
    pieces: list[bytes] = []
    place = -1
    size = plan.ENTRY_BYTES
    for packed in planned.packed():
        for at in range(0, len(packed), size):
            place += 1
            if bitmap.is_marked(moved, place):
                continue
            pieces.append(packed[at : at + size])
            while leader == place:
                entry = planned.entry(follower)
                pieces.append(plan.ENTRY.pack(*entry[:3], plan.FOLLOWS))
                leader, follower = next(following, (-1, -1))
            if len(pieces) >= _AT_ONCE:
                yield b"".join(pieces)
                pieces.clear()
    yield b"".join(pieces)
