"""Which entries of a shard are settled: one bit each, least significant bit first in each byte."""

from __future__ import annotations

from collections.abc import Iterator


def empty(entries: int) -> bytearray:
    """A bitmap of `entries` clear bits: 125 bytes for a shard of 1,000."""
    return bytearray((entries + 7) // 8)


def mark(bitmap: bytearray, index: int) -> None:
    bitmap[index >> 3] |= 1 << (index & 7)


def is_marked(bitmap: bytes | bytearray, index: int) -> bool:
    return bool(bitmap[index >> 3] & (1 << (index & 7)))


def count(bitmap: bytes | bytearray) -> int:
    """How many bits are set; the bits past the last entry are never set."""
    return int.from_bytes(bitmap, "little").bit_count()


def clear_indexes(bitmap: bytes | bytearray, entries: int) -> Iterator[int]:
    """The indexes below `entries` whose bit is clear, ascending."""
    for index in range(entries):
        if not bitmap[index >> 3] & (1 << (index & 7)):
            yield index


def marked_indexes(bitmap: bytes | bytearray) -> Iterator[int]:
    """The indexes whose bit is set, ascending; quick where they are few."""
    for at, byte in enumerate(bitmap):
        if byte:
            for bit in range(8):
                if byte & (1 << bit):
                    yield at * 8 + bit


def without(bitmap: bytes | bytearray, cleared: bytes | bytearray) -> bytes:
    """`bitmap` with every bit clear that is set in `cleared` (both of one length)."""
    bits = int.from_bytes(bitmap, "little") & ~int.from_bytes(cleared, "little")
    return bits.to_bytes(len(bitmap), "little")


def common(one: bytes | bytearray, other: bytes | bytearray) -> bytes:
    """The bits that are set in both (of one length)."""
    bits = int.from_bytes(one, "little") & int.from_bytes(other, "little")
    return bits.to_bytes(len(one), "little")


def packed(bitmap: bytes | bytearray) -> bytes:
    """A bitmap of neighbours in a few bytes: how many empty ones come first, then the others."""
    inner = bytes(bitmap).lstrip(b"\0")
    return (len(bitmap) - len(inner)).to_bytes(2, "big") + inner.rstrip(b"\0")


def unpacked(packed_bits: bytes, size: int) -> bytes:
    """The bitmap of `size` bytes that `packed` was given."""
    first = int.from_bytes(packed_bits[:2], "big")
    return (bytes(first) + packed_bits[2:]).ljust(size, b"\0")


def contains(outer: bytes | bytearray, inner: bytes | bytearray) -> bool:
    """Whether every bit of `inner` is set in `outer` as well (both of one length)."""
    return int.from_bytes(inner, "little") & ~int.from_bytes(outer, "little") == 0
