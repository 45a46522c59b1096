"""What a bad request line does to its file: refuses it, or is left out of it.

Validation (`validation.py`) finds the problems; here is what becomes of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from batchline.domain.lines import CheckedLine
from batchline.domain.model import LineProblem
from batchline.service.skipped import SkippedLines


class BadLines:
    """One bad line refuses the file; its problems are collected up to `max_problems`."""

    leaves_out = False

    def __init__(self, max_problems: int) -> None:
        self._max_problems = max_problems
        self._problems: list[LineProblem] = []

    @property
    def problems(self) -> Sequence[LineProblem]:
        """In line order."""
        return sorted(self._problems, key=lambda problem: problem.line_number or 0)

    @property
    def left_out(self) -> int:
        """How many request lines are in no plan."""
        return 0

    def note(self, problem: LineProblem, custom_id: str | None) -> None:  # noqa: ARG002  # the other's
        """A line's problem, and its id if that can be read."""
        self._problems.append(problem)

    def has_enough(self, repeats: int = 0) -> bool:
        """Whether there is no room for another problem; `repeats` are problems not named yet."""
        return max(len(self._problems), repeats) >= self._max_problems

    def entered(self, custom_id: str | None) -> CheckedLine | None:
        """What stands for a bad line in the plan, which is never used: a later line that repeats
        the id is found. None: it is not entered."""
        return None if custom_id is None else CheckedLine(custom_id, "", 0)


class LeftOut(BadLines):
    """A bad line becomes an error line at once, and its id is free for another line.

    Of the problems the first are kept, for a file in which nothing is good.
    """

    leaves_out = True

    def __init__(self, max_problems: int, lines: SkippedLines) -> None:
        super().__init__(max_problems)
        self._lines = lines

    @property
    def left_out(self) -> int:
        return self._lines.lines

    def note(self, problem: LineProblem, custom_id: str | None) -> None:
        self._lines.add(problem, custom_id)
        if not super().has_enough():
            self._problems.append(problem)

    def has_enough(self, repeats: int = 0) -> bool:  # noqa: ARG002  # the file is read to its end
        return False

    def entered(self, custom_id: str | None) -> None:  # noqa: ARG002  # as above
        return None
