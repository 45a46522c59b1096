"""What may be asked of uploads in parts: the bodies of create and complete, checked."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from batchline.domain.errors import InvalidRequest
from batchline.domain.ids import PartId
from batchline.domain.model import Purpose
from batchline.service.bodies import (
    expires_after,
    missing,
    object_of,
    refuse_unknown,
    required_integer,
    required_text,
    wrong_type,
)
from batchline.service.file_rules import check_batch_filename, parse_purpose, printable_name

MAX_FILENAME_CHARS: Final = 4_096

_UPLOAD_FIELDS: Final = ("filename", "purpose", "bytes", "mime_type", "expires_after")
_COMPLETION_FIELDS: Final = ("part_ids", "md5")
_MD5: Final = re.compile(r"[0-9a-fA-F]{32}")


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadOrder:
    """A checked body of `POST /v1/uploads`. Its `mime_type` must be there, and says nothing."""

    filename: str
    purpose: Purpose
    bytes: int
    expires_after_s: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A checked body of a complete: no part twice; `md5` in lower case, None when not given."""

    part_ids: Sequence[PartId]
    md5: str | None

    @property
    def recipe(self) -> str:
        """The same for the same parts in the same order, and in no other case."""
        # Ids as given may hold anything; lengths keep two lists apart that read alike when joined.
        listed = ",".join(f"{len(part_id)}:{part_id}" for part_id in self.part_ids)
        return hashlib.sha256(listed.encode()).hexdigest()


def parse_upload(body: object, *, max_bytes: int) -> UploadOrder:
    """Check the body of a create, field by field.

    Raises:
        InvalidRequest: with the first problem found.
    """
    body = object_of(body)
    filename = _filename(body)
    purpose = parse_purpose(required_text(body, "purpose"))
    if purpose is Purpose.BATCH:
        check_batch_filename(filename)
    size = _size(body, max_bytes)
    required_text(body, "mime_type")
    order = UploadOrder(
        filename=filename,
        purpose=purpose,
        bytes=size,
        expires_after_s=expires_after(body, "expires_after"),
    )
    refuse_unknown(body, _UPLOAD_FIELDS)
    return order


def parse_completion(body: object) -> Completion:
    """Check the body of a complete.

    Raises:
        InvalidRequest: with the first problem found.
    """
    body = object_of(body)
    order = Completion(part_ids=_part_ids(body), md5=_md5(body))
    refuse_unknown(body, _COMPLETION_FIELDS)
    return order


def _filename(body: Mapping[str, object]) -> str:
    filename = printable_name(required_text(body, "filename"))
    if not 0 < len(filename) <= MAX_FILENAME_CHARS:
        raise InvalidRequest(
            f"Invalid 'filename': expected 1 to {MAX_FILENAME_CHARS} characters.",
            param="filename",
            wire_code="invalid_value",
        )
    return filename


def _size(body: Mapping[str, object], max_bytes: int) -> int:
    size = required_integer(body, "bytes")
    if size < 1:
        raise InvalidRequest(
            "Invalid 'bytes': integer below minimum value. "
            f"Expected a value >= 1, but got {size} instead.",
            param="bytes",
            wire_code="integer_below_min_value",
        )
    if size > max_bytes:
        raise InvalidRequest(
            "Invalid 'bytes': integer above maximum value. "
            f"Expected a value <= {max_bytes}, but got {size} instead.",
            param="bytes",
            wire_code="integer_above_max_value",
        )
    return size


def _part_ids(body: Mapping[str, object]) -> Sequence[PartId]:
    value = body.get("part_ids")
    if value is None:
        raise missing("part_ids")
    if not isinstance(value, list):
        raise wrong_type("part_ids", "an array of strings", value)
    seen: dict[PartId, None] = {}
    for index, part_id in enumerate(value):
        if not isinstance(part_id, str):
            raise wrong_type(f"part_ids[{index}]", "a string", part_id)
        if part_id in seen:
            raise InvalidRequest(
                f"Invalid 'part_ids': {part_id} is listed twice.",
                param="part_ids",
                wire_code="invalid_value",
            )
        seen[PartId(part_id)] = None
    return list(seen)


def _md5(body: Mapping[str, object]) -> str | None:
    if body.get("md5") is None:
        return None
    md5 = required_text(body, "md5")
    if _MD5.fullmatch(md5) is None:
        raise InvalidRequest(
            "Invalid 'md5': expected 32 hexadecimal digits.",
            param="md5",
            wire_code="invalid_value",
        )
    return md5.lower()
