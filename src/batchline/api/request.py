"""What a request says: its query parameters, its JSON body, whose it is."""

from __future__ import annotations

import re
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from batchline.api import wire
from batchline.api.access import caller_of
from batchline.api.errors import PayloadTooLarge, UnsupportedEncoding
from batchline.domain.errors import InvalidRequest
from batchline.domain.ids import KeyId, ProjectId

MAX_JSON_BYTES: Final = 1024 * 1024  # a batch with all its metadata is 40 KiB at most

_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,18}")


def answer(shape: wire.Shape, *, status: int = 200) -> Response:
    """A JSON answer."""
    return Response(wire.encode(shape), status_code=status, media_type=wire.JSON_TYPE)


def project_of(request: Request) -> ProjectId:
    """The project whose key the request carries; the default one where no key is needed."""
    return caller_of(request.scope).project_id


def key_of(request: Request) -> KeyId | None:
    """What the request's key is called; None where no key is needed."""
    return caller_of(request.scope).key_id


async def json_body(request: Request) -> object:
    """The decoded body, whatever its Content-Type says.

    Raises:
        InvalidRequest: it is not JSON.
        PayloadTooLarge: it is longer than MAX_JSON_BYTES.
        UnsupportedEncoding: it is compressed.
    """
    refuse_compressed(request)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_JSON_BYTES:
            raise PayloadTooLarge(f"The request body is larger than {MAX_JSON_BYTES} bytes.")
    try:
        return msgspec.json.decode(bytes(body))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise InvalidRequest("We could not parse the JSON body of your request.") from exc


def refuse_compressed(request: Request) -> None:
    """Raises UnsupportedEncoding when the body is said to be compressed in any way."""
    encodings = ",".join(request.headers.getlist("content-encoding")).lower().split(",")
    if any(one.strip() not in ("", "identity") for one in encodings):
        raise UnsupportedEncoding("The request body must not be compressed: send it as it is.")


def limit_of(request: Request, *, default: int, maximum: int) -> int:
    """The query parameter `limit`.

    Raises:
        InvalidRequest: it is not an integer from 1 to `maximum`.
    """
    return integer_of(request, "limit", default=default, minimum=1, maximum=maximum)


def integer_of(request: Request, name: str, *, default: int, minimum: int, maximum: int) -> int:
    """A query parameter; `default` when it is absent.

    Raises:
        InvalidRequest: it is not an integer from `minimum` to `maximum`.
    """
    text = request.query_params.get(name)
    if text is None:
        return default
    if _INTEGER.fullmatch(text) is None:
        raise InvalidRequest(
            f"Invalid type for '{name}': expected an integer, but got a string instead.",
            param=name,
            wire_code="invalid_type",
        )
    value = int(text)
    if value > maximum:
        raise InvalidRequest(
            f"Invalid '{name}': integer above maximum value. "
            f"Expected a value <= {maximum}, but got {value} instead.",
            param=name,
            wire_code="integer_above_max_value",
        )
    if value < minimum:
        raise InvalidRequest(
            f"Invalid '{name}': integer below minimum value. "
            f"Expected a value >= {minimum}, but got {value} instead.",
            param=name,
            wire_code="integer_below_min_value",
        )
    return value


def text_of(request: Request, name: str) -> str | None:
    """A query parameter; None when it is absent or empty, which SDKs use alike."""
    return request.query_params.get(name) or None
