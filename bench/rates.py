"""Rate limits: how much of an account's allowance is used, and how often it says no.

In virtual time: the real desk of the control process and the real lanes and meters of workers send
lines to a simulated account, so minutes take seconds and every run gives the same figures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from bench.rated_account import MINUTE_S
from bench.rated_world import Shape, World
from bench.report import Floor, Measurement, Row, Table
from bench.rig import Rig

MINUTES: Final = 20
LEAST_USED: Final = 0.98

SHAPES: Final = (
    Shape(what="requests", requests=500, tells=False),
    Shape(what="tokens", tokens=90_000, tells=False),
    Shape(what="both near", requests=300, tokens=90_000),
    Shape(what="few: 10 requests", requests=10, tells=False),
    Shape(what="many: 6,000 requests", requests=6_000, tells=False, answers_s=(0.5, 1.5)),
    Shape(what="only from headers", requests=500, tokens=90_000, known=False),
    Shape(what="a line of 90 % every 500", tokens=90_000, huge=0.9, times=6),
    Shape(what="a line of 150 % every 500", tokens=90_000, huge=1.5, times=6, judged=False),
    Shape(what="two workers", requests=500, tokens=200_000, workers=2),
    Shape(what="somebody else takes 50 %", requests=500, tokens=90_000, other=0.5),
    Shape(what="the same, no headers", tokens=90_000, other=0.5, tells=False, judged=False),
    Shape(what="estimates 3 times too high", tokens=90_000, bytes_a_token=12.0, tells=False),
    Shape(what="estimates 3 times too low", tokens=90_000, bytes_a_token=4 / 3, tells=False),
    Shape(what="counts 3 times the usage, told", tokens=90_000, counts=3.0, judged=False),
    Shape(what="the same, not told", tokens=90_000, counts=3.0, tells=False, times=6, judged=False),
    Shape(what="restart every 5 minutes", requests=500, tokens=90_000, tells=False, restarts=True),
    Shape(what="the same, rolling", requests=500, tells=False, restarts=True, window="rolling"),
    Shape(what="fixed minutes", requests=500, tells=False, window="minute"),
    Shape(what="fixed minutes, told", requests=500, window="minute"),
    Shape(what="rolling minute", requests=500, tells=False, window="rolling"),
    Shape(what="a sixtieth each second", requests=600, tells=False, window="second"),
)


@dataclass(frozen=True, slots=True)
class Found:
    """What came of a shape. `used` of the tighter allowance, without and with the first minute."""

    shape: Shape
    used: float
    used_from_start: float
    requests: int
    refused: int
    others_refused: int
    given_up: int


def run(shape: Shape, minutes: int = MINUTES) -> Found:
    """Let it run for `minutes` of virtual time."""
    world = World(shape)
    spent = []
    for minute in range(1, minutes + 1):
        if shape.restarts and minute % 5 == 3:
            world.clock.run_until((minute - 0.3) * MINUTE_S)
            world.restart()
        world.clock.run_until(minute * MINUTE_S)
        counted = [one for one in (world.account.requests, world.account.tokens) if one]
        spent.append([one.spent / one.limit for one in counted])
    return Found(
        shape,
        max((end - begin) / (minutes - 1) for begin, end in zip(spent[0], spent[-1], strict=True)),
        max(end / minutes for end in spent[-1]),
        world.account.let_through,
        world.account.refused,
        round(world.others),
        world.given_up,
    )


def measure(rig: Rig) -> Measurement:
    """Every situation; floors over those that a client can do right by."""
    minutes = max(2, round(MINUTES * rig.size.percent / 100))
    found = [run(shape, minutes * shape.times) for shape in SHAPES]
    rows: list[Row] = [
        {
            "situation": one.shape.what,
            "minutes": minutes * one.shape.times,
            "used": f"{one.used:.2%}",
            "with the first minute": f"{one.used_from_start:.2%}",
            "requests": one.requests,
            "refused": one.refused,
            "to others": one.others_refused,
            "given up": one.given_up,
        }
        for one in found
    ]
    judged = [one for one in found if one.shape.judged]
    return Measurement(
        tables=[Table("Virtual time; used: the tighter allowance, by everybody", rows)],
        floors=[
            Floor(
                "least used of an allowance", min(one.used for one in judged), at_least=LEAST_USED
            ),
            Floor("refused for the rate", sum(one.refused for one in judged), at_most=0),
        ],
        raw={"situations": rows},
    )
