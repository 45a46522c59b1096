"""What an audit found: counts and hashes, and the first problems by their places."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Final

import msgspec

# The order in which the files are read, and problems are named.
FILES: Final = ("batch", "input", "output", "errors")


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One defect. `line` counts from 1; 0 for one of a whole file or of the batch object.

    `custom_id` is None where the line has none that can be read.
    """

    rank: int  # of the file in FILES
    line: int
    kind: str
    message: str
    custom_id: str | None = None

    @property
    def file(self) -> str:
        return FILES[self.rank]

    def said(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        named = "" if self.custom_id is None else f" {self.custom_id!r}"
        return f"{where}: {self.kind}:{named} {self.message}"


def problem(file: str, line: int, kind: str, message: str, custom_id: str | None = None) -> Problem:
    return Problem(FILES.index(file), line, kind, message, custom_id)


class Problems:
    """Every problem counted, the first `limit` of them kept."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: list[Problem] = []
        self.counted: Counter[str] = Counter()

    def add(self, found: Problem) -> None:
        self.counted[found.kind] += 1
        self._kept.append(found)
        if len(self._kept) > 2 * self._limit + 100:
            self._kept = self.first()

    def first(self) -> list[Problem]:
        return heapq.nsmallest(self._limit, self._kept, key=lambda one: (one.rank, one.line))


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFacts:
    """A file that was read. Two audits of the same bytes have the same hashes."""

    lines: int
    bytes: int
    sha256: str


@dataclass(slots=True, kw_only=True)
class Report:
    """`lines` says how the input's lines ended: succeeded, failed, batch_cancelled, batch_expired.

    `problems` has how many there are of each kind, `first` the first of them.
    """

    status: str | None
    files: dict[str, FileFacts] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)
    usage: dict[str, int] = field(default_factory=dict)
    problems: dict[str, int] = field(default_factory=dict)
    first: Sequence[Problem] = ()

    @property
    def sound(self) -> bool:
        return not self.problems

    def as_json(self) -> str:
        shape = {
            "object": "batchline.audit",
            "sound": self.sound,
            "status": self.status,
            "files": {name: asdict(facts) for name, facts in self.files.items()},
            "lines": self.lines,
            "usage": self.usage,
            "problems": self.problems,
            "first_problems": [
                {
                    "file": one.file,
                    "line": one.line or None,
                    "kind": one.kind,
                    "custom_id": one.custom_id,
                    "message": one.message,
                }
                for one in self.first
            ],
        }
        return msgspec.json.encode(shape).decode()

    def said(self) -> str:
        words = [
            f"{name:<8}{facts.lines} lines, {facts.bytes} bytes, sha256 {facts.sha256}"
            for name, facts in self.files.items()
        ]
        words.append("lines   " + ", ".join(f"{n} {name}" for name, n in self.lines.items()))
        if self.sound:
            return "\n".join([*words, "sound: every line of the input once, and the counts agree"])
        total = sum(self.problems.values())
        by_kind = ", ".join(f"{count} {kind}" for kind, count in sorted(self.problems.items()))
        words += [one.said() for one in self.first]
        if total > len(self.first):
            words.append(f"and {total - len(self.first)} more")
        return "\n".join(
            [*words, f"{'1 problem' if total == 1 else f'{total} problems'}: {by_kind}"]
        )
