"""Prompts as they begin: what is compared, and keys by which what begins alike sorts together."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchline.domain import plan, prefixes
from batchline.domain.model import Endpoint
from batchline.domain.prefixes import (
    BOUNDARIES,
    DIGEST_BYTES,
    KEY_BYTES,
    branch,
    group_hash,
    key_of,
    levels_of,
    neighbours,
    output_limit,
    prompt_of,
    shared_bytes,
    shared_levels,
    trunk_of,
)


def line(endpoint: str = Endpoint.CHAT_COMPLETIONS, **body: Any) -> bytes:
    return json.dumps(
        {"custom_id": "a", "method": "POST", "url": endpoint, "body": {"model": "m", **body}}
    ).encode()


def prompt(raw: bytes, endpoint: str = Endpoint.CHAT_COMPLETIONS) -> bytes:
    find = prompt_of(endpoint)
    assert find is not None
    return find(raw)


def test_tools_come_before_messages_wherever_the_body_has_them() -> None:
    told = [{"role": "user", "content": 'é " \\'}]
    tools = [{"type": "function"}]
    assert (
        prompt(line(messages=told, tools=tools))
        == prompt(line(tools=tools, temperature=1, messages=told))
        == json.dumps(tools).encode() + json.dumps(told).encode()
    )


def test_prompts_of_completions_and_responses() -> None:
    assert prompt(line(prompt=["a", "b"]), Endpoint.COMPLETIONS) == b'["a", "b"]'
    found = prompt(line(input="b", instructions="a"), Endpoint.RESPONSES)
    assert found == b'"a""b"'


def test_a_cache_salt_keeps_prompts_apart() -> None:
    one, other = (prompt(line(messages=["x"], cache_salt=salt)) for salt in ("1", "2"))
    assert one[:3] == b'"1"'
    assert one != other


@pytest.mark.parametrize("endpoint", [Endpoint.EMBEDDINGS, Endpoint.MODERATIONS, Endpoint.SCORE])
def test_where_nothing_is_generated_there_is_no_prompt(endpoint: Endpoint) -> None:
    assert prompt_of(endpoint) is None


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'{"body":1}', b'{"body":' + b"[" * 5_000])
def test_what_cannot_be_read_has_an_empty_prompt(raw: bytes) -> None:
    for endpoint in (Endpoint.CHAT_COMPLETIONS, Endpoint.COMPLETIONS, Endpoint.RESPONSES):
        assert prompt(raw, endpoint) == b""
    assert output_limit(raw) is None


def test_the_limit_of_the_output() -> None:
    assert output_limit(line(max_tokens=5)) == 5
    assert output_limit(line(max_completion_tokens=7, max_tokens=5)) == 7
    assert output_limit(line(max_output_tokens=9)) == 9
    assert [output_limit(line(max_tokens=given)) for given in (None, 0, -1, "5", 1.5)] == [None] * 5
    assert output_limit(line()) is None


def test_boundaries_ascend_by_a_quarter_at_most() -> None:
    for one, other in pairwise(BOUNDARIES):
        assert one + 64 <= other <= max(one + 64, one * 5 // 4)
        assert other % 64 == 0


@given(st.integers(0, 3_000), st.integers(0, 3_000), st.integers(0, 3_000))
def test_two_keys_agree_up_to_the_last_boundary_within_what_is_shared(
    shared: int, one_more: int, other_more: int
) -> None:
    begun = b"a" * shared
    one, other = begun + b"b" * one_more, begun + b"c" * other_more
    levels = shared_levels(key_of(one), key_of(other))
    assert levels == shared_levels(key_of(other), key_of(one))
    common = shared if one_more or other_more else len(one)
    assert levels == sum(boundary <= common for boundary in BOUNDARIES)
    assert shared_bytes(levels) <= common


@given(st.lists(st.binary(max_size=3), max_size=6).map(lambda parts: b"".join(parts) * 200))
def test_a_key_has_a_digest_for_each_boundary_that_is_reached(text: bytes) -> None:
    key = key_of(text)
    assert len(key) == KEY_BYTES
    assert levels_of(key) == sum(boundary <= len(text) for boundary in BOUNDARIES)


def test_the_longest_prompts_have_every_level() -> None:
    assert levels_of(key_of(b"x" * (BOUNDARIES[-1] + 1))) == len(BOUNDARIES)


def test_what_sorts_between_two_that_share_shares_it_too() -> None:
    texts = [bytes([a]) * 300 + bytes([b]) * 300 + bytes([c]) * 300 for a in range(3)
             for b in range(3) for c in range(3)]  # fmt: skip
    keys = sorted(map(key_of, texts[::2] + texts[1::2]))
    for first in range(len(keys)):
        for last in range(first + 1, len(keys)):
            shared = shared_levels(keys[first], keys[last])
            assert all(
                shared_levels(keys[first], between) >= shared for between in keys[first:last]
            )


def test_the_trunk_is_what_most_begin_with() -> None:
    system = b"s" * 1_000
    keys = [key_of(system + b"%d" % number + b"x" * 1_000) for number in range(9)]
    assert trunk_of(keys) == key_of(system).rstrip(b"\0")
    others = [key_of(b"%d" % number + b"x" * 1_000) for number in range(8)]
    assert trunk_of([*keys, *others]) == key_of(system).rstrip(b"\0")
    assert trunk_of([*keys, *others, key_of(b"y" * 1_000)]) == b""
    assert trunk_of([]) == b""


def test_the_trunk_makes_nobody_a_neighbour() -> None:
    trunk = key_of(b"s" * 1_000).rstrip(b"\0")
    one, other = (key_of(b"s" * 1_000 + text * 1_000) for text in (b"a", b"b"))
    assert not neighbours(one, other, trunk)
    assert neighbours(one, other, b"")
    third = key_of(b"s" * 1_000 + b"a" * 600 + b"c" * 400)
    assert neighbours(one, third, trunk)
    off, like = (key_of(b"s" * 300 + b"t" * 700 + text) for text in (b"a" * 300, b"b" * 300))
    assert neighbours(off, like, trunk)
    assert not neighbours(off, one, trunk)
    assert not neighbours(one, one, one)  # all there is may be the trunk
    assert not neighbours(key_of(b""), key_of(b"x"), b"")


@given(st.lists(st.lists(st.integers(1, 3), max_size=5), min_size=3, max_size=3))
def test_neighbours_are_those_that_leave_the_trunk_alike(chains: list[list[int]]) -> None:
    one, other, trunk = (
        b"".join(digest.to_bytes(DIGEST_BYTES, "big") for digest in chain) for chain in chains
    )
    whole = one.ljust(KEY_BYTES, b"\0"), other.ljust(KEY_BYTES, b"\0")
    alike = branch(whole[0], trunk) == branch(whole[1], trunk) != 0
    assert alike == neighbours(*whole, trunk)
    assert branch(one, trunk) == branch(whole[0], trunk)


def test_a_group_has_one_number_in_every_batch_and_never_a_special_one() -> None:
    one, other = (key_of(b"s" * 1_000 + text) for text in (b"a" * 300, b"b" * 300))
    levels = shared_levels(one, other)
    assert group_hash(one, levels, 0) == group_hash(other, levels, 0)
    assert group_hash(one, levels, 0) != group_hash(one, levels, 1)
    assert group_hash(one, levels + 1, 0) != group_hash(other, levels + 1, 0)
    assert all(0 < group_hash(one, levels, piece) < 2**64 - 1 for piece in range(50))
    assert prefixes.group_hash(b"", 0, 0) == 16476032584258269876  # as in the plans of before


def test_the_orders_are_those_of_the_settings() -> None:
    assert list(plan.Order) == ["file", "prefix", "long_outputs"]
