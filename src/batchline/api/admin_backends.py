"""What the admin socket says of backends: how each stands, and draining one for maintenance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec


class ListBackends(msgspec.Struct, frozen=True, tag="list_backends"):
    pass


class SetDrained(msgspec.Struct, frozen=True, tag="set_drained"):
    """Send nothing more to a backend, or send again; what runs there runs to its end."""

    name: str
    drained: bool


class ShownBackend(msgspec.Struct, frozen=True, kw_only=True):
    """One backend. `circuit` is `admits`, or the code of why it is closed; `quiet`: nothing of ours
    runs there. `reason` says why lines wait for it, `code` the same for programs.

    `permits` may be in use, of `max_in_flight`; `in_flight` are, as of a second ago at most.
    """

    name: str
    state: str
    base_url: str
    weight: float
    max_in_flight: int
    permits: int
    in_flight: int
    circuit: str
    drained: bool
    quiet: bool
    reason: str | None
    models: list[str] | None
    code: str | None = None  # older servers do not tell


class BackendsListed(msgspec.Struct, frozen=True, tag="backends_listed"):
    backends: list[ShownBackend]


class Backends(Protocol):
    """The backends of the server that answers."""

    def shown(self) -> Sequence[ShownBackend]:
        """All of them, in the order of the settings."""

    async def set_drained(self, name: str, *, drained: bool) -> None:
        """As `service.drains.Drains.set`."""


async def answer_about(request: ListBackends | SetDrained, backends: Backends) -> BackendsListed:
    """Do what is asked, and show the backends that it was about.

    Raises:
        BatchlineError: it was not done.
    """
    if isinstance(request, ListBackends):
        return BackendsListed(list(backends.shown()))
    await backends.set_drained(request.name, drained=request.drained)
    return BackendsListed([one for one in backends.shown() if one.name == request.name])
