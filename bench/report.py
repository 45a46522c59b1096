"""What a measurement hands back: figures, tables to read, floors that are met or missed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

Cell = str | int | float
Row = dict[str, Cell]


@dataclass(frozen=True, slots=True)
class Floor:
    """What a figure must not be beyond: `at_most`, or else `at_least`."""

    what: str
    value: float
    at_most: float | None = None
    at_least: float | None = None

    @property
    def met(self) -> bool:
        if self.at_most is not None and not self.value <= self.at_most:
            return False
        return self.at_least is None or self.value >= self.at_least

    def __str__(self) -> str:
        asked = f"at most {self.at_most:,g}" if self.at_most is not None else ""
        if self.at_least is not None:
            asked = f"at least {self.at_least:,g}"
        return f"{'met   ' if self.met else 'MISSED'}  {self.what}: {_spell(self.value)} ({asked})"


@dataclass(frozen=True, slots=True)
class Table:
    """Rows that are dictionaries with the same keys."""

    title: str
    rows: Sequence[Mapping[str, Cell]]

    def __str__(self) -> str:
        """Markdown, aligned."""
        names = list(self.rows[0])
        cells = [names, *([_spell(row[name]) for name in names] for row in self.rows)]
        widths = [max(len(row[column]) for row in cells) for column in range(len(names))]
        lines = [
            "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            for row in cells
        ]
        lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths))
        return f"{self.title}\n\n" + "\n".join(f"{line} |" for line in lines).replace("- |", "-|")


@dataclass(frozen=True, slots=True)
class Measurement:
    """One part's result. `raw` is whatever a JSON file can hold."""

    tables: Sequence[Table]
    floors: Sequence[Floor] = ()
    raw: Mapping[str, object] = field(default_factory=dict)


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def spread(values: Sequence[float], scale: float = 1.0) -> str:
    """`median (lowest to highest)`, each multiplied by `scale`."""
    low, middle, high = (scale * f(values) for f in (min, median, max))
    return f"{_spell(middle)} ({_spell(low)} to {_spell(high)})"


def _spell(value: Cell) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int) or abs(value) >= 1_000:
        return f"{value:,.0f}"
    return f"{value:.3g}"
