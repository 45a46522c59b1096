"""Start-time fair queueing: by weight, nobody waits for ever, nothing is saved up."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from batchline.domain.fairness import FairQueue, Tags

modest = settings(max_examples=100, deadline=None)


def queue_of(**weights: float) -> FairQueue[str]:
    queue: FairQueue[str] = FairQueue()
    for rank, key in enumerate(weights):
        queue.enter(key, rank)
    return queue


def serve(queue: FairQueue[str], amount: float | None = None, **weights: float) -> str:
    found = queue.first()
    assert found is not None
    key = found[2]
    queue.tags.serve(key)
    queue.tags.charge(key, (1.0 if amount is None else amount) / weights.get(key, 1.0))
    queue.moved(key)
    return key


def test_nobody_waits_nobody_is_next() -> None:
    assert queue_of().first() is None


def test_whoever_waits_alone_is_next_however_much_it_had() -> None:
    queue = queue_of(a=1)
    assert [serve(queue, 1e9) for _ in range(3)] == ["a", "a", "a"]


def test_equal_weights_take_turns_and_equal_tags_go_by_rank() -> None:
    queue = queue_of(a=1, b=1, c=1)
    assert [serve(queue) for _ in range(6)] == ["a", "b", "c", "a", "b", "c"]


def test_work_goes_by_weight() -> None:
    weights = {"a": 3.0, "b": 1.0}
    queue = queue_of(**weights)
    assert Counter(serve(queue, **weights) for _ in range(400)) == {"a": 300, "b": 100}


def test_whoever_comes_late_or_comes_back_has_saved_up_nothing() -> None:
    queue = queue_of(a=1, idle=1)
    queue.leave("idle")
    for _ in range(1000):
        serve(queue)
    queue.enter("idle", 1)
    queue.enter("new", 2)
    assert Counter(serve(queue) for _ in range(30)) == {"a": 10, "idle": 10, "new": 10}


def test_to_leave_and_come_back_at_once_gains_nothing() -> None:
    queue = queue_of(a=1, b=1)
    served = []
    for _ in range(100):
        key = serve(queue)
        served.append(key)
        if key == "a":
            queue.leave("a")
            queue.enter("a", 0)
    assert Counter(served) == {"a": 50, "b": 50}


def test_what_is_given_back_counts_at_once() -> None:
    queue = queue_of(a=1, b=1)
    assert serve(queue, 100.0) == "a"
    assert serve(queue) == "b"
    queue.tags.charge("a", -99.5)
    queue.moved("a")
    assert serve(queue) == "a"


def test_only_who_fits_is_next_and_the_others_keep_their_place() -> None:
    queue = queue_of(a=1, b=1, c=1)
    found = queue.first(lambda key: key == "c")
    assert found is not None
    assert found[2] == "c"
    assert queue.first(lambda _: False) is None
    assert [serve(queue) for _ in range(3)] == ["a", "b", "c"]


def test_queues_that_share_tags_share_what_is_paid() -> None:
    tags: Tags[str] = Tags()
    one, two = FairQueue(tags), FairQueue(tags)
    for queue in (one, two):
        queue.enter("a", 0)
        queue.enter("b", 1)
    tags.charge("a", 5.0)
    one.moved("a")
    two.moved("a")
    assert [queue.first() for queue in (one, two)] == [(0.0, 1, "b")] * 2


def test_the_heap_does_not_grow_with_what_was_served() -> None:
    queue = queue_of(a=1, b=1)
    queue.tags.charge("b", 1e12)
    queue.moved("b")
    for _ in range(10_000):
        serve(queue)
        queue.moved("b")  # as a correction does that comes to nothing
    assert len(queue._heap) < 200


demands = st.lists(
    st.tuples(st.sampled_from([0.5, 1.0, 2.0, 7.0]), st.integers(1, 20)), min_size=2, max_size=8
)


@given(demands, st.integers(50, 400))
@modest
def test_of_those_who_always_wait_no_two_are_far_apart(
    parties: list[tuple[float, int]], rounds: int
) -> None:
    """The bound of start-time fair queueing: one piece of each, by weight."""
    weights = {f"k{n}": weight for n, (weight, _) in enumerate(parties)}
    piece = {f"k{n}": size for n, (_, size) in enumerate(parties)}
    queue = queue_of(**weights)
    served = dict.fromkeys(weights, 0.0)
    for _ in range(rounds):
        found = queue.first()
        assert found is not None
        key = serve(queue, piece[found[2]], **weights)
        served[key] += piece[key] / weights[key]
        for one in weights:
            for other in weights:
                apart = served[one] - served[other]
                assert apart <= piece[one] / weights[one] + piece[other] / weights[other] + 1e-6


steps = st.lists(
    st.tuples(st.sampled_from(["enter", "leave", "serve", "back"]), st.integers(0, 4)), max_size=60
)


@given(steps)
@modest
def test_the_heap_says_what_a_look_at_all_would_say(story: list[tuple[str, int]]) -> None:
    queue: FairQueue[str] = FairQueue()
    waiting: dict[str, int] = {}
    for what, n in story:
        key = f"k{n}"
        match what:
            case "enter":
                queue.enter(key, n)
                waiting[key] = n
            case "leave":
                queue.leave(key)
                waiting.pop(key, None)
            case "serve" if waiting:
                serve(queue, n + 0.5)
            case "back" if key in queue.tags.of:
                queue.tags.charge(key, -0.25)
                queue.moved(key)
        expected = min(((queue.tags.of[k], rank, k) for k, rank in waiting.items()), default=None)
        assert queue.first() == expected
        assert len(queue) == len(waiting)
