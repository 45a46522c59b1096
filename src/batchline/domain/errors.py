"""Every exception that Batchline raises on purpose, as one tree.

    BatchlineError                   `code` is stable: body, log line and docs carry it unchanged
    ├── RequestError                 the caller can put it right      -> 4xx, message shown
    │   ├── InvalidRequest           400
    │   ├── Unauthorized             401
    │   ├── Forbidden                403
    │   ├── NotFound                 404
    │   ├── IllegalTransition        409
    │   └── KeyReused                409
    ├── StoreError                   durable state did not take or give what it should
    │   ├── StoreUnavailable         503: try again
    │   ├── StorageFull              507: the disk is full; nothing was half-done
    │   └── BlobUnreadable           500: bytes are short, gone or damaged
    ├── UpstreamError                one attempt at one line went wrong -> never leaves the executor
    │   ├── NotSent                  no byte of the request left: the backend's fault
    │   ├── NotAdmitted              the gate closed before the first byte was written
    │   └── SentUnanswered           bytes left, no usable answer (reset, timeout, garbage)
    └── ConfigError                  at start-up only -> exit code 2

Bad request lines are data (`model.LineProblem`), not exceptions.
"""

from __future__ import annotations

from typing import ClassVar


class BatchlineError(Exception):
    """The root. `message` is the first argument; `code` never changes its spelling."""

    code: ClassVar[str] = "internal_error"

    @property
    def message(self) -> str:
        return str(self.args[0]) if self.args else type(self).__name__


class RequestError(BatchlineError):
    """The caller can put it right: the message says how and is shown to the caller.

    `wire_code` is the `code` of the OpenAI error envelope, `param` its `param`; both may be None.
    """

    code = "invalid_request"
    status: ClassVar[int] = 400

    def __init__(
        self, message: str, *, param: str | None = None, wire_code: str | None = None
    ) -> None:
        super().__init__(message)
        self.param = param
        self.wire_code = wire_code


class InvalidRequest(RequestError):
    code = "invalid_request"
    status = 400


class Unauthorized(RequestError):
    code = "unauthorized"
    status = 401


class Forbidden(RequestError):
    code = "forbidden"
    status = 403


class NotFound(RequestError):
    code = "not_found"
    status = 404


class IllegalTransition(RequestError):
    """The batch's status does not allow the event (cancel of a completed batch)."""

    code = "illegal_transition"
    status = 409


class KeyReused(RequestError):
    """An idempotency key came again with other parameters."""

    code = "idempotency_key_reused"
    status = 409


class StoreError(BatchlineError):
    code = "store_error"


class StoreUnavailable(StoreError):
    """The database did not answer, or is locked for too long; the same call may work later."""

    code = "store_unavailable"


class StorageFull(StoreError):
    """No space left for a durable write; what was being written has been undone."""

    code = "storage_full"


class BlobUnreadable(StoreError):
    """Bytes that a row promises are short, gone or damaged."""

    code = "blob_unreadable"


class UpstreamError(BatchlineError):
    """One attempt at one line went wrong; `detail` holds kinds and sizes, never bodies."""

    code = "upstream_error"


class NotSent(UpstreamError):
    """Refused connection, DNS, TLS, connect timeout: no byte of the request left this machine."""

    code = "upstream_unreachable"


class NotAdmitted(UpstreamError):
    """`Call.before_write` said no: the gate closed, and nothing was written."""

    code = "not_admitted"


class SentUnanswered(UpstreamError):
    """Bytes of the request left and no usable answer came back.

    `reason` is one of `reset`, `timeout`, `malformed`, `too_large`.
    """

    code = "upstream_unanswered"

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason

    @property
    def is_cut_off(self) -> bool:
        """The connection ended, or the time was up; else there was something of an answer."""
        return self.reason in ("reset", "timeout")


class ConfigError(BatchlineError):
    code = "config_error"
