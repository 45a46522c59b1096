"""The transport of requests that are never sent, in worlds of virtual time."""

from __future__ import annotations

from batchline.executor.transport.contract import Answer


class Nowhere:
    """Leads nowhere: a lane only hands it on."""

    async def send(self, *_: object, **__: object) -> Answer:
        raise NotImplementedError

    async def get_json(self, *_: object, **__: object) -> Answer:
        raise NotImplementedError

    async def close(self) -> None:
        """Nothing is open."""
