"""How many requests an engine gets when nobody said how many: as many as it says that it runs."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.support.engine import MODEL, Engine, Habits, engine
from tests.support.inputs import make_lines
from tests.support.server import server, submit, wait_for

LINES = 60
LLAMA_CPP = Habits(owner="llamacpp", tells_places=True, places=3, token_s=0.005)


async def most_in_hand(one: Engine, directory: Path, *, given: int | None = None) -> int:
    """The most that the engine had at once of a whole batch."""

    def run() -> None:
        table = {"base_url": one.url, "max_in_flight": given}
        settings = None if given is None else {"backend": [table]}
        upstreams = [] if settings else [one.url]
        with server(directory, *upstreams, settings=settings) as running:
            client = running.client()
            if given is None:
                running.wait_log("backend_places", timeout_s=60.0)
            batch = submit(client, make_lines(LINES, model=MODEL))
            assert wait_for(client, batch.id, timeout_s=60.0).status == "completed"

    await asyncio.to_thread(run)
    return one.most


async def test_a_llama_cpp_gets_as_many_requests_as_it_has_slots(tmp_path: Path) -> None:
    async with engine(LLAMA_CPP) as one:
        assert await most_in_hand(one, tmp_path) <= 3


async def test_what_was_set_is_kept_whatever_the_engine_says(tmp_path: Path) -> None:
    async with engine(LLAMA_CPP) as one:
        assert 3 < await most_in_hand(one, tmp_path, given=20) <= 20
