"""What happens to batches and files, as the API's contract has it, in as few words as will do.

No I/O, no shards, no epochs, no races: one thing happens after another. What a client may see of a
batch at any moment is `Batch.shown`, and what its files have to hold `Batch.output` and
`Batch.errors`. It shares nothing with the product but the names of the statuses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Final

from batchline.domain.lifecycle import BatchStatus as S

ENDS: Final = frozenset({S.COMPLETED, S.FAILED, S.EXPIRED, S.CANCELLED})


class Held(IntEnum):
    """Where the test holds a batch up, so that it does not go on by itself; the greater one counts.

    END: before its files are written. PLAN: its input is being validated. MOVE: before the move to
    another status that is due.
    """

    END = 1
    PLAN = 2
    MOVE = 3


@dataclass
class Input:
    """An input file: the custom_ids of its lines; `good` unless one line is invalid."""

    lines: Sequence[str]
    good: bool
    deleted: bool = False


@dataclass
class Batch:
    """One batch. `lines` are None when it was created without an input that can be used."""

    lines: Sequence[str] | None
    expires_at: int
    status: S = S.VALIDATING
    started: bool = False
    why: S | None = None  # what it ends as, once it is stopped
    reached: set[S] = field(default_factory=set)
    results: dict[str, bool] = field(default_factory=dict)  # committed: custom_id -> succeeded
    deleted: set[str] = field(default_factory=set)  # of "output" and "error"

    def to(self, status: S) -> None:
        self.status = status
        self.reached.add(status)

    @property
    def ended(self) -> bool:
        return self.status in ENDS

    @property
    def settled(self) -> bool:
        return self.started and len(self.results) == len(self.lines or ())

    @property
    def output(self) -> set[str]:
        """The custom_ids in the output file."""
        return {line for line, succeeded in self.results.items() if succeeded}

    @property
    def errors(self) -> dict[str, str | None]:
        """The custom_ids in the error file with the code of a line that did not run."""
        failed: dict[str, str | None] = {
            i: None for i, succeeded in self.results.items() if not succeeded
        }
        code = {S.CANCELLED: "batch_cancelled", S.EXPIRED: "batch_expired"}.get(self.status)
        if not self.started or code is None:
            return failed
        return failed | {line: code for line in self.lines or () if line not in self.results}

    @property
    def shown(self) -> dict[str, Any]:
        """What a client sees: status, counts, which instants are set, which files there are."""
        return {
            "status": self.status.value,
            "total": len(self.lines or ()) if self.started else 0,
            "completed": len(self.output),
            "failed": len(self.results) - len(self.output),
            "reached": sorted(self.reached),
            "output": self.ended and bool(self.output),
            "error": self.ended and bool(self.errors),
            "problems": self.status is S.FAILED,
        }


@dataclass
class Reference:
    """Everything there is. Batches and inputs have the test's own numbers, from 0."""

    now: int
    inputs: list[Input] = field(default_factory=list)
    batches: list[Batch] = field(default_factory=list)
    keys: dict[str, tuple[object, int]] = field(default_factory=dict)  # key -> order, batch

    # -- what clients do -------------------------------------------------------------------

    def upload(self, lines: Sequence[str], *, good: bool) -> None:
        self.inputs.append(Input(lines, good))

    def delete_input(self, number: int) -> None:
        """Batches that were created before go on with it."""
        self.inputs[number].deleted = True

    def delete_result(self, number: int, kind: str) -> None:
        self.batches[number].deleted.add(kind)

    def create(self, source: int, window_s: int, key: str | None) -> int | None:
        """The batch's number, which is an older one's if the key is; None: the key is taken."""
        order = (source, window_s)
        if key is not None and key in self.keys:
            known, number = self.keys[key]
            return number if known == order else None
        file = self.inputs[source]
        lines = None if file.deleted else file.lines
        if key is not None:
            self.keys[key] = order, len(self.batches)
        self.batches.append(Batch(lines, self.now + window_s))
        return len(self.batches) - 1

    def cancel(self, number: int) -> int:
        """The status of the answer."""
        batch = self.batches[number]
        if not batch.ended:
            batch.why = S.CANCELLED
            batch.to(S.CANCELLING)
        return 409 if batch.ended and batch.status is not S.CANCELLED else 200

    # -- what the server does --------------------------------------------------------------

    def plan(self, number: int, *, good: bool) -> None:
        """The validation ended."""
        batch = self.batches[number]
        if batch.status is S.VALIDATING:
            batch.started = good
            batch.to(S.IN_PROGRESS if good else S.FAILED)

    def settle(self, number: int, results: Mapping[str, bool]) -> None:
        """Results are committed. Nobody's result is ever replaced."""
        batch = self.batches[number]
        assert not batch.ended
        assert not batch.results.keys() & results
        batch.results.update(results)

    def close_window(self, number: int) -> None:
        batch = self.batches[number]
        if batch.status is S.VALIDATING:
            batch.to(S.EXPIRED)
        elif batch.status is S.IN_PROGRESS:
            batch.why = S.EXPIRED
            batch.to(S.FINALIZING)

    def finish_lines(self, number: int) -> None:
        batch = self.batches[number]
        if batch.status is S.IN_PROGRESS:
            batch.why = S.COMPLETED
            batch.to(S.FINALIZING)

    def move(self, number: int, status: str, event: str) -> None:
        """A move that the server had decided on is made, if the batch is still in `status`."""
        if self.batches[number].status == status:
            (self.close_window if event == "window_closed" else self.finish_lines)(number)

    def start_again(self) -> None:
        """The server was down: windows that closed meanwhile come first."""
        for number, batch in enumerate(self.batches):
            if self.now >= batch.expires_at:
                self.close_window(number)

    def go_on(self, held: Mapping[int, Held]) -> None:
        """Let everything happen that happens by itself."""
        for number in range(len(self.batches)):
            self._go_on(number, held.get(number))

    def _go_on(self, number: int, held: Held | None) -> None:
        batch = self.batches[number]
        if held is not Held.MOVE:
            if batch.status is S.VALIDATING and batch.lines is None:
                self.plan(number, good=False)
            if batch.status is S.IN_PROGRESS and batch.settled:
                self.finish_lines(number)
            if self.now >= batch.expires_at:
                self.close_window(number)
        if batch.status in (S.FINALIZING, S.CANCELLING) and held is None:
            assert batch.why is not None
            batch.to(batch.why)
