"""Hits come from the lines of an output file, and a line that is no answer is an error."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchline.cli.demo.search import Hit, UnusableOutput, nearest, unit, vectors_of


def output_line(
    custom_id: str, vector: list[float], *, status: int = 200, error: object = None
) -> bytes:
    body = {"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": vector}]}
    response = {"status_code": status, "request_id": "req_1", "body": body}
    line = {"id": "batch_req_1", "custom_id": custom_id, "response": response, "error": error}
    return json.dumps(line).encode() + b"\n"


def test_the_best_hit_points_where_the_question_does() -> None:
    output = (
        output_line("east", [2.0, 0.0])
        + output_line("north", [0.0, 3.0])
        + output_line("north-east", [0.5, 0.5])
    )
    hits = nearest(vectors_of(output), [0.1, 4.0], count=2)
    assert [hit.custom_id for hit in hits] == ["north", "north-east"]
    assert hits[0].score == pytest.approx(math.cos(math.atan2(0.1, 4.0)))


def test_equal_scores_are_ordered_by_custom_id() -> None:
    output = output_line("b", [1.0, 0.0]) + output_line("a", [2.0, 0.0])
    assert nearest(vectors_of(output), [1.0, 0.0], count=5) == [
        Hit(custom_id="a", score=1.0),
        Hit(custom_id="b", score=1.0),
    ]


@pytest.mark.parametrize(
    ("output", "complaint"),
    [
        (b"{not json}\n", "line 1 holds no embedding"),
        (b"\xff\n", "line 1 holds no embedding"),
        (output_line("a", [1.0]) + b"\n", "line 2 holds no embedding"),
        (b'{"custom_id": "a", "response": null, "error": {}}\n', "line 1 holds no embedding"),
        (output_line("a", [1.0], status=400), "line 1: status 400"),
        (output_line("a", []), "line 1: status 200, 0 dimensions"),
        (output_line("a", [0.0, 0.0]), "line 1"),
        (output_line("a", [1.0, 2.0]) + output_line("b", [1.0]), "line 2: .* 1 dimensions of 2"),
        (output_line("a", [1.0]) + output_line("a", [1.0]), "line 2: 'a' was answered already"),
    ],
)
def test_a_line_without_a_usable_vector_is_named(output: bytes, complaint: str) -> None:
    with pytest.raises(UnusableOutput, match=complaint):
        vectors_of(output)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1).filter(lambda v: math.hypot(*v) > 1e-3))
def test_a_unit_vector_has_length_one(vector: list[float]) -> None:
    assert math.hypot(*unit(vector)) == pytest.approx(1.0)
