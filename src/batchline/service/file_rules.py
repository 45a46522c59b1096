"""What is taken as a file: its purpose, its name, its expiry, and how it has to begin. Pure."""

from __future__ import annotations

import re
from typing import Final

import msgspec

from batchline.domain.errors import InvalidRequest
from batchline.domain.model import DAY_S, Purpose

HEAD_BYTES: Final = 64 * 1024  # what is looked at to tell JSONL from something else
MIN_EXPIRY_S: Final = 3_600
MAX_EXPIRY_S: Final = 30 * DAY_S

# In the order of the service's own error message, which callers may compare.
UPLOAD_PURPOSES: Final = (
    Purpose.FINE_TUNE,
    Purpose.ASSISTANTS,
    Purpose.BATCH,
    Purpose.USER_DATA,
    Purpose.VISION,
    Purpose.EVALS,
)

_BOM: Final = b"\xef\xbb\xbf"
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # PostgreSQL refuses NUL; headers all of them


def parse_purpose(text: str) -> Purpose:
    """The purpose that an uploader may give.

    Raises:
        InvalidRequest: it is not one of the service's six.
    """
    for purpose in UPLOAD_PURPOSES:
        if text == purpose.value:
            return purpose
    allowed = ", ".join(f"'{purpose.value}'" for purpose in UPLOAD_PURPOSES)
    raise InvalidRequest(f"'{text}' is not one of [{allowed}] - 'purpose'", param="purpose")


def check_expiry(seconds: int, *, param: str) -> int:
    """`seconds` when it is from MIN_EXPIRY_S to MAX_EXPIRY_S.

    Raises:
        InvalidRequest: it is not; `param` names it.
    """
    if seconds < MIN_EXPIRY_S:
        raise InvalidRequest(
            f"Invalid '{param}': integer below minimum value. "
            f"Expected a value >= {MIN_EXPIRY_S}, but got {seconds} instead.",
            param=param,
            wire_code="integer_below_min_value",
        )
    if seconds > MAX_EXPIRY_S:
        raise InvalidRequest(
            f"Invalid '{param}': integer above maximum value. "
            f"Expected a value <= {MAX_EXPIRY_S}, but got {seconds} instead.",
            param=param,
            wire_code="integer_above_max_value",
        )
    return seconds


def check_begins_like_jsonl(filename: str, head: bytes, *, is_whole: bool) -> None:
    """Refuse what is plainly not JSONL; `head` is the beginning, or all if `is_whole`.

    The name must end in `.jsonl`. A name without an extension is allowed where the content begins
    with an object: the Python SDK calls plain bytes `upload`. Only the first line that is not blank
    is looked at; the others are the batch's validation, which names each bad line.

    Raises:
        InvalidRequest: with the service's one message for all of these.
    """
    check_batch_filename(filename)
    first, is_complete = _first_line(head.removeprefix(_BOM), is_whole=is_whole)
    starts_an_object = first.startswith(b"{")
    begins_well = starts_an_object if not is_complete else _is_json(first)
    if not begins_well or not ("." in filename or starts_an_object):
        raise _not_jsonl()


def check_batch_filename(filename: str) -> None:
    """Refuse a name with another extension than `.jsonl`; without one, the content decides.

    Raises:
        InvalidRequest: with the service's message.
    """
    _, dot, extension = filename.rpartition(".")
    if dot and extension.lower() != "jsonl":
        raise _not_jsonl()


def printable_name(filename: str) -> str:
    """`filename` with `_` in the place of control characters."""
    return _CONTROL.sub("_", filename)


def _first_line(head: bytes, *, is_whole: bool) -> tuple[bytes, bool]:
    """The first line of `head` that is not blank, and whether all of it is there."""
    rest = head.lstrip()
    line, newline, _ = rest.partition(b"\n")
    return line.rstrip(), bool(newline) or is_whole


def _is_json(line: bytes) -> bool:
    try:
        line.decode()  # msgspec does not check what it skips
        # Skipped, not read: a number that no float can hold is JSON all the same.
        msgspec.json.decode(line, type=msgspec.Raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def _not_jsonl() -> InvalidRequest:
    return InvalidRequest("Invalid file format for Batch API. Must be .jsonl")


def too_large() -> InvalidRequest:
    return InvalidRequest("File is too large.")
