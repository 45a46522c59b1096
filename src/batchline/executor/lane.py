"""One backend as one worker sees it: permits, circuit, and the shards that may use it.

A lane says whether a line may go now. It knows nothing of requests: the worker takes lines through
it and reports how they ended.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from batchline.executor.edits import Edits
from batchline.executor.held_models import HeldModels
from batchline.executor.level_meter import LevelMeter
from batchline.executor.line import Line, Trial
from batchline.executor.messages import LaneReport
from batchline.executor.rate_meter import RateMeter
from batchline.executor.transport.contract import Transport
from batchline.executor.turns import Source, Turns


@dataclass(slots=True, eq=False)
class Lane:
    """`in_flight` never exceeds `permits`. Owned by the worker's event loop."""

    backend: str
    transport: Transport
    edits: Edits | None = None  # None: bodies go out as they are
    meter: LevelMeter | None = None  # None: the limit is not learnt
    permits: int = 0
    permits_order: int = 0
    in_flight: int = 0
    answers: int = 0  # its own, of any kind, since the worker's start: whoever counts up lives
    told_answers: int = 0  # of these the last heartbeat knew
    admitting: bool = True
    trials: int = 0
    window: int | None = None  # None: all permits; else the slow start after a closed circuit
    owes_permits: bool = False  # `PermitsHeld` is due once in_flight is down to `permits`
    runs: Turns = field(default_factory=Turns)  # shards with lines left, and whose turn it is
    rates: RateMeter | None = None  # where the backend counts requests or tokens by the minute
    turn_of: Source | None = None  # whose turn it is as soon as the meter lets its line go
    held: HeldModels = field(init=False)  # models that the backend does not have now

    def __post_init__(self) -> None:
        self.held = HeldModels(self.runs)

    def take(self, *, most_bytes: int | None = None) -> Line | None:
        """The next line that may go to this backend now, or None; of lines of any size, or only of
        those of at most `most_bytes`."""
        allowed = self.permits
        if not self.admitting:
            if not self.trials:
                return None
        elif self.window is not None:
            allowed = min(allowed, self.window)
        if self.in_flight >= allowed:
            return None
        rates = self.rates
        if rates is not None:
            line = self._metered_line(rates, allowed - self.in_flight, most_bytes)
        elif most_bytes is None:
            line = self.runs.next_line()
        else:
            line = self._next_small(most_bytes)
        if line is None:
            if not self.admitting and most_bytes is None:
                line = self._held_line(allowed - self.in_flight)
            if line is None:
                if self.meter is not None:
                    self.meter.starved = True
                return None
        if self.meter is not None:
            line.began = self.meter.clock()
        self.in_flight += 1
        if not self.admitting:
            if line.trial is not None:  # of a model: that has to wait for the backend
                self.held.missed(line.run.work.model)
            line.trial = Trial.BACKEND
            self.trials -= 1
        return line

    def _held_line(self, room: int) -> Line | None:
        """A line of a model that the backend did not have: some line has to try its circuit."""
        line = self.held.take()
        if line is None or self.rates is None or self.rates.admits(line, room=room):
            return line
        line.run.take_back(line)
        return None

    def _next_small(self, most_bytes: int) -> Line | None:
        """Of whichever shard has one; large lines keep their place in theirs."""
        for run in self.runs:
            line = run.take_small(most_bytes)
            if line is not None:
                return line
        return None

    def _metered_line(self, rates: RateMeter, room: int, most_bytes: int | None) -> Line | None:
        """The next line if it may go now; else it stays the next, and its turn counts once."""
        if rates.waits:
            return None
        if most_bytes is not None:  # beside the others, whose turns stay as they are
            line = self._next_small(most_bytes)
            if line is None or rates.admits(line, room=room):
                return line
            line.run.take_back(line)
            return None
        line = None if self.turn_of is None else self.turn_of.take()
        self.turn_of = None
        if line is None:
            line = self.runs.next_line()
        if line is None or rates.admits(line, room=room):
            return line
        line.run.take_back(line)
        if line.trial is None:
            self.turn_of = self.source_of(line)
        else:
            self.turn_of = self.held.take_back(line)
        return None

    def source_of(self, line: Line) -> Source:
        """What gave this lane the line."""
        return line.run

    def offer(self, source: Source) -> None:
        """`source` may have lines for this lane; harmless when that is known."""
        self.held.add(source)

    def drop(self, source: Source) -> None:
        """`source` has none any more."""
        self.held.discard(source)
        if self.turn_of is source:
            self.turn_of = None

    def hold(self, model: str) -> None:
        """The backend does not have `model` (its name for it): no line of that goes there."""
        if self.turn_of is not None and self.turn_of.work.model == model:
            self.turn_of = None
        self.held.hold(model)

    def set_away(self, models: Collection[str]) -> None:
        """The control process's word on all models that the backend does not have."""
        for model in models:
            self.hold(model)
        self.held.admit_but(models)

    def ended(self, line: Line, answered: bool) -> None:
        """A line that went through this lane ended; `answered` widens a slow start by one."""
        line.trial = None
        self.in_flight -= 1
        if answered and self.window is not None:
            self.window += 1
            if self.window >= self.permits:
                self.window = None

    def fault(self) -> None:
        """A backend fault: nothing goes until the control process says so."""
        self.admitting = False
        self.trials = 0

    def set_circuit(self, *, admitting: bool, trials: int) -> None:
        """The control process's word.

        After a closed circuit the load comes back one line for each answer: to send all permits at
        once to a backend that shed would only be shed again.
        """
        if admitting and not self.admitting:
            self.window = self.in_flight + 1
        self.admitting = admitting
        self.trials = trials

    def has_answered(self) -> bool:
        """Whether there were answers since this was asked last."""
        known, self.told_answers = self.told_answers, self.answers
        return self.answers != known

    def report(self) -> LaneReport | None:
        """What the meter has to tell; None without one, or when there is nothing to tell."""
        if self.meter is None:
            return None
        return self.meter.report(
            self.backend,
            order=self.permits_order,
            permits=self.permits,
            in_flight=self.in_flight,
            full=self.admitting and self.window is None and self.permits <= self.in_flight,
        )
