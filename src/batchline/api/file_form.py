"""The form of `POST /v1/files`: the file, its purpose, and when it is to expire."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from starlette.requests import Request

from batchline.api.multipart import receive_form
from batchline.domain.errors import InvalidRequest
from batchline.domain.model import File
from batchline.service.bodies import missing
from batchline.service.file_rules import check_expiry, parse_purpose
from batchline.service.files import IncomingFile

_ANCHOR: Final = "expires_after.anchor"
_SECONDS: Final = "expires_after.seconds"
_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,18}")


async def receive_file(request: Request, incoming: IncomingFile, *, max_bytes: int) -> File:
    """Read the form, write its `file` to `incoming` as it comes, and make it a file.

    `max_bytes` is the size that the file may have.

    Raises:
        InvalidRequest: the form is not what 1.1 of the contract asks for.
        ClientDisconnect: the client went away.
    """
    form = await receive_form(
        request,
        incoming,
        binary="file",
        max_bytes=max_bytes,
        fields={"purpose": parse_purpose, _ANCHOR: str, _SECONDS: str},
    )
    if "purpose" not in form.fields:
        raise InvalidRequest("'purpose' is a required property", param="purpose")
    return await incoming.finish(
        filename=form.filename,
        purpose=parse_purpose(form.fields["purpose"]),
        expires_after_s=_expires_after_s(form.fields),
    )


def _expires_after_s(fields: Mapping[str, str]) -> int | None:
    anchor, seconds = fields.get(_ANCHOR), fields.get(_SECONDS)
    if anchor is None and seconds is None:
        return None
    if anchor is None or seconds is None:
        raise missing(_ANCHOR if anchor is None else _SECONDS)
    if anchor != "created_at":
        raise InvalidRequest(
            f"Invalid value: '{anchor}'. Value must be 'created_at'.",
            param=_ANCHOR,
            wire_code="invalid_value",
        )
    if _INTEGER.fullmatch(seconds) is None:
        raise InvalidRequest(
            f"Invalid type for '{_SECONDS}': expected an integer, but got a string instead.",
            param=_SECONDS,
            wire_code="invalid_type",
        )
    return check_expiry(int(seconds), param=_SECONDS)
