"""Many results as few pieces of memory, without a second copy of the large ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import google_crc32c

LARGE_BYTES: Final = 256 * 1024  # to copy so much costs more than to handle it by itself
BLOCK_BYTES: Final = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Blocks:
    """Bytes in order, in pieces that are worth a system call each."""

    pieces: Sequence[bytes]
    size: int

    def crc(self) -> int:
        """The CRC-32C of them all."""
        found = 0
        for piece in self.pieces:
            found = google_crc32c.extend(found, piece)
        return found


def gathered(results: list[bytes]) -> Blocks:
    """What is in `results`, which is empty afterwards: there is one copy of each byte, not two."""
    size = sum(map(len, results))
    if size < LARGE_BYTES or (size <= BLOCK_BYTES and max(map(len, results)) < LARGE_BYTES):
        whole = b"".join(results)  # as nearly always
        results.clear()
        return Blocks([whole] if whole else [], size)
    pieces: list[bytes] = []
    small: list[bytes] = []
    small_bytes = 0

    def join() -> None:
        nonlocal small_bytes
        if small_bytes:
            pieces.append(small[0] if len(small) == 1 else b"".join(small))
        small.clear()
        small_bytes = 0

    results.reverse()
    while results:
        one = results.pop()
        if len(one) >= LARGE_BYTES:
            join()
            pieces.append(one)
            continue
        small.append(one)
        small_bytes += len(one)
        if small_bytes >= BLOCK_BYTES:
            join()
    join()
    return Blocks(pieces, size)
