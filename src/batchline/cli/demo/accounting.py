"""What became of every line, recomputed from the files and held against what the server said.

Owns the bookkeeping of the demo; pure functions over bytes and numbers. Nothing is taken from the
batch object that the files can tell: the object is what is being checked.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final, TypeVar

import msgspec

UNFINISHED_CODES: Final = frozenset({"batch_cancelled", "batch_expired"})

# A request is stamped by a backend whose interpreter is busy with a forward pass, so the stamp of
# one that was sent before the acknowledgement can be this much late. The server's own tests stamp
# with an idle backend and allow nothing.
ARRIVAL_STAMP_S: Final = 0.1


class _InputLine(msgspec.Struct):
    custom_id: str


class _Response(msgspec.Struct):
    status_code: int


class _Error(msgspec.Struct):
    code: str | None


class _ResultLine(msgspec.Struct):
    """A line of either file; `response` and `error` must both be there, one of them null."""

    custom_id: str
    response: _Response | None
    error: _Error | None


Line = TypeVar("Line", _InputLine, _ResultLine)


class Mismatch(Exception):
    """Two sources disagree about the same lines; the message names both and their numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """`request_counts` of a batch object."""

    total: int
    completed: int
    failed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Every input line in exactly one of three places.

    `finished` lines have a 2xx answer in the output file, `failed` ones ran and ended in an error,
    `unfinished` ones have no result because the batch was stopped.
    """

    finished: int
    failed: int
    unfinished: int

    @property
    def total(self) -> int:
        return self.finished + self.failed + self.unfinished


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a backend counted over one batch; instants in Unix seconds.

    `received` requests, of which it `answered` some and saw the client close the others early.
    """

    received: int
    answered: int
    aborted: int
    last_arrival_at: float
    quiet_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelReceipt:
    """How a cancelled batch ended, line by line and in milliseconds after the cancel call began.

    `aborted` lines were sent and have no result; `never_sent` ones did not reach the backend.
    `last_arrival_ms` is when the last request reached the backend; negative before the call.
    """

    finished: int
    failed: int
    aborted: int
    never_sent: int
    acknowledged_ms: float
    last_arrival_ms: float
    quiet_ms: float


def settle_account(
    *, input_file: bytes, output_file: bytes | None, error_file: bytes | None, counts: Counts
) -> Account:
    """Account for every line of a batch that has ended.

    A file that the batch does not have is None.

    Raises:
        Mismatch: a line is missing, there twice, in the wrong file or not of the input; a file
            exists without a line; or `counts` are not what the files say.
    """
    wanted = Counter(line.custom_id for line in _lines(input_file, _InputLine, "input file"))
    output = _lines(output_file, _ResultLine, "output file")
    errors = _lines(error_file, _ResultLine, "error file")
    for line in output:
        if not _is_answer(line):
            raise Mismatch(f"output file: line {line.custom_id!r} is not a 2xx answer")
    for line in errors:
        if _is_answer(line) or (line.response is None) == (line.error is None):
            raise Mismatch(f"error file: line {line.custom_id!r} is not a failed or unfinished one")
    _same_lines(wanted, Counter(line.custom_id for line in (*output, *errors)))
    unfinished = sum(
        line.error is not None and line.error.code in UNFINISHED_CODES for line in errors
    )
    account = Account(finished=len(output), failed=len(errors) - unfinished, unfinished=unfinished)
    counted = Counts(total=account.total, completed=account.finished, failed=account.failed)
    if counted != counts:
        raise Mismatch(f"the files say {counted}, the batch object says {counts}")
    return account


def settle_cancel(
    account: Account, seen: Seen, *, cancelled_at: float, acknowledged_at: float
) -> CancelReceipt:
    """Tell the aborted lines from those never sent, by what the backend saw of the same batch.

    `cancelled_at` and `acknowledged_at` are the client's clock around the cancel call; the backend
    runs on the same machine, so the instants compare.

    Raises:
        Mismatch: the backend's numbers do not fit the files (answers that nobody sent for, more
            requests than lines, requests that neither ended nor were closed), or a request
            reached the backend after the cancel had been acknowledged.
    """
    settled = account.finished + account.failed
    if seen.received != seen.answered + seen.aborted:
        raise Mismatch(f"the backend is not quiet: {seen}")
    if seen.answered < settled:
        raise Mismatch(f"{settled} lines have results, the backend answered {seen.answered}")
    if seen.received > account.total:
        raise Mismatch(f"{account.total} lines, but the backend received {seen.received} requests")
    if seen.last_arrival_at > acknowledged_at + ARRIVAL_STAMP_S:
        late_ms = (seen.last_arrival_at - acknowledged_at) * 1000
        raise Mismatch(f"a request arrived {late_ms:.0f} ms after the cancel was acknowledged")
    return CancelReceipt(
        finished=account.finished,
        failed=account.failed,
        # Not `seen.aborted`: an answer on its way at the moment of the abort was given, but the
        # line has no result and is in the error file as what it is, unfinished.
        aborted=seen.received - settled,
        never_sent=account.total - seen.received,
        acknowledged_ms=(acknowledged_at - cancelled_at) * 1000,
        last_arrival_ms=(seen.last_arrival_at - cancelled_at) * 1000,
        quiet_ms=max(0.0, seen.quiet_at - cancelled_at) * 1000,
    )


def _is_answer(line: _ResultLine) -> bool:
    response = line.response
    return response is not None and line.error is None and 200 <= response.status_code < 300


def _lines(file: bytes | None, shape: type[Line], name: str) -> list[Line]:
    if file == b"":
        raise Mismatch(f"the {name} exists but has no line")
    decoder = msgspec.json.Decoder(shape)
    lines = []
    for number, text in enumerate((file or b"").splitlines(), start=1):
        try:
            lines.append(decoder.decode(text))
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            raise Mismatch(f"{name}, line {number}: {exc}") from exc
    return lines


def _same_lines(wanted: Counter[str], got: Counter[str]) -> None:
    """Every custom_id once on both sides."""
    missing, extra = wanted - got, got - wanted
    if missing or extra:
        raise Mismatch(
            f"{sum(missing.values())} input lines have no result (first: "
            f"{next(iter(missing), None)!r}), {sum(extra.values())} results belong to no line or "
            f"came twice (first: {next(iter(extra), None)!r})"
        )
