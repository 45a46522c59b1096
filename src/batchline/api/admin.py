"""The admin socket: what commands on the same machine ask of a running server.

A Unix socket in the data directory which only the directory's owner may connect to (mode 0600), so
no key is needed, and none can make another. One request and one answer a connection, each a line
of JSON. Commands that find no server do the same by `answer_to` themselves. A connection that asked
for `HoldDeletion` is the hold: it ends when the connection does, and so with its process.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final, Self

import msgspec

from batchline.api.admin_backends import (
    Backends,
    BackendsListed,
    ListBackends,
    SetDrained,
    answer_about,
)
from batchline.domain.errors import BatchlineError, ConfigError, RequestError
from batchline.domain.keys import ApiKey
from batchline.service.keys import Keys
from batchline.service.maintenance import Deletion
from batchline.telemetry import event, trouble

MAX_REQUEST_BYTES: Final = 64 * 1024
READ_S: Final = 5.0  # a command writes its line at once

# sockaddr_un holds 108 bytes on Linux and 104 on macOS, with the NUL at the end.
_LONGEST_ADDRESS: Final = 100


class CreateKey(msgspec.Struct, frozen=True, tag="create_key"):
    project: str


class ListKeys(msgspec.Struct, frozen=True, tag="list_keys"):
    pass


class RevokeKey(msgspec.Struct, frozen=True, tag="revoke_key"):
    key_id: str


class HoldDeletion(msgspec.Struct, frozen=True, tag="hold_deletion"):
    """Delete no bytes of blobs for as long as this connection is open."""


Request = CreateKey | ListKeys | RevokeKey | ListBackends | SetDrained


class ShownKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key as it may be shown. Times are Unix seconds; `revoked_at` is None while it works."""

    id: str
    project: str
    project_id: str
    prefix: str
    created_at: int
    revoked_at: int | None


class KeyCreated(msgspec.Struct, frozen=True, tag="key_created"):
    key: ShownKey
    secret: str


class KeysListed(msgspec.Struct, frozen=True, tag="keys_listed"):
    keys: list[ShownKey]


class KeyRevoked(msgspec.Struct, frozen=True, tag="key_revoked"):
    key: ShownKey


class DeletionHeld(msgspec.Struct, frozen=True, tag="deletion_held"):
    pass


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    message: str


Answer = KeyCreated | KeysListed | KeyRevoked | BackendsListed | Refused

_requests: Final = msgspec.json.Decoder(Request | HoldDeletion)
_answers: Final = msgspec.json.Decoder(Answer | DeletionHeld)
_encode: Final = msgspec.json.Encoder().encode


async def answer_to(request: Request, keys: Keys, backends: Backends | None = None) -> Answer:
    """Do what is asked; a refusal of ours is an answer. Without a server there are no backends."""
    try:
        match request:
            case CreateKey():
                key, secret = await keys.create(request.project)
                return KeyCreated(_shown(key), secret)
            case ListKeys():
                return KeysListed([_shown(key) for key in await keys.list()])
            case RevokeKey():
                return KeyRevoked(_shown(await keys.revoke(request.key_id)))
            case ListBackends() | SetDrained():
                if backends is None:
                    return Refused("This server dispatches nothing.")
                return await answer_about(request, backends)
    except RequestError as exc:
        return Refused(exc.message)
    except BatchlineError as exc:
        return Refused(f"The server could not do it ({exc.code}); nothing was changed.")


def _shown(key: ApiKey) -> ShownKey:
    return ShownKey(
        id=key.id,
        project=key.project_name,
        project_id=key.project_id,
        prefix=key.prefix,
        created_at=key.created_at,
        revoked_at=key.revoked_at,
    )


# -- the server's side ---------------------------------------------------------------------------


@asynccontextmanager
async def serving(
    path: Path,
    keys: Keys,
    *,
    deletion: Deletion | None = None,
    backends: Backends | None = None,
) -> AsyncIterator[None]:
    """Answer at the socket `path` for the length of the block; whatever was there is replaced.

    The caller holds the directory's lock: what it replaces is what a killed server left. Whoever
    deletes bytes asks `deletion`; without it there is nothing to hold.

    Raises:
        ConfigError: there can be no socket at that path.
    """
    connections: set[asyncio.Task[None]] = set()
    held = deletion or Deletion()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(
            _converse(reader, writer, keys, held, backends)
        )
        connections.add(task)
        task.add_done_callback(connections.discard)

    server = await asyncio.start_unix_server(connected, sock=_bound(path), limit=MAX_REQUEST_BYTES)
    try:
        yield
    finally:
        server.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        _gone(path)


