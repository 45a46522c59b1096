"""Two workers and one permit, in virtual time: whose it is, and that it is never idle."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchline.domain import bitmap
from batchline.executor.contract import BackendSettings
from tests.model.loop import QuietLoop
from tests.model.worker_world import GOOD, World, answer

STEP_S = 0.1
LATER = {"retry-after": "30"}


class Two(World):
    """The first worker has one line, the second hundreds; one of them may be in flight."""

    def __init__(self, folder: Path, loop: QuietLoop) -> None:
        rng = random.Random(1)  # noqa: S311  # a history, not a secret
        backend = BackendSettings(name="b", base_url="http://b/v1", max_in_flight=1)
        super().__init__(folder, loop, rng, [backend], workers=2)
        self.slow = False
        self.new_batch(1, shards=1, lines=1, sizes=(10,))
        self.new_batch(2, shards=1, lines=500, sizes=(10,))
        self.one, self.many = self.shards.values()
        for link, shard in zip(self.links.values(), self.shards.values(), strict=True):
            self.open(link, shard)
        self.deliver_all()

    def deliver_all(self) -> None:
        while any(link.inbox or link.outbox for link in self.links.values()):
            for link in self.links.values():
                self.deliver(link)

    def pass_time(self, seconds: float, *, status_of_one: int) -> tuple[int, int]:
        """Every request takes a step; how often the one line was there, and in how many steps
        nobody was."""
        there = idle = 0
        for _ in range(round(seconds / STEP_S)):
            self.skip(STEP_S)
            self.deliver_all()
            requests = list(self.backends["b"].requests)
            idle += not requests
            for request in requests:
                is_one = request.custom_id == 0
                there += is_one
                headers = LATER if is_one and status_of_one >= 500 else {}
                self.end(request, answer(status_of_one if is_one else 200, GOOD, headers))
        return there, idle


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Two]:
    loop = QuietLoop()
    asyncio.set_event_loop(loop)
    world = Two(tmp_path, loop)
    try:
        yield world
    finally:
        world.stop()
        asyncio.set_event_loop(None)
        loop.close()


def test_a_worker_whose_lines_wait_for_a_retry_keeps_no_permit_from_others(two: Two) -> None:
    """If this fails, a permit is with a worker that cannot use it for half of the time."""
    assert two.pass_time(2.0, status_of_one=500)[0] == 1
    there, idle = two.pass_time(25.0, status_of_one=500)
    assert (there, idle <= 2) == (0, True)
    # It is due again at 30 s, and the other has lines for far longer than that.
    there, idle = two.pass_time(10.0, status_of_one=200)
    assert (there, idle <= 5) == (1, True)
    assert bitmap.count(two.one.settled) == 1
    assert not two.many.done
