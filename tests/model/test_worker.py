"""Whatever happens to workers, in any order: nothing goes out that may not, and nothing is left."""

from __future__ import annotations

import asyncio
import errno
import os
import random
from dataclasses import replace
from pathlib import Path

import pytest

from batchline.domain import bitmap
from batchline.executor import messages as m
from batchline.executor import segments
from batchline.executor.contract import BackendSettings, CancelBy, Concurrency
from tests.model.loop import QuietLoop
from tests.model.worker_histories import play
from tests.model.worker_world import AWAY, World, answer

HISTORIES = 60
STEPS = 800


def some_backends(rng: random.Random) -> list[BackendSettings]:
    """One to three, which count or do not, learn or do not, and take few at once."""
    return [
        BackendSettings(
            name=f"b{number}",
            base_url=f"http://b{number}/v1",
            max_in_flight=rng.choice((1, 2, 5, 12)),
            weight=rng.choice((0.5, 1.0, 3.0)),
            cancel=rng.choice((CancelBy.CLOSE, CancelBy.DRAIN)),
            concurrency=rng.choice((Concurrency.FIXED, Concurrency.FIXED, Concurrency.ADAPTIVE)),
            requests_per_minute=rng.choice((None, None, 60, 600)),
            tokens_per_minute=rng.choice((None, None, None, 60_000)),
        )
        for number in range(rng.choice((1, 1, 2, 3)))
    ]


