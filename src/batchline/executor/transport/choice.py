"""Which transport carries a backend's requests."""

from __future__ import annotations

from batchline.executor.contract import BackendSettings, TransportName
from batchline.executor.intake import Intake
from batchline.executor.transport.contract import Transport
from batchline.executor.transport.http1 import Http1Transport


def transport_for(backend: BackendSettings, intake: Intake | None = None) -> Transport:
    """The one that its settings name; by `auto` the fast one for `http://`, the general for TLS.

    `intake` bounds what is held of large answers, together with whoever else uses it.

    Raises:
        ValueError: the backend's address or a header cannot be used with it.
    """
    name = backend.transport
    if name is TransportName.AUTO:
        plain = backend.base_url.startswith("http://")
        name = TransportName.HTTP1 if plain else TransportName.GENERAL
    intake = intake or Intake()
    if name is TransportName.HTTP1:
        return Http1Transport(backend, intake)
    # Only here: aiohttp is half of what a worker imports, and most have no use for it.
    from batchline.executor.transport.general import GeneralTransport

    return GeneralTransport(backend, intake)
