"""Search by meaning in a downloaded output file; pure functions over its bytes.

Owns the way from output lines to ranked hits. Plain Python on purpose: 1,200 vectors of 384 numbers
are ranked in 30 ms, so the demo needs no array library on the client's side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import mul

import msgspec

Vector = Sequence[float]


class UnusableOutput(Exception):
    """A line of the output file is not an answered embeddings request; the message says which."""


class _Embedding(msgspec.Struct):
    embedding: list[float]


class _Body(msgspec.Struct):
    data: list[_Embedding]


class _Response(msgspec.Struct):
    status_code: int
    body: _Body


class _OutputLine(msgspec.Struct):
    custom_id: str
    response: _Response


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """One line found: its `custom_id` and its cosine similarity to the question (-1 to 1)."""

    custom_id: str
    score: float


def vectors_of(output: bytes) -> dict[str, Vector]:
    """The vector of every line of an output file, by `custom_id`, scaled to length 1.

    Raises:
        UnusableOutput: a line is not JSON of the published shape, its status is not 200, its
            vector is empty, all zero or of another length than the first one's, or a `custom_id`
            comes twice.
    """
    vectors: dict[str, Vector] = {}
    width = 0
    decoder = msgspec.json.Decoder(_OutputLine)
    for number, text in enumerate(output.splitlines(), start=1):
        try:
            line = decoder.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            raise UnusableOutput(f"output line {number} holds no embedding: {exc}") from exc
        status = line.response.status_code
        vector = line.response.body.data[0].embedding if line.response.body.data else []
        width = width or len(vector)
        if status != 200 or len(vector) != width or not any(vector):
            raise UnusableOutput(
                f"output line {number}: status {status}, {len(vector)} dimensions of {width}"
            )
        if line.custom_id in vectors:
            raise UnusableOutput(f"output line {number}: {line.custom_id!r} was answered already")
        vectors[line.custom_id] = unit(vector)
    return vectors


def unit(vector: Vector) -> Vector:
    """The same direction with length 1; `vector` must not be all zero."""
    length = math.hypot(*vector)
    return [x / length for x in vector]


def nearest(vectors: Mapping[str, Vector], question: Vector, *, count: int) -> list[Hit]:
    """The `count` lines whose vectors point most nearly where `question` does, best first.

    `vectors` are of length 1, as `vectors_of` gives them; `question` of any length but 0. Equal
    scores are ordered by `custom_id`.
    """
    direction = unit(question)
    hits = [
        Hit(custom_id=custom_id, score=sum(map(mul, vector, direction)))
        for custom_id, vector in vectors.items()
    ]
    return sorted(hits, key=lambda hit: (-hit.score, hit.custom_id))[:count]