@pytest.mark.parametrize("part", range(4))
def test_no_history_of_workers_breaks_a_promise_or_leaves_anything(
    part: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among the promises: no first byte behind an acknowledged gate, no more than `max_in_flight`
    of all workers, no settled line again, every line of an open batch settled in the end, and then
    no byte, permit, timer, cost or verdict left. The message names the seed."""

    def not_synced(_: object) -> None:
        """What is on disk is not the subject, and this runs in memory."""

    for name in ("sync_data", "sync_folder"):
        monkeypatch.setattr(segments, name, not_synced)
    for seed in range(part, HISTORIES, 4):
        folder = tmp_path / str(seed)
        folder.mkdir()
        try:
            history(seed, folder)
        except BaseException as exc:
            exc.add_note(f"seed {seed}")
            raise


def history(seed: int, folder: Path) -> None:
    rng = random.Random(seed)  # noqa: S311  # a history, not a secret
    loop = QuietLoop()
    asyncio.set_event_loop(loop)
    troubles: list[object] = []
    loop.set_exception_handler(lambda _, context: troubles.append(context))
    world = World(
        folder,
        loop,
        rng,
        some_backends(rng),
        workers=rng.choice((1, 2, 3)),
        byte_budget=rng.choice((1 << 20, 60_000, 3_000)),
    )
    sizes = rng.choice(((10,), (10, 2_000), (10, 1_000, 40_000)))
    batches = [
        world.new_batch(
            number + 1,
            shards=rng.choice((1, 2, 4)),
            lines=rng.choice((5, 20, 60)),
            sizes=sizes,
            once=rng.random() < 0.4,
        )
        for number in range(rng.choice((1, 2, 3)))
    ]
    try:
        play(world, STEPS, batches)
        world.heal()
        assert world.is_over, world.admission.waiting_reasons()
        world.check_nothing_is_left()
        assert not troubles
    finally:
        world.stop()
        asyncio.set_event_loop(None)
        loop.close()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_a_worker_that_can_open_no_file_says_nothing_of_the_input(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If this fails, a batch whose input is in order fails for good as `input_unreadable`."""
    loop = QuietLoop()
    asyncio.set_event_loop(loop)
    rng = random.Random(1)  # noqa: S311
    backend = BackendSettings(name="b", base_url="http://b/v1")
    world = World(tmp_path, loop, rng, [backend], workers=1)
    world.new_batch(1, shards=1, lines=2, sizes=(10,))
    (link,), (shard,) = world.links.values(), world.shards.values()

    def no_more(*_: object) -> int:
        raise OSError(number, "no more files")

    try:
        world.open(link, shard)
        monkeypatch.setattr(os, "open", no_more)
        opening = next(one for one in link.inbox if isinstance(one, m.OpenShard))
        with pytest.raises(OSError, match="no more files"):
            link.worker.handle(opening)
        assert not any(isinstance(one, m.InputUnreadable) for one in link.outbox)
    finally:
        monkeypatch.undo()
        world.stop()
        asyncio.set_event_loop(None)
        loop.close()


def test_a_line_that_is_blocked_alone_does_not_keep_all_others_waiting(tmp_path: Path) -> None:
    """Some services answer 403 to one request for what is in it. If this fails, each trial of the
    closed circuit is that line again, and nothing else goes there until its window ends."""
    loop = QuietLoop()
    asyncio.set_event_loop(loop)
    rng = random.Random(1)  # noqa: S311
    backend = BackendSettings(name="b", base_url="http://b/v1", max_in_flight=4)
    world = World(tmp_path, loop, rng, [backend], workers=1)
    world.slow = False
    world.new_batch(1, shards=1, lines=200, sizes=(10,))
    (link,), (shard,) = world.links.values(), world.shards.values()
    try:
        world.open(link, shard)
        for _ in range(600):
            while link.inbox or link.outbox:
                world.deliver(link)
            for request in list(world.backends["b"].requests):
                blocked = request.custom_id == 3
                world.end(request, answer(403 if blocked else 200, b"{}"))
            world.skip(0.1)
        assert bitmap.count(shard.settled) == 199
        world.heal()
        assert shard.done
    finally:
        world.stop()
        asyncio.set_event_loop(None)
        loop.close()


def test_a_model_that_is_away_holds_up_no_other_and_costs_a_request_a_trial(tmp_path: Path) -> None:
    """Two workers, one backend that lists both models and has only `n`. If this fails, all that a
    server has waits for one model of it that was unloaded, or is asked for over and over."""
    loop = QuietLoop()
    asyncio.set_event_loop(loop)
    rng = random.Random(1)  # noqa: S311
    backend = BackendSettings(name="b", base_url="http://b/v1", max_in_flight=4)
    world = World(tmp_path, loop, rng, [backend], workers=2)
    world.slow = False
    for number in (1, 2):
        world.new_batch(number, shards=4, lines=50, sizes=(10,))
    for at, (key, shard) in enumerate(world.shards.items()):
        one = replace(shard.work.shard, model="mn"[at % 2])
        world.shards[key].work = replace(shard.work, shard=one)
        world.open(list(world.links.values())[at // 2 % 2], world.shards[key])
    missed = 0

    def pass_time(seconds: float, *, has: str) -> None:
        nonlocal missed
        for _ in range(round(seconds * 10)):
            for link in world.links.values():
                while link.inbox or link.outbox:
                    world.deliver(link)
            for request in list(world.backends["b"].requests):
                key, _index = world._by_custom_id[request.custom_id]
                is_there = world.shards[key].work.shard.model in has
                missed += not is_there
                world.end(request, answer(200) if is_there else answer(404, AWAY))
            world.skip(0.1)

    def settled(model: str) -> int:
        shards = [one for one in world.shards.values() if one.work.shard.model == model]
        return sum(bitmap.count(one.settled) for one in shards)

    try:
        pass_time(300.0, has="n")
        assert (settled("m"), settled("n")) == (0, 200)
        assert world.admission.standings({})[0].gated is None
        # What was in flight of both workers, then trials: 0.25 s doubling to 30 s.
        assert missed <= 4 + 4 + 8 + 300 / 15
        pass_time(60.0, has="mn")
        assert settled("m") == 200
        assert world.is_over
        world.check_nothing_is_left()
    finally:
        world.stop()
        asyncio.set_event_loop(None)
        loop.close()
