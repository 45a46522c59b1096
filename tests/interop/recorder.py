"""What an unmodified client really sends: a relay in front of the server that keeps the bytes."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Final

_HOST: Final = "127.0.0.1"
_CHUNK_BYTES: Final = 65_536
# Not at the beginning of a line: on a kept connection it follows a body that ends without one.
_REQUEST_LINE: Final = re.compile(rb"(?:GET|POST|DELETE) /v1/\S+(?= HTTP/1\.1\r\n)")


class Recorder:
    """Relays to `port` of this machine. `base_url` is what a client is given."""

    def __init__(self, port: int) -> None:
        self.base_url = ""
        self._port = port
        self._sent: list[bytearray] = []  # by the client, one a connection

    @property
    def calls(self) -> list[str]:
        """The request lines without the version, connection by connection."""
        return [line.decode() for sent in self._sent for line in _REQUEST_LINE.findall(sent)]

    def request(self, call: str) -> bytes:
        """The one request with this request line, from its line to the next one."""
        found = []
        for sent in self._sent:
            starts = [match.start() for match in _REQUEST_LINE.finditer(sent)] + [len(sent)]
            requests = (bytes(sent[a:b]) for a, b in pairwise(starts))
            found += [one for one in requests if one.startswith(f"{call} HTTP".encode())]
        assert len(found) == 1, f"{len(found)} times {call}"
        return found[0]

    async def relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until either side ends it."""
        sent = bytearray()
        self._sent.append(sent)
        server_reader, server_writer = await asyncio.open_connection(_HOST, self._port)
        there = asyncio.create_task(_pump(reader, server_writer, sent))
        back = asyncio.create_task(_pump(server_reader, writer, None))
        await asyncio.wait({there, back}, return_when=asyncio.FIRST_COMPLETED)
        for task in (there, back):
            task.cancel()
        await asyncio.gather(there, back, return_exceptions=True)
        for end in (server_writer, writer):
            end.close()


async def _pump(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, keep: bytearray | None
) -> None:
    while data := await reader.read(_CHUNK_BYTES):
        if keep is not None:
            keep += data
        writer.write(data)
        await writer.drain()


@asynccontextmanager
async def recorder(port: int) -> AsyncIterator[Recorder]:
    """A recorder in front of `port` for the length of the block."""
    recording = Recorder(port)
    listening = await asyncio.start_server(recording.relay, _HOST, 0)
    recording.base_url = f"http://{_HOST}:{listening.sockets[0].getsockname()[1]}/v1"
    async with listening:
        yield recording
