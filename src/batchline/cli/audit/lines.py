"""A line of an output or error file, as the API describes it, and what is wrong with one."""

from __future__ import annotations

from typing import Final, Literal

import msgspec
from msgspec import UNSET, Raw, UnsetType

from batchline.domain.model import Usage
from batchline.domain.results import Failure, usage_of

FileKind = Literal["output", "errors"]

# What the error file says of a line that never ran, and the status that a batch then has.
NOT_RUN: Final = {
    Failure.BATCH_CANCELLED.value: "cancelled",
    Failure.BATCH_EXPIRED.value: "expired",
}


class _Response(msgspec.Struct, forbid_unknown_fields=True):
    status_code: int
    request_id: str
    body: Raw


class _Error(msgspec.Struct):
    code: str
    message: str


class ResultLine(msgspec.Struct, forbid_unknown_fields=True):
    """A result; `custom_id` is None for a line that was left out because it had none."""

    id: str
    custom_id: str | None
    response: _Response | UnsetType | None = UNSET
    error: _Error | UnsetType | None = UNSET

    @property
    def not_run(self) -> str | None:
        """`batch_cancelled` or `batch_expired`, of a line that has neither answer nor failure."""
        code = self.error.code if isinstance(self.error, _Error) else None
        return code if code in NOT_RUN else None

    def usage(self) -> Usage:
        """The tokens that the answer tells; zeros where there is none."""
        if isinstance(self.response, _Response):
            return usage_of(bytes(self.response.body))
        return Usage()


_decode: Final = msgspec.json.Decoder(ResultLine).decode


def read_result(raw: bytes) -> ResultLine | str:
    """The line, or what is wrong with its shape; `raw` has no line ending."""
    try:
        raw.decode()  # msgspec does not check what it skips
        line = _decode(raw)
    except (ValueError, RecursionError):
        # Without the decoder's own words: they may quote what somebody sent.
        return "is not a result line: JSON with id, custom_id, response and error"
    response, error = line.response, line.error
    if response is UNSET or error is UNSET:
        return "lacks response or error"
    if (response is None) == (error is None):
        return "has to have either a response or an error, and the other null"
    if isinstance(response, _Response) and bytes(response.body)[:1] not in (b"{", b"["):
        return "has a body that is neither an object nor an array"
    return line


def misplaced(line: ResultLine, kind: FileKind, status: str | None) -> str | None:
    """Why the line does not belong into that file of a batch with that status, or None."""
    succeeded = isinstance(line.response, _Response) and 200 <= line.response.status_code < 300
    if kind == "output" and not succeeded:
        return "no successful answer, and in the output file"
    if kind == "errors" and succeeded:
        return "a successful answer, and in the error file"
    if status is not None and line.not_run is not None and NOT_RUN[line.not_run] != status:
        return f"{line.not_run} in a batch that is {status}"
    return None
