"""A batch's progress on stderr: a bar on a terminal, now and then a line everywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from batchline.cli import wording
from batchline.domain.forecast import Pace, TimeLeft

LINE_EVERY_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Told:
    """What a server says of a batch's pace; None is what cannot be told."""

    lines_per_s: float | None
    left: TimeLeft | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What is known of a batch at one moment. `note` says what it waits for, "" when nothing.

    Without what a server has `told`, rate and time left are those that were seen here.
    """

    status: str
    completed: int
    failed: int
    total: int
    note: str = ""
    told: Told | None = None

    @property
    def finished(self) -> int:
        return self.completed + self.failed


class ProgressView:
    """Shows sights of one batch, as `with ProgressView() as view`."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._pace = Pace()
        self._seen = 0  # finished lines that the pace knows of
        console = Console(stderr=True)
        self._bar = _bar(console) if console.is_terminal else None
        self._task = None if self._bar is None else self._bar.add_task("", total=None, tail="")
        self._said: tuple[str, str] | None = None  # the status and note of the last line
        self._said_at_s = 0.0

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, sight: Sight) -> None:
        now_s = self._clock()
        if sight.finished > self._seen:
            self._pace.settled(now_s, sight.finished - self._seen)
            self._seen = sight.finished
        if self._bar is not None and self._task is not None:
            self._bar.update(
                self._task,
                description=sight.status,
                total=sight.total or None,
                completed=sight.finished,
                tail=self._tail(sight, now_s),
            )
            return
        key = (sight.status, sight.note)
        if key != self._said or now_s - self._said_at_s >= LINE_EVERY_S:
            self._said, self._said_at_s = key, now_s
            tail = self._tail(sight, now_s)
            sys.stderr.write(f"{sight.status}: {tail}\n" if tail else f"{sight.status}\n")
            sys.stderr.flush()

    def _tail(self, sight: Sight, now_s: float) -> str:
        parts = [f"{sight.finished} of {sight.total}"] if sight.total else []
        if sight.failed:
            parts.append(f"{sight.failed} failed")
        if sight.finished < sight.total:
            told = sight.told or self._own(now_s, sight.total - sight.finished)
            if told.lines_per_s is not None:
                parts.append(wording.rate(told.lines_per_s))
            if told.left is not None:
                parts.append(wording.time_left(told.left))
        if sight.note:
            parts.append(sight.note)
        return ", ".join(parts)

    def _own(self, now_s: float, lines: int) -> Told:
        rates = self._pace.rates(now_s)
        return Told(
            None if rates is None else rates.lines_per_s,
            self._pace.left(now_s, lines),
        )


def _bar(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[tail]}", markup=False),
        console=console,
    )
