"""Two batches of different kinds that take turns on one engine, in virtual time.

One has answers of 5 tokens, for which reading the prompt is most of the work; the other of 300. An
engine brings a third of the tokens a second or less while the first one runs, with as many in
flight: that is no loss of capacity.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final

from bench.engines import EngineShape
from bench.report import Row, Table, spread
from bench.steered import Play

KNEE: Final = 64
TOKENS: Final = (5.0, 300.0)
UNTIL_S: Final = 240.0
WARM_S: Final = 30.0
_READ_S: Final = 0.005


def by_turns(
    *, every_s: float, page: bool, slowdown: float = 1.3, fixed: bool = False, seed: int = 1
) -> float:
    """Tokens a second of both together, when they take turns that often."""
    shape = EngineShape(name="", knee=KNEE, read_s=_READ_S, page_age_s=0.0 if page else None)
    play = Play(
        shape=shape,
        seed=seed,
        tokens=TOKENS[0],
        fixed=fixed,
        ceiling=KNEE if fixed else 1024,
        slowdown=slowdown,
    )
    _turn(play, every_s, 0)
    play.run(UNTIL_S)
    return play.rate(WARM_S, UNTIL_S)


def _turn(play: Play, every_s: float, number: int) -> None:
    play.tokens = TOKENS[number % len(TOKENS)]
    play.later(every_s, partial(_turn, play, every_s, number + 1))


def table(seeds: Sequence[int]) -> Table:
    """As a share of what as many as the knee come to all the time."""
    rows: list[Row] = []
    for every_s in (10.0, 30.0, 60.0):
        best = {
            seed: by_turns(every_s=every_s, page=False, fixed=True, seed=seed) for seed in seeds
        }
        row: Row = {"turns of, s": every_s}
        for name, page, slowdown in (
            ("a page", True, 1.3),
            ("no page, nobody is made way for", False, 0.0),
            ("no page", False, 1.3),
        ):
            shares = [
                by_turns(every_s=every_s, page=page, slowdown=slowdown, seed=seed) / best[seed]
                for seed in seeds
            ]
            row[name] = spread(shares)
        rows.append(row)
    return Table(f"Two kinds of lines by turns, as a share of {KNEE} at once", rows)
