"""Tokens before anybody has counted them."""

from __future__ import annotations

import json

import pytest

from batchline.domain.model import Usage
from batchline.executor.estimates import Estimator

CHAT = "/v1/chat/completions"


def body(**members: object) -> bytes:
    return json.dumps({"model": "m", **members}).encode()


@pytest.mark.parametrize(
    ("members", "generated"),
    [
        ({"max_tokens": 100}, 100),
        ({"max_completion_tokens": 50, "max_tokens": 100}, 50),
        ({"max_output_tokens": 70}, 70),
        ({"max_tokens": 100, "n": 3}, 300),
        ({}, 256),
        ({"max_tokens": None, "n": None}, 256),
        ({"max_tokens": -1}, 256),
        ({"max_tokens": "all of them"}, 256),
    ],
)
def test_a_guess_is_the_bytes_and_what_may_be_generated(
    members: dict[str, object], generated: int
) -> None:
    sent = body(**members)
    assert Estimator().guess(sent, CHAT) == len(sent) / 4 + generated


@pytest.mark.parametrize(
    "members", [{"max_tokens": 10**400}, {"max_tokens": 10**300, "n": 10**300}, {"n": 10**400}]
)
def test_numbers_that_are_no_float_are_a_guess_too(members: dict[str, int]) -> None:
    """If this fails, one line of a file ends each worker that comes to it, before it is tried, so
    that nobody ever suspects it."""
    assert 10**9 <= Estimator().guess(body(**members), CHAT) < 10**19


def test_embeddings_generate_nothing() -> None:
    assert Estimator().guess(b"x" * 400, "/v1/embeddings") == 100


def test_what_is_no_json_is_guessed_too() -> None:
    assert Estimator().guess(b"{" * 400, CHAT) == 100 + 256


def test_answers_teach_how_far_off_guesses_are() -> None:
    one = Estimator()
    for _ in range(100):
        one.learn(300.0, Usage(input_tokens=80, output_tokens=20, total_tokens=100))
    assert one.scale == pytest.approx(1 / 3, rel=0.02)
    assert one.output == pytest.approx(20, rel=0.1)


def test_one_absurd_answer_does_not_teach_much() -> None:
    one = Estimator()
    for _ in range(100):
        one.learn(100.0, Usage(total_tokens=100))
    one.learn(100.0, Usage(total_tokens=10**12))
    assert one.scale < 2
