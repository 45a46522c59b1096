"""What may happen to a `World`, drawn at random."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from batchline.domain.errors import SentUnanswered
from batchline.domain.ids import BatchId
from batchline.executor import messages as m
from batchline.executor.transport.contract import Answer
from tests.model.worker_world import ASKED, AWAY, TOLD, Link, Request, World, answer


def play(world: World, steps: int, batches: Sequence[BatchId]) -> None:
    """A history: whatever may happen, in any order."""
    rng, loop = world.rng, world.loop

    def some_request() -> Request | None:
        every = [one for backend in world.backends.values() for one in backend.requests]
        return rng.choice(every) if every else None

    def ends(how: Callable[[], Answer | Exception]) -> None:
        request = some_request()
        if request is not None:
            world.end(request, how())

    def well(headers: Mapping[str, str] | None) -> None:
        request = some_request()
        if request is not None:
            lacks = request.model in world.backends[request.backend].lacks
            world.end(request, answer(404, AWAY) if lacks else answer(200, headers=headers))

    def lacks() -> None:
        backend = rng.choice(list(world.backends.values()))
        backend.lacks ^= {rng.choice(("m", "n"))}

    def unanswered(reason: str) -> Exception:
        return SentUnanswered(f"it was {reason}", reason=reason)

    def link() -> Link:
        return rng.choice(list(world.links.values()))

    def down(value: bool) -> None:
        backend = rng.choice(list(world.backends.values()))
        backend.down = value
        if value:
            for request in list(backend.requests):
                world.end(request, unanswered("reset"))
        elif rng.random() < 0.5:
            world.admission.note_up(backend.settings.name)

    def drained() -> None:
        world.admission.set_drained(rng.choice(list(world.backends)), drained=rng.random() < 0.5)

    def gate() -> None:
        world.close_gate(
            rng.choice(batches), grace_s=rng.choice((0.0, 2.0)), last_s=rng.choice((2.0, 600.0))
        )

    def refuse() -> None:
        held = [key for key, shard in world.shards.items() if shard.holder]
        if held:
            key = rng.choice(held)
            world.refuses.add(key)

    what: list[tuple[float, Callable[[], None]]] = [
        (60, lambda: world.deliver(link())),
        (8, lambda: world.open(link(), rng.choice(list(world.shards.values())))),
        (20, lambda: well(rng.choice((None, TOLD)))),
        (3, lambda: ends(lambda: answer(500, b"{}"))),
        (2, lambda: ends(lambda: answer(400, b"{}"))),
        (1, lambda: ends(lambda: answer(404, AWAY))),
        (1, lacks),
        (0.3, lambda: ends(lambda: answer(501, b"{}"))),
        (0.6, lambda: world.serve(rng.choice(("m", "n")))),
        (2, lambda: ends(lambda: answer(429, b"{}", headers=rng.choice((None, ASKED))))),
        (1, lambda: ends(lambda: answer(503, b"{}"))),
        (1, lambda: ends(lambda: answer(401, b"{}"))),
        (2, lambda: ends(lambda: answer(200, b"garbage"))),
        (3, lambda: ends(partial(unanswered, "reset"))),
        (2, lambda: ends(partial(unanswered, "timeout"))),
        (12, lambda: world.skip(rng.choice((0.01, 0.1, 0.6, 3.0)))),
        (1, lambda: down(rng.random() < 0.5)),
        (2, drained),
        (0.4, gate),
        (0.5, lambda: link().inbox.append(m.Pause(paused=rng.random() < 0.5))),
        (0.15, lambda: world.death(link())),
        (0.3, refuse),
    ]
    weights = [weight for weight, _ in what]
    acts = [act for _, act in what]
    for _ in range(steps):
        rng.choices(acts, weights)[0]()
        loop.settle()
        for one in world.links.values():
            assert one.worker._failure is None, one.worker._failure
            for lane in one.worker._lanes.values():
                assert lane.in_flight >= 0
