"""Which backends are drained for maintenance: decided by a person, kept in a file, told on.

A server that starts again must not send to a machine that somebody is working on, so what is
decided lasts before it is done. It is no row: it belongs to these machines here, and a copy of the
data directory that is restored elsewhere starts without it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from batchline.domain.errors import ConfigError, NotFound, StorageFull
from batchline.durable import sync_folder


class Apply(Protocol):
    """Has the dispatch stop, or go on, sending to a backend; never waits."""

    def __call__(self, name: str, *, drained: bool) -> None: ...


class Drains:
    """Belongs to one event loop."""

    def __init__(self, note: Path, *, apply: Apply) -> None:
        """`note` is the file: a JSON list of names."""
        self._note = note
        self._apply = apply
        self._backends: Collection[str] = ()
        self._drained: list[str] = []
        self._writing = asyncio.Lock()

    def restore(self, backends: Collection[str]) -> None:
        """Drain again what was drained, of the `backends` that there are.

        Raises:
            ConfigError: the file is damaged; which backends it had is not known.
        """
        self._backends = backends
        try:
            self._drained = msgspec.json.decode(self._note.read_bytes(), type=list[str])
        except FileNotFoundError:
            return
        except (OSError, ValueError) as exc:
            raise ConfigError(
                f"{self._note} cannot be read, or is damaged; without it no backend is drained"
            ) from exc
        for name in self._drained:
            if name in backends:
                self._apply(name, drained=True)

    async def set(self, name: str, *, drained: bool) -> None:
        """Note it for good, then do it. What is so already is as good as done.

        Raises:
            NotFound: there is no such backend.
            StorageFull: it could not be noted; nothing was changed.
        """
        if name not in self._backends and (drained or name not in self._drained):
            there = ", ".join(self._backends) or "none"
            raise NotFound(f"There is no backend '{name}'; there are: {there}.")
        async with self._writing:
            others = [one for one in self._drained if one != name]
            wanted = [*others, name] if drained else others
            try:
                await asyncio.to_thread(_write, self._note, wanted)
            except OSError as exc:
                raise StorageFull(f"{self._note}: {exc.strerror}") from exc
            self._drained = wanted
        if name in self._backends:
            self._apply(name, drained=drained)


def _write(note: Path, names: Sequence[str]) -> None:
    """The file with these names, whole and on disk."""
    partial = note.with_name(f".{note.name}")
    fd = os.open(partial, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(msgspec.json.encode(names))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(note)
    sync_folder(note.parent)
