"""Messages between the control process and a worker as bytes on their socket.

Each is a 4-byte big-endian length and msgpack of one tagged struct of `messages`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Final

import msgspec

from batchline.executor.messages import ToControl, ToWorker

_LENGTH_BYTES: Final = 4
MAX_MESSAGE_BYTES: Final = 64 * 1024 * 1024  # a shard of work is a few hundred bytes

_encoder: Final = msgspec.msgpack.Encoder()
decode_to_worker: Final = msgspec.msgpack.Decoder(ToWorker).decode
decode_to_control: Final = msgspec.msgpack.Decoder(ToControl).decode


def frame(message: ToWorker | ToControl) -> bytes:
    """The bytes of one message as they go onto the socket."""
    payload = _encoder.encode(message)
    return len(payload).to_bytes(_LENGTH_BYTES, "big") + payload


class FrameReader:
    """Cuts a stream into the payloads of its messages, whatever pieces it comes in."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The payloads that are whole with `data`, in order.

        Raises:
            ValueError: the stream is out of step.
        """
        self._buffer += data
        start = 0
        while len(self._buffer) - start >= _LENGTH_BYTES:
            body = start + _LENGTH_BYTES
            stop = body + _checked_length(self._buffer[start:body])
            if len(self._buffer) < stop:
                break
            start = stop
            yield bytes(self._buffer[body:stop])
        del self._buffer[:start]


def _checked_length(raw: bytes | bytearray) -> int:
    length = int.from_bytes(raw, "big")
    if length > MAX_MESSAGE_BYTES:
        raise ValueError(f"a message of {length} bytes: the stream is out of step")
    return length


async def read_frame(reader: asyncio.StreamReader) -> bytes | None:
    """The payload of the next message; None when the other side is gone."""
    try:
        length = _checked_length(await reader.readexactly(_LENGTH_BYTES))
        return await reader.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
