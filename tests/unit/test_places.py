"""Whose places are asked for, when, and what is believed."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace

import pytest

from batchline.executor.catalogue import BackendReport, Reach, read_listing
from batchline.executor.contract import BackendSettings
from batchline.executor.places import AGAIN_S, MOST_PLACES, OWNER, Places, places_on
from batchline.executor.roots import at_root
from batchline.executor.transport.choice import transport_for
from batchline.executor.transport.contract import Answer
from tests.support.engine import Engine, Habits, engine

# As llama.cpp b11549 printed it with `-np 4`, shortened.
PROPS = (
    b'{"default_generation_settings":{"params":{"seed":4294967295,"top_k":40},"n_ctx":2048},'
    b'"total_slots":4,"model_alias":"tiny","model_path":"tiny.gguf","modalities":{"vision":false},'
    b'"endpoint_slots":true,"endpoint_props":false,"endpoint_metrics":true,"is_sleeping":false}'
)
MODELS = (
    b'{"models":[{"name":"tiny","model":"tiny"}],"object":"list","data":[{"id":"tiny","aliases":'
    b'["tiny"],"object":"model","created":1795904880,"owned_by":"llamacpp","meta":{"n_ctx":2048}}]}'
)


def test_the_slots_of_a_real_server_are_read_and_so_is_whose_it_is() -> None:
    assert places_on(PROPS) == 4
    assert read_listing(Answer(status=200, headers={}, body=MODELS)).owners == (OWNER,)


@pytest.mark.parametrize(
    "page",
    [
        b"",
        b"[]",
        b"{}",
        b'{"role":"router","total_slots":null}',
        b'{"total_slots":0}',
        b'{"total_slots":-1}',
        b'{"total_slots":"4"}',
        b'{"total_slots":1e99}',
        b'{"total_slots":%d}' % (MOST_PLACES + 1),
        b'{"total_slots":' + b"[" * 100_000,
        b'{"total_slots":4,"x":"\xff',
    ],
)
def test_what_is_no_number_of_places_is_not_told(page: bytes) -> None:
    assert places_on(page) is None


@pytest.mark.parametrize("owned_by", [None, 7, ["llamacpp"], {}])
def test_an_owner_of_any_shape_hides_no_model(owned_by: object) -> None:
    body = json.dumps({"data": [{"id": "m", "owned_by": owned_by}]}).encode()
    listing = read_listing(Answer(status=200, headers={}, body=body))
    assert (listing.models, listing.owners) == (("m",), ())


@dataclass(slots=True)
class Desk:
    """Places of one backend, at an engine that has `Habits`."""

    places: Places
    one: Engine
    now: list[float]
    told: list[int | None] = field(default_factory=list)

    async def look(
        self, *, reach: Reach = Reach.REACHABLE, owners: tuple[str, ...] = (OWNER,)
    ) -> list[int | None]:
        """The catalogue has looked; what was told over that."""
        before = len(self.told)
        self.places.looked(
            BackendReport(name="a", base_url="http://a/v1", reach=reach, owners=owners)
        )
        await self.places.ask()
        return self.told[before:]


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    async with engine(Habits(tells_places=True, places=3)) as one:
        backend = BackendSettings(name="a", base_url=f"{one.url}/v1", asks_places=True)
        transport = transport_for(at_root(backend, answer_s=30.0, most_bytes=1_000))
        now = [0.0]
        told: list[int | None] = []
        places = Places(
            [backend, replace(backend, name="b", asks_places=False)],
            transports={"a": transport},
            heard=lambda _, places: told.append(places),
            clock=lambda: now[0],
            answer_s=30.0,
        )
        yield Desk(places, one, now, told)
        await transport.close()


async def test_it_is_asked_once_and_again_after_a_while_or_an_outage(desk: Desk) -> None:
    assert await desk.look() == [3]
    assert await desk.look() == []
    desk.now[0] += AGAIN_S
    assert await desk.look() == [3]
    assert await desk.look(reach=Reach.UNREACHABLE) == []
    assert await desk.look() == [3]


async def test_who_is_no_llama_cpp_is_not_asked(desk: Desk) -> None:
    assert await desk.look(owners=("vllm",)) == []


async def test_when_another_engine_answers_the_places_of_the_last_one_are_over(desk: Desk) -> None:
    assert await desk.look() == [3]
    assert await desk.look(owners=()) == []  # it loads a model
    assert await desk.look(reach=Reach.UNREACHABLE) == []
    assert await desk.look(owners=("vllm",)) == [None]
    assert await desk.look(owners=("vllm",)) == []
    assert await desk.look() == [3]


async def test_a_backend_whose_number_was_set_is_not_asked(desk: Desk) -> None:
    desk.places.looked(
        BackendReport(name="b", base_url="http://b/v1", reach=Reach.REACHABLE, owners=(OWNER,))
    )
    await desk.places.ask()
    assert desk.told == []


async def test_who_does_not_answer_is_asked_after_the_next_look(desk: Desk) -> None:
    desk.one.habits = replace(desk.one.habits, key="Bearer x")  # 401 to all
    assert await desk.look() == []
    desk.one.habits = replace(desk.one.habits, key=None)
    assert await desk.look() == [3]
