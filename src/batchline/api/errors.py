"""Exceptions to answers: the one table of this border.

`RequestError` shows its message, since the caller can act on it. Everything else has a message of
ours, because the original may name paths or hold what other callers sent; the log keeps the class
and the place under the request id.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from batchline.api import wire
from batchline.domain.errors import (
    BlobUnreadable,
    IllegalTransition,
    InvalidRequest,
    KeyReused,
    RequestError,
    StorageFull,
    StoreError,
    Unauthorized,
)

INVALID_REQUEST: Final = "invalid_request_error"
SERVER_ERROR: Final = "server_error"

# Every official SDK retries 409 and 5xx twice unless told otherwise.
_NO_RETRY: Final = {"x-should-retry": "false"}
_RETRY_SOON: Final = {"retry-after": "1"}
_AS_IT_IS: Final = {"accept-encoding": "identity"}  # RFC 9110: a 415 says what would do
_GIVE_A_KEY: Final = {"www-authenticate": "Bearer"}  # RFC 9110: a 401 says what it wants


class PayloadTooLarge(InvalidRequest):
    """A JSON body beyond any that a route could mean (uploads have a limit of their own)."""

    status = 413


class UnsupportedEncoding(InvalidRequest):
    """A compressed body: it is not decompressed, so nobody can send a small one that is large."""

    status = 415


class RangeNotSatisfiable(InvalidRequest):
    """A range of bytes that begins after the end of the file."""

    status = 416

    def __init__(self, message: str, *, size: int = 0) -> None:
        """`size` is the file's."""
        super().__init__(message)
        self.size = size


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """An answer of 400 or above: its status, its envelope, and headers beside the usual ones."""

    status: int
    body: wire.Shape
    headers: Mapping[str, str] = field(default_factory=dict)


def problem_of(exc: Exception, *, method: str, path: str) -> Problem:
    """The answer that `exc` becomes; `method` and `path` are the request's."""
    match exc:
        case RequestError():
            return Problem(
                status=exc.status,
                body=wire.error(
                    exc.message, kind=INVALID_REQUEST, param=exc.param, code=exc.wire_code
                ),
                headers=_headers_of(exc),
            )
        case StoreError():
            return _of_store(exc)
        case HTTPException():
            return _of_http(exc, method=method, path=path)
        case ClientDisconnect():
            return refusal(400, "The connection was closed before the whole request was received.")
        case _:
            return Problem(
                status=500,
                body=wire.error(
                    "The server had an error while processing your request. "
                    "Its log has more under this request's id.",
                    kind=SERVER_ERROR,
                ),
            )


def _headers_of(exc: RequestError) -> Mapping[str, str]:
    match exc:
        case UnsupportedEncoding():
            return _AS_IT_IS
        case RangeNotSatisfiable():
            return {"content-range": f"bytes */{exc.size}"}
        case Unauthorized():
            return _GIVE_A_KEY
        case IllegalTransition() | KeyReused():
            return _NO_RETRY
        case _:
            return {}


def _of_store(exc: StoreError) -> Problem:
    match exc:
        case StorageFull():
            status, headers = 507, _NO_RETRY
            message = "The server's disk is full. Nothing was stored; free some space first."
        case BlobUnreadable():
            status, headers = 500, _NO_RETRY
            message = "The stored bytes are damaged or missing."
        case _:
            status, headers = 503, _RETRY_SOON
            message = "The server's database is not available. Please try again."
    body = wire.error(message, kind=SERVER_ERROR, code=exc.code)
    return Problem(status=status, body=body, headers=headers)


def _of_http(exc: HTTPException, *, method: str, path: str) -> Problem:
    """What the framework refused by itself: an unknown route, a method that a route lacks."""
    headers = dict(exc.headers or {})
    match exc.status_code:
        case 404:
            message, code = f"Invalid URL ({method} {path})", None
        case 405:
            message, code = f"Not allowed to {method} on {path}.", "method_not_supported"
        case status:
            message, code = HTTPStatus(status).phrase, None
    kind = INVALID_REQUEST if exc.status_code < 500 else SERVER_ERROR
    body = wire.error(message, kind=kind, code=code)
    return Problem(status=exc.status_code, body=body, headers=headers)


def refusal(status: int, message: str, *, code: str | None = None) -> Problem:
    """A 4xx that no exception of the domain stands for."""
    return Problem(status=status, body=wire.error(message, kind=INVALID_REQUEST, code=code))


def shutting_down() -> Problem:
    """For a request that was still being answered when the server's patience ended."""
    body = wire.error("The server is shutting down. Please try again.", kind=SERVER_ERROR)
    return Problem(status=503, body=body, headers=_RETRY_SOON)


def overloaded() -> Problem:
    """For a connection beyond those that the server keeps."""
    body = wire.error("The server has too many connections. Please try again.", kind=SERVER_ERROR)
    return Problem(status=503, body=body, headers=_RETRY_SOON)


def place_of(exc: BaseException, *, frames: int = 4) -> str:
    """Where `exc` was raised, innermost last; never its message, which may quote a caller."""
    stack = traceback.extract_tb(exc.__traceback__)[-frames:]
    return " > ".join(f"{frame.name}:{frame.lineno}" for frame in stack)
