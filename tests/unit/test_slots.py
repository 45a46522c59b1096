"""Slots: whatever goes wrong in our own code ends the worker, and is not lost with a task."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from batchline.executor.byte_budget import ByteBudget
from batchline.executor.lane import Lane
from batchline.executor.line import CLOSED, Line
from batchline.executor.shards import Shards
from batchline.executor.slots import DONE, Ended, Slots
from tests.unit.test_lane import lane, shard_run


class Fault(Exception):
    """Of ours."""


def raise_fault(*_: object, **__: object) -> None:
    raise Fault


class Floor:
    """One lane with lines, and who hears that all is to end."""

    def __init__(self) -> None:
        self.failed: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        self.lane = lane(shard_run(2), permits=1)
        lanes = {"b": self.lane}
        self.shards = Shards(lanes, send=self._ignore, hurry=self._ignore, released=self._ignore)
        self.slots = Slots(
            lanes,
            self.shards,
            ByteBudget(1_000),
            send=self._ignore,
            attempt=self.attempt,
            trial_worked=self._ignore,
            fail=self.failed.set_result,
        )

    async def attempt(self, lane: Lane, line: Line) -> Ended:  # noqa: ARG002
        await asyncio.sleep(0)
        line.run.in_flight.discard(line)
        return DONE

    def _ignore(self, *_: object) -> None:
        pass


async def in_an_attempt(floor: Floor, monkeypatch: pytest.MonkeyPatch) -> None:
    async def attempt(_: Lane, line: Line) -> Ended:
        await asyncio.sleep(0)
        line.run.close(CLOSED)  # else it went again at once
        raise Fault

    monkeypatch.setattr(floor.slots, "_attempt", attempt)


async def at_its_end(floor: Floor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floor.shards, "release_if_over", raise_fault)


async def before_the_next_line(floor: Floor, monkeypatch: pytest.MonkeyPatch) -> None:
    floor.slots.pump(floor.lane)
    monkeypatch.setattr(floor.shards.handing, "handed_out", raise_fault)


@pytest.mark.parametrize("where", [in_an_attempt, at_its_end, before_the_next_line])
async def test_a_fault_of_ours_is_told(
    where: Callable[[Floor, pytest.MonkeyPatch], Awaitable[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    floor = Floor()
    await where(floor, monkeypatch)
    floor.slots.pump(floor.lane)
    async with asyncio.timeout(10):
        assert isinstance(await floor.failed, Fault)
