"""Ranges of blobs read from local files, and held against the CRC that was stored with them."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import google_crc32c

from batchline.domain.errors import BlobUnreadable
from batchline.domain.ids import BlobName
from batchline.domain.model import BlobRange

# A range up to here is read twice, the first time to be checked before its first byte is given out.
# A larger one (an upload; hardly ever a commit) is checked on the way, and its last piece waits.
CHECKED_AHEAD_BYTES: Final = 16 * 1024 * 1024
_CRC_BYTES: Final = 1024 * 1024  # of what is read only to be checked

PathOf = Callable[[BlobName], Path]


async def chunks(
    ranges: Sequence[BlobRange], path_of: PathOf, *, chunk_bytes: int
) -> AsyncGenerator[bytes, None]:
    """See `BlobStore.read`."""
    # Files are opened anew for each chunk: 5 µs beside the 50 of the hand-over to a thread, and
    # nothing is left open when the reader goes away in the middle.
    for group in _groups(ranges, chunk_bytes):
        first = group[0]
        if len(group) > 1 or _stored_bytes(first) <= chunk_bytes:
            yield await asyncio.to_thread(_read_whole, group, path_of)
            continue
        is_large = _stored_bytes(first) > CHECKED_AHEAD_BYTES
        if not is_large:
            await asyncio.to_thread(_check, first, path_of, chunk_bytes)
        crc = await asyncio.to_thread(_crc_of_lead, first, path_of) if is_large else 0
        for piece in _pieces(first, chunk_bytes):
            data, crc = await asyncio.to_thread(_read_on, piece, path_of, crc)
            if is_large and piece.stop == first.stop:
                crc = await asyncio.to_thread(_crc_with_trail, first, path_of, crc)
                _compare(first, crc)
            yield data


def _stored_bytes(part: BlobRange) -> int:
    """How many bytes have to be read to check it."""
    return part.stop - part.start + part.lead + part.trail


def _groups(ranges: Sequence[BlobRange], chunk_bytes: int) -> Iterator[list[BlobRange]]:
    """Whole ranges together as long as they fit a chunk; each that does not fit by itself."""
    group: list[BlobRange] = []
    room = chunk_bytes
    for part in ranges:
        if part.start == part.stop:
            continue
        size = _stored_bytes(part)
        if size > room and group:
            yield group
            group, room = [], chunk_bytes
        if size > chunk_bytes:
            yield [part]
        else:
            group.append(part)
            room -= size
    if group:
        yield group


def _pieces(part: BlobRange, chunk_bytes: int) -> Iterator[BlobRange]:
    for start in range(part.start, part.stop, chunk_bytes):
        stop = min(part.stop, start + chunk_bytes)
        yield BlobRange(blob=part.blob, start=start, stop=stop)


def _read_whole(group: Sequence[BlobRange], path_of: PathOf) -> bytes:
    """The bytes of small ranges, each checked."""
    read = []
    for part in group:
        data = _read_piece(_whole(part), path_of)
        _compare(part, google_crc32c.value(data))
        read.append(data[part.lead : len(data) - part.trail])
    return b"".join(read)


def _check(part: BlobRange, path_of: PathOf, chunk_bytes: int) -> None:
    """Read a range and compare its CRC, if it has one, and keep nothing of it."""
    if part.crc is None:
        return
    crc = 0
    for piece in _pieces(_whole(part), chunk_bytes):
        crc = google_crc32c.extend(crc, _read_piece(piece, path_of))
    _compare(part, crc)


def _crc_of_lead(part: BlobRange, path_of: PathOf) -> int:
    lead = BlobRange(blob=part.blob, start=part.start - part.lead, stop=part.start)
    return _crc_on(lead, path_of, 0) if part.crc is not None else 0


def _crc_with_trail(part: BlobRange, path_of: PathOf, crc: int) -> int:
    trail = BlobRange(blob=part.blob, start=part.stop, stop=part.stop + part.trail)
    return _crc_on(trail, path_of, crc) if part.crc is not None else crc


def _crc_on(part: BlobRange, path_of: PathOf, crc: int) -> int:
    for piece in _pieces(part, _CRC_BYTES):
        crc = google_crc32c.extend(crc, _read_piece(piece, path_of))
    return crc


def _read_on(piece: BlobRange, path_of: PathOf, crc: int) -> tuple[bytes, int]:
    """The bytes of a piece, and the CRC of all before it and them."""
    data = _read_piece(piece, path_of)
    return data, google_crc32c.extend(crc, data)


def _whole(part: BlobRange) -> BlobRange:
    return replace(part, start=part.start - part.lead, stop=part.stop + part.trail, lead=0, trail=0)


def _compare(part: BlobRange, crc: int) -> None:
    if part.crc is not None and part.crc != crc:
        raise BlobUnreadable(f"{part.blob} has changed between {part.start} and {part.stop}")


def _read_piece(piece: BlobRange, path_of: PathOf) -> bytes:
    try:
        fd = os.open(path_of(piece.blob), os.O_RDONLY | os.O_CLOEXEC)
        try:
            parts = []
            start = piece.start
            while start < piece.stop:
                part = os.pread(fd, piece.stop - start, start)
                if not part:
                    raise BlobUnreadable(f"{piece.blob} ends at {start}, before {piece.stop}")
                parts.append(part)
                start += len(part)
            return parts[0] if len(parts) == 1 else b"".join(parts)
        finally:
            os.close(fd)
    except OSError as exc:
        name = errno.errorcode.get(exc.errno or 0, "unknown")
        raise BlobUnreadable(f"{piece.blob} could not be read: {name}") from exc
