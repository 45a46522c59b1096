"""The plan: one fixed-size entry per request line, in dispatch order, behind a versioned header.

A shard is a run of consecutive entries, so a worker reads its share with one `pread` and keeps
24 bytes a line only while it dispatches; nobody ever holds the plan of a whole batch.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import StrEnum
from itertools import accumulate
from typing import Final, NamedTuple

MAGIC: Final = b"BLPLAN\x00\x01"  # the last byte is the version
MAGIC_WITH_FOLLOWERS: Final = b"BLPLAN\x00\x02"  # the first programs would send those that follow
HEADER: Final = struct.Struct("<8sII")  # magic, entry size, flags
ENTRY: Final = struct.Struct("<QIIQ")  # offset, length, line number, prefix hash
HEADER_BYTES: Final = HEADER.size
ENTRY_BYTES: Final = ENTRY.size

# Flags: what a program that does not know one does without it is right too.
MODELS_UNKNOWN: Final = 1  # the lines' models were not compared with what backends list

FOLLOWS: Final = 2**64 - 1  # as prefix hash: gets the result of the entry before that has another

SHARD_ENTRIES: Final = 1_000  # a 125-byte bitmap; 1,000,000 lines are 1,000 rows (design.md 4)


class Order(StrEnum):
    """The order in which the lines of a model are dispatched."""

    FILE = "file"
    PREFIX = "prefix"  # lines that share a prefix side by side; file order where none do
    LONG_OUTPUTS = "long_outputs"  # those that may have long outputs first, each class as PREFIX


class PlanEntry(NamedTuple):
    """Where one request line is: `length` bytes at `offset` of the input, without its line ending.

    `line_number` counts physical lines from 1, blank ones included, so that it matches an editor.
    `prefix_hash` is the same for lines that share a prefix and are to run in one place; 0 for a
    line that shares none. FOLLOWS stands for the same request as that of the entry before it.
    """

    offset: int
    length: int
    line_number: int
    prefix_hash: int


def header(*, followers: bool = False, models_known: bool = True) -> bytes:
    """The header of a plan; one in which an entry FOLLOWS another says so.

    `models_known`: every model was one that some backend lists.
    """
    magic = MAGIC_WITH_FOLLOWERS if followers else MAGIC
    return HEADER.pack(magic, ENTRY_BYTES, 0 if models_known else MODELS_UNKNOWN)


def check_header(raw: bytes) -> bool:
    """Whether entries of the plan may FOLLOW others.

    Raises:
        ValueError: `raw` does not begin a plan that this program can read.
    """
    if len(raw) < HEADER_BYTES:
        raise ValueError("the plan is shorter than its header")
    magic, entry_bytes, _ = HEADER.unpack_from(raw)
    if magic not in (MAGIC, MAGIC_WITH_FOLLOWERS) or entry_bytes != ENTRY_BYTES:
        raise ValueError("not a plan of this version")
    return bool(magic == MAGIC_WITH_FOLLOWERS)


def models_known(raw: bytes) -> bool:
    """Whether every model was known when the plan was made; also of a plan that does not tell."""
    return len(raw) < HEADER_BYTES or not HEADER.unpack_from(raw)[2] & MODELS_UNKNOWN


def span(first_entry: int, entries: int) -> tuple[int, int]:
    """The (offset, length) in the plan file of `entries` entries from `first_entry` (from 0)."""
    return HEADER_BYTES + first_entry * ENTRY_BYTES, entries * ENTRY_BYTES


def unpack(raw: bytes) -> Iterator[PlanEntry]:
    """The entries in `raw`, whose length is a multiple of ENTRY_BYTES."""
    return map(PlanEntry._make, ENTRY.iter_unpack(raw))


def prefix_hashes(raw: bytes) -> list[int]:
    """The prefix hash of each entry in `raw`; of one that FOLLOWS another, that of the other."""
    hashes = [entry[3] for entry in ENTRY.iter_unpack(raw)]
    if FOLLOWS in hashes:
        hashes = list(accumulate(hashes, lambda led, own: led if own == FOLLOWS else own))
    return hashes


def shard_spans(entries: int, shard_entries: int = SHARD_ENTRIES) -> Iterator[tuple[int, int]]:
    """(first entry, number of entries) of each shard of a plan of one model."""
    for first in range(0, entries, shard_entries):
        yield first, min(shard_entries, entries - first)
