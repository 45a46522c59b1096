"""What a worker holds, counted as shards come and go."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from batchline.domain import bitmap, ids
from batchline.domain.model import Shard, ShardKey, Usage
from batchline.executor.contract import ShardWork
from batchline.executor.holding import Holding

BATCHES = [ids.batch_id(1_750_000_000, bytes([n]) * ids.RANDOM_BYTES) for n in range(2)]
BACKENDS = ("one", "two", "three")
MODELS = ("m", "n")


def work(number: int, backends: Sequence[str]) -> ShardWork:
    shard = Shard(
        key=ShardKey(batch_id=BATCHES[number % 2], number=number),
        first_entry=0,
        entries=1,
        model=MODELS[number % 2],
        epoch=1,
        settled=bytes(bitmap.empty(1)),
        usage=Usage(),
    )
    return ShardWork(
        shard=shard, endpoint="/v1/x", input_path="", plan_path="", backends=list(backends)
    )


@given(
    st.lists(
        st.tuples(
            st.sampled_from(("begin", "handed", "end", "serve")),
            st.integers(0, 4),
            st.sets(st.sampled_from(BACKENDS)),
        )
    )
)
def test_what_is_counted_is_what_would_be_found_by_looking(
    events: Sequence[tuple[str, int, set[str]]],
) -> None:
    """If this fails, a worker is given shards without end, or none for ever, or has permits of a
    backend that it has no lines for."""
    holding = Holding()
    held: dict[ShardKey, ShardWork] = {}
    handed: set[ShardKey] = set()
    for event, number, backends in events:
        one = work(number, sorted(backends))
        key = one.shard.key
        if event == "begin" and key not in held:
            holding.begin(one)
            held[key] = one
        elif event == "handed":
            holding.handed(key)
            handed |= {key} & held.keys()
        elif event == "end":
            holding.end(key)
            held.pop(key, None)
            handed.discard(key)
        elif event == "serve":
            news = holding.serve(MODELS[number % 2], sorted(backends), [])
            found = {
                at: other.served_by(sorted(backends), [])
                for at, other in held.items()
                if other.model == MODELS[number % 2]
            }
            assert news == any(held[at] != other for at, other in found.items())
            held |= found
        assert holding.works == held
        assert set(holding.backends) == {name for one in held.values() for name in one.backends}
        for name in BACKENDS:
            assert sorted(holding.open_at(name)) == sorted(
                key.batch_id
                for key, one in held.items()
                if key not in handed and name in one.backends
            )
            for model in MODELS:
                of_model = [key for key, one in held.items() if one.model == model]
                assert holding.has(name, model) == any(name in held[k].backends for k in of_model)
                assert sorted(holding.open_at(name, (model,))) == sorted(
                    key.batch_id
                    for key, one in held.items()
                    if key not in handed and key not in of_model and name in one.backends
                )
    holding.clear()
    assert (holding.works, set(holding.backends), holding.open_at("one")) == ({}, set(), [])