def _bound(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _gone(path)
        with _address(path) as address:
            listener.bind(address)
        path.chmod(0o600)  # before it listens: until then nobody can connect, whatever the umask
    except OSError as exc:
        listener.close()
        raise ConfigError(f"admin socket {path}: {exc.strerror or exc}") from exc
    return listener


def _gone(path: Path) -> None:
    path.unlink(missing_ok=True)


async def _converse(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    keys: Keys,
    deletion: Deletion,
    backends: Backends | None,
) -> None:
    """One request, one answer; a client that says nothing of use is left without one."""
    try:
        async with asyncio.timeout(READ_S):
            line = await reader.readline()
        request = _requests.decode(line)
        event("admin_requested", request=request.__struct_config__.tag)
        if isinstance(request, HoldDeletion):
            with deletion.held():
                await _answer(writer, DeletionHeld())
                await reader.read(1)  # returns when the other side is gone
        else:
            await _answer(writer, await answer_to(request, keys, backends))
    except (TimeoutError, ValueError, OSError) as exc:  # ValueError: no JSON of ours, or too long
        trouble("admin_request_unusable", error=type(exc).__name__)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _answer(writer: asyncio.StreamWriter, answer: Answer | DeletionHeld) -> None:
    writer.write(_encode(answer) + b"\n")
    await writer.drain()


# -- the command's side --------------------------------------------------------------------------


def ask(path: Path, request: Request, *, timeout_s: float) -> Answer | None:
    """What the server at `path` answers; None when no server listens there.

    Raises:
        OSError: the socket may not be used, or the conversation broke. Whether the request was
            carried out is then not known.
    """
    client = _connected(path, timeout_s=timeout_s)
    if client is None:
        return None
    with client:
        answer = _asked(client, request)
    if isinstance(answer, DeletionHeld):
        raise ConnectionError("the server answered something else")
    return answer


class Hold:
    """Keeps the server from deleting bytes until it is closed, or the server ends."""

    def __init__(self, client: socket.socket) -> None:
        self._client = client

    @classmethod
    def at(cls, path: Path, *, timeout_s: float) -> Self | None:
        """A hold of the server at `path`; None when no server listens there.

        Raises:
            OSError: as `ask`; a server that does not know what is asked for says nothing.
        """
        client = _connected(path, timeout_s=timeout_s)
        if client is None:
            return None
        try:
            answer = _asked(client, HoldDeletion())
        except BaseException:
            client.close()
            raise
        if not isinstance(answer, DeletionHeld):
            client.close()
            raise ConnectionError("the server answered something else")
        return cls(client)

    @property
    def is_lost(self) -> bool:
        """Whether the server has ended meanwhile."""
        readable, _, _ = select.select([self._client], [], [], 0)
        return bool(readable)  # it says nothing more, so what can be read is the end

    def close(self) -> None:
        self._client.close()


def _connected(path: Path, *, timeout_s: float) -> socket.socket | None:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        client.settimeout(timeout_s)
        with _address(path) as address:
            client.connect(address)
    except (FileNotFoundError, ConnectionRefusedError):
        client.close()
        return None
    except BaseException:
        client.close()
        raise
    return client


def _asked(client: socket.socket, request: Request | HoldDeletion) -> Answer | DeletionHeld:
    client.sendall(_encode(request) + b"\n")
    with client.makefile("rb") as answer:
        line = answer.readline()
    try:
        decoded: Answer | DeletionHeld = _answers.decode(line)
    except msgspec.DecodeError as exc:
        raise ConnectionError("the server ended before it answered") from exc
    return decoded


@contextmanager
def _address(path: Path) -> Iterator[str]:
    """What to bind or connect to for `path`, which may be longer than an address can be."""
    if len(os.fsencode(path)) <= _LONGEST_ADDRESS or sys.platform != "linux":
        yield str(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)
