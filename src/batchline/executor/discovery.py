"""Looks for inference servers on this machine, for who starts Batchline without naming one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from batchline.domain.errors import UpstreamError
from batchline.executor.catalogue import read_listing
from batchline.executor.contract import BackendSettings
from batchline.executor.transport import choice
from batchline.executor.transport.contract import Transport

ANSWER_TIMEOUT_S: Final = 0.5  # a server on this machine that lists its models takes milliseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a product listens unless it was told otherwise."""

    product: str
    port: int


USUAL_PLACES: Final[Sequence[Place]] = (
    Place(product="ollama", port=11434),
    Place(product="lm-studio", port=1234),
    Place(product="vllm", port=8000),
    Place(product="llama.cpp", port=8080),
    Place(product="sglang", port=30000),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A server that listed its models. Its name is the product that usually has its port."""

    backend: BackendSettings
    models: Sequence[str]


async def find_local(
    places: Sequence[Place] = USUAL_PLACES,
    *,
    transport_for: Callable[[BackendSettings], Transport] = choice.transport_for,
) -> list[Found]:
    """Every usual place at which `/v1/models` is answered with models, in the order of `places`.

    All are asked at once; takes `ANSWER_TIMEOUT_S` at most. Other HTTP servers on those ports,
    and servers without a model, are passed over.
    """
    answers = await asyncio.gather(*(_ask(place, transport_for) for place in places))
    return [found for found in answers if found is not None]


async def _ask(place: Place, transport_for: Callable[[BackendSettings], Transport]) -> Found | None:
    backend = BackendSettings(
        name=place.product,
        # The number, not "localhost": that may be ::1 first, where most of them do not listen.
        base_url=f"http://127.0.0.1:{place.port}/v1",
        asks_places=True,
    )
    transport = transport_for(backend)
    try:
        listing = read_listing(await transport.get_json("/models", timeout_s=ANSWER_TIMEOUT_S))
    except UpstreamError:
        return None
    finally:
        await transport.close()
    return Found(backend=backend, models=listing.models) if listing.models else None
