"""`assert_conserved`: nothing lost, nothing doubled, nothing swapped, and the counts say so.

The one assertion that every end-to-end and fault test ends in. It knows the API's contract and
none of Batchline's code.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from tests.support.scripted_backend import BackendLog

TERMINAL: Final = frozenset({"completed", "failed", "expired", "cancelled"})
NOT_RUN: Final = {"batch_cancelled": "cancelled", "batch_expired": "expired"}
SHOWN: Final = 20  # problems in the message; a broken run has one per line

_LINE_ID: Final = re.compile(r"batch_req_[0-9a-f]{32}")
_MARKER: Final = re.compile(rb"\[\[id=([^\]]{1,200})\]\]")
_KEYS: Final = {"id", "custom_id", "response", "error"}
_RESPONSE_KEYS: Final = {"status_code", "request_id", "body"}
_ERROR_KEYS: Final = {"code", "message"}


class Unconserved(AssertionError):
    """What came out does not add up with what went in; the message lists the first problems."""


class BatchFields(Protocol):
    """What is read of a Batch; the official client's type has it."""

    @property
    def status(self) -> str: ...
    @property
    def output_file_id(self) -> str | None: ...
    @property
    def error_file_id(self) -> str | None: ...
    @property
    def in_progress_at(self) -> int | None: ...
    @property
    def request_counts(self) -> Any: ...  # a type of the client's own
    @property
    def usage(self) -> Any: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Conserved:
    """How the lines ended. `resent` is the backend's count of arrivals beyond the first of a line,
    0 without a witness."""

    total: int
    finished: int
    failed: int
    cancelled: int
    expired: int
    resent: int

    @property
    def not_run(self) -> int:
        return self.cancelled + self.expired


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of an output or error file. `raw` for what JSON would hide: the echoed marker."""

    where: str
    raw: bytes
    value: dict[str, Any]

    @property
    def custom_id(self) -> Any:
        return self.value.get("custom_id")

    @property
    def status_code(self) -> int | None:
        response = self.value.get("response")
        code = response.get("status_code") if isinstance(response, dict) else None
        return code if type(code) is int else None

    @property
    def not_run(self) -> bool:
        error = self.value.get("error")
        return isinstance(error, dict) and error.get("code") in NOT_RUN


def assert_conserved(
    input_bytes: bytes,
    batch: BatchFields,
    output_bytes: bytes | None,
    error_bytes: bytes | None,
    *,
    witness: BackendLog | None = None,
) -> Conserved:
    """Check a batch that has ended against its input, its files and what the backend saw.

    Raises:
        Unconserved: with every kind of problem that was found.
    """
    marks = markers_by_custom_id(input_bytes)
    found = list(_existence_problems(batch, output_bytes, error_bytes))
    output, broken_output = _lines("output", output_bytes)
    errors, broken_errors = _lines("error", error_bytes)
    found += broken_output + broken_errors
    for line in output + errors:
        found += _shape_problems(line)
    found += _place_problems(output, errors, batch.status)
    ran = _ran(batch)
    found += _once_problems(list(marks) if ran else [], output + errors)
    found += _count_problems(len(marks) if ran else 0, output, errors, batch)
    found += _usage_problems(output, batch)
    if witness is not None:
        found += _witness_problems(marks, output, errors, witness)
    if found:
        more = f"\n  ... and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        listed = "\n  ".join(found[:SHOWN])
        raise Unconserved(f"{len(found)} problems in a {batch.status} batch:\n  {listed}{more}")
    not_run = Counter(line.value["error"]["code"] for line in errors if line.not_run)
    return Conserved(
        total=len(marks),
        finished=len(output),
        failed=len(errors) - not_run.total(),
        cancelled=not_run["batch_cancelled"],
        expired=not_run["batch_expired"],
        resent=0 if witness is None else witness.resent(),
    )


def markers_by_custom_id(input_bytes: bytes) -> dict[str, bytes | None]:
    """The first marker of each input line, by custom_id; blank lines and a byte-order mark skipped.

    An input that the API refuses gives what can be read of it.
    """
    marks: dict[str, bytes | None] = {}
    for raw in input_bytes.removeprefix(b"\xef\xbb\xbf").split(b"\n"):
        try:
            custom_id = _of_input(raw.decode("utf-8", "surrogatepass"))["custom_id"]
        except (ValueError, TypeError, KeyError):
            continue
        mark = _MARKER.search(raw)
        marks[custom_id] = mark and mark[1]
    return marks


def _ran(batch: BatchFields) -> bool:
    """Whether its lines have to be accounted for: it got past validation."""
    return batch.status != "failed" and batch.in_progress_at is not None


def _existence_problems(
    batch: BatchFields, output_bytes: bytes | None, error_bytes: bytes | None
) -> Iterator[str]:
    if batch.status not in TERMINAL:
        yield f"the batch has not ended: {batch.status}"
    for name, file_id, content in (
        ("output", batch.output_file_id, output_bytes),
        ("error", batch.error_file_id, error_bytes),
    ):
        if (file_id is None) != (content is None):
            there = "no content was given" if content is None else "content was given"
            yield f"the {name} file's id is {file_id} but {there}"
        if content == b"":
            yield f"the {name} file is empty; a file without a line must not exist"
        if content and not _ran(batch):
            yield f"an {name} file of a batch that never ran"


def _lines(name: str, content: bytes | None) -> tuple[list[Line], list[str]]:
    lines: list[Line] = []
    problems: list[str] = []
    if content and not content.endswith(b"\n"):
        problems.append(f"the {name} file does not end with a newline")
    for number, raw in enumerate((content or b"").removesuffix(b"\n").split(b"\n"), 1):
        if not content:
            break
        try:
            value = _of_output(raw.decode())
        except ValueError as exc:
            problems.append(f"{name}:{number} is not JSON ({exc}): {raw[:120]!r}")
            continue
        if isinstance(value, dict):
            lines.append(Line(where=f"{name}:{number}", raw=raw, value=value))
        else:
            problems.append(f"{name}:{number} is not an object: {raw[:120]!r}")
    return lines, problems


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


# Made once: `json.loads` makes one for each line when it is to refuse something.
_of_input: Final = json.JSONDecoder().decode
_of_output: Final = json.JSONDecoder(parse_constant=_refuse).decode


def _shape_problems(line: Line) -> Iterator[str]:
    value = line.value
    keys = _KEYS | {"partial"} if line.not_run and "partial" in value else _KEYS
    if set(value) != keys:
        yield f"{line.where}: keys {sorted(value)}"
    if not _LINE_ID.fullmatch(str(value.get("id"))):
        yield f"{line.where}: id {value.get('id')!r}"
    response, error = value.get("response"), value.get("error")
    if (response is None) == (error is None):
        yield f"{line.where}: exactly one of response and error has to be null"
    if response is not None:
        yield from _response_problems(line.where, response)
    if error is not None:
        good = isinstance(error, dict) and set(error) == _ERROR_KEYS
        if not good or not all(isinstance(part, str) and part for part in error.values()):
            yield f"{line.where}: error {error!r}"


def _response_problems(where: str, response: object) -> Iterator[str]:
    if not isinstance(response, dict) or set(response) != _RESPONSE_KEYS:
        yield f"{where}: response {response!r:.120}"
        return
    status, body = response["status_code"], response["body"]
    if type(status) is not int or not isinstance(response["request_id"], str):
        yield f"{where}: status_code {status!r}, request_id {response['request_id']!r}"
    elif not isinstance(body, dict | list):
        yield f"{where}: body {body!r:.120}"


def _place_problems(output: list[Line], errors: list[Line], status: str) -> Iterator[str]:
    for line in output:
        code = line.status_code
        if code is None or not 200 <= code < 300:
            yield f"{line.where}: status {code} in the output file"
    for line in errors:
        code = line.status_code
        if code is not None and 200 <= code < 300:
            yield f"{line.where}: status {code} in the error file"
        if line.not_run and NOT_RUN[line.value["error"]["code"]] != status:
            yield f"{line.where}: {line.value['error']['code']} in a {status} batch"


def _once_problems(custom_ids: Sequence[str], lines: list[Line]) -> Iterator[str]:
    seen = Counter(str(line.custom_id) for line in lines)
    yield from (f"lost: no line for {one!r}" for one in custom_ids if one not in seen)
    known = set(custom_ids)
    yield from (f"invented: a line for {one!r}" for one in seen if one not in known)
    yield from (f"doubled: {n} lines for {one!r}" for one, n in seen.items() if n > 1)
    ids = Counter(str(line.value.get("id")) for line in lines)
    yield from (f"the line id {one} occurs {n} times" for one, n in ids.items() if n > 1)


def _count_problems(
    total: int, output: list[Line], errors: list[Line], batch: BatchFields
) -> Iterator[str]:
    counts = batch.request_counts
    failed = sum(not line.not_run for line in errors)
    for name, counted, true in (
        ("total", counts.total, total),
        ("completed", counts.completed, len(output)),
        ("failed", counts.failed, failed),
    ):
        if counted != true:
            yield f"request_counts.{name} is {counted}, the files say {true}"
    if batch.status == "completed" and counts.completed + counts.failed != counts.total:
        yield f"completed with {counts.completed} + {counts.failed} of {counts.total}"


def _usage_problems(output: list[Line], batch: BatchFields) -> Iterator[str]:
    usage = batch.usage
    if usage is None:
        return
    sums: Counter[str] = Counter()
    for line in output:
        response = line.value.get("response")
        body = response.get("body") if isinstance(response, dict) else None
        told = body.get("usage") if isinstance(body, dict) else None
        if not isinstance(told, dict):
            continue  # unknown usage counts as nothing
        sums["input_tokens"] += _tokens(told, "prompt_tokens", "input_tokens")
        sums["output_tokens"] += _tokens(told, "completion_tokens", "output_tokens")
        sums["total_tokens"] += _tokens(told, "total_tokens")
    for name in ("input_tokens", "output_tokens", "total_tokens"):
        if getattr(usage, name) != sums[name]:
            yield f"usage.{name} is {getattr(usage, name)}, the output file says {sums[name]}"


def _tokens(told: dict[str, Any], *names: str) -> int:
    value = next((told[name] for name in names if name in told), 0)
    return value if type(value) is int else 0


def _witness_problems(
    marks: dict[str, bytes | None], output: list[Line], errors: list[Line], witness: BackendLog
) -> Iterator[str]:
    statuses = witness.statuses()
    for line in output + errors:
        mark = marks.get(str(line.custom_id))
        status = line.status_code
        if mark is None or status is None:
            continue
        answered = statuses.get(mark.decode(errors="replace"), set())
        if status not in answered:
            yield f"{line.where}: the backend never answered {mark!r} with {status}"
    for line in output:
        mark = marks.get(str(line.custom_id))
        response = line.value.get("response")
        if mark is None or not isinstance(response, dict):
            continue
        # The text of the body alone: a custom_id may hold a marker too.
        echoed = _MARKER.search(line.raw, max(0, line.raw.find(b'"response"')))
        if echoed is None or echoed[1] != mark:
            yield f"{line.where}: swapped: {mark!r} got the answer to {echoed and echoed[1]!r}"
