"""Who may ask: the key in a request's headers, and whose it is.

Looked at before anything of the request is routed or read. Without keys everybody is the caller of
the default project, and `edge.foreign` keeps other machines and web pages out.
"""

from __future__ import annotations

import base64
import binascii
from typing import Final

from starlette.types import Scope

from batchline.domain.errors import Unauthorized
from batchline.domain.keys import KEYLESS, Caller, KeyRing

# Load balancers and orchestrators have no key, nor has a browser that opens a page; what they see
# says nothing of files and batches.
_OPEN: Final = frozenset({"/openapi.json", "/docs"})
_OPEN_BELOW: Final = ("/healthz/", "/docs/")

_CALLER: Final = "caller"


def admit(scope: Scope, ring: KeyRing) -> None:
    """Note in `scope` who asks.

    Raises:
        Unauthorized: keys are needed here, and the request has none that works.
    """
    needs_key = not ring.is_empty and not _is_open(scope["path"])
    scope.setdefault("state", {})[_CALLER] = _holder(scope, ring) if needs_key else KEYLESS


def _is_open(path: str) -> bool:
    return path in _OPEN or path.startswith(_OPEN_BELOW)


def caller_of(scope: Scope) -> Caller:
    """Whom `admit` noted."""
    found: Caller = scope["state"][_CALLER]
    return found


def _holder(scope: Scope, ring: KeyRing) -> Caller:
    given = [value for name, value in scope["headers"] if name == b"authorization"]
    secret = _secret(given[0].decode("latin-1")) if len(given) == 1 else None
    if secret is None:
        raise Unauthorized("Missing bearer or basic authentication in header")
    caller = ring.caller(secret)
    if caller is None:
        # Not even the beginning of what was sent: it may be a key of somewhere else.
        raise Unauthorized(
            "Incorrect API key provided. Whoever runs this server makes keys with"
            " `batchline keys create`.",
            wire_code="invalid_api_key",
        )
    return caller


def _secret(header: str) -> str | None:
    """The key in an Authorization header: a bearer token, or the password of basic (curl -u)."""
    scheme, _, value = header.strip().partition(" ")
    value = value.strip()
    match scheme.lower():
        case "bearer":
            return value or None
        case "basic":
            try:
                decoded = base64.b64decode(value, validate=True).decode("latin-1")
            except binascii.Error:
                return None
            return decoded.partition(":")[2] or None
        case _:
            return None
