"""Which transport carries a backend's requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from batchline.executor.contract import BackendSettings, Transport
from batchline.executor.transport.general import GeneralTransport
from batchline.executor.transport.http1 import Http1Transport

AUTO: Final = "auto"
_MADE: Final[Mapping[str, Callable[[BackendSettings], Transport]]] = {
    "general": GeneralTransport,
    "http1": Http1Transport,
}
TRANSPORTS: Final = (AUTO, *_MADE)


def transport_for(backend: BackendSettings) -> Transport:
    """The one that its settings name; by `auto` the fast one for `http://`, the general for TLS.

    Raises:
        ValueError: the backend's address or a header cannot be used with it.
    """
    name = backend.transport
    if name == AUTO:
        name = "http1" if backend.base_url.startswith("http://") else "general"
    return _MADE[name](backend)
